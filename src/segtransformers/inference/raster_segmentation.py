# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Segmentation of a raster into GeoTIFF files: resumable, in one process or several.

The rows of the raster are divided into pieces. Each finished piece is a folder in the resume log beside the first
result. The results are put together from all pieces at the end, so a run that was stopped and continued, or that was
divided among processes, writes the same bytes, and nothing incomplete takes the place of a result.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from ..files import complete_file, staging_folder
from ..image_processing import decision_of, label_map_classes
from ..rasters.raster import Raster, RasterError
from ..rasters.reading import open_raster
from ..rasters.writing import (
    TILE,
    GeoTiffLayout,
    needed_rasterio,
    probability_layout,
    read_part,
    read_tags,
    stored_probabilities,
    write_geotiff,
)
from .confidence import MEASURES
from .protocol import InferenceProtocol
from .raster_bands import RasterBand, has_windows, raster_bands, raster_window, segment_raster_bands

KINDS = ("labels", *MEASURES, "probabilities")
VALUE_TYPES = ("uint8", "float16", "float32")
SUBJECT = "subject.json"
RUN_TAG = "SEGTRANSFORMERS_RUN"  # of the results: a digest of all that they depend on


@dataclass(frozen=True)
class RasterJob:
    """A raster to segment, and the files to write. It can be sent to other processes.

    Attributes:
        file: the raster.
        outputs: the GeoTIFF file for each kind of result: "labels", "confidence", "entropy", "probability_margin" and
            "probabilities", which has one band for each class. Labels and measures of a multi-label model have one band
            for each class, too; its labels are 0 and 1.
        protocol: the inference options, without scales.
        bands: numbers of the bands to read, from 1 on; None takes those of the image processor.
        value_type: how probabilities and measures are stored: "uint8" (254 is 1, and 255 is nodata), "float16" or
            "float32" (nodata is NaN).

    Raises:
        ValueError: if the outputs have no labels or an unknown kind, or the value type is unknown.
    """

    file: Path
    outputs: Mapping[str, Path]
    protocol: InferenceProtocol = field(default_factory=InferenceProtocol)
    bands: tuple[int, ...] | None = None
    value_type: str = "uint8"

    def __post_init__(self) -> None:
        if "labels" not in self.outputs or set(self.outputs) - set(KINDS):
            raise ValueError(f"outputs must have labels, and may have {', '.join(KINDS[1:])}, got {list(self.outputs)}")
        if self.value_type not in VALUE_TYPES:
            raise ValueError(f"value_type must be one of {', '.join(VALUE_TYPES)}, got {self.value_type!r}")

    @property
    def log(self) -> Path:
        """The folder of the finished pieces."""
        labels = Path(self.outputs["labels"])
        return labels.with_name(f"{labels.name}.resume")


@dataclass(frozen=True)
class ClassPixels:
    """The pixels of a segmented raster.

    Attributes:
        classes: the number of pixels of each class that occurs. Those of a multi-label model may overlap.
        valid: the number of pixels with data.
    """

    classes: Mapping[int, int]
    valid: int


def segment_raster(
    model: PreTrainedModel,
    processor: Any,
    job: RasterJob,
    *,
    resume: bool = False,
    subject: Mapping[str, Any] | None = None,
    on_piece: Callable[[int], Any] | None = None,
) -> ClassPixels:
    """Segment a raster into GeoTIFF files in this process.

    Memory does not grow with the height of the raster: it holds the logits of one row of windows, rows of the file of
    one window height, and `TILE` rows of the results. After an error the resume log is kept if it has finished pieces.

    Args:
        model: in evaluation mode.
        processor: its image processor.
        job: the raster and the files.
        resume: whether to continue a run that was stopped. Results that are complete already stay as they are.
        subject: more that the results depend on, as JSON can hold it, such as a digest of the model. A run is continued
            only where it is equal.
        on_piece: is called with the number of rows of each finished piece.

    Raises:
        RasterError: if the raster cannot be read, does not fit the model, or holds no data.
        ValueError: as [`segment_raster_bands`], or if a resume log is of another run, or exists although `resume` is
            False.
        OSError: if a file cannot be written.
    """
    pieces = begin_raster(model, processor, job, resume, subject)
    if pieces is None:
        return count_pixels(model, job)
    try:
        write_pieces(model, processor, job, pieces, on_piece)
        return finish_raster(model, job)
    finally:
        discard_empty_log(job)


def begin_raster(
    model: PreTrainedModel, processor: Any, job: RasterJob, resume: bool, subject: Mapping[str, Any] | None
) -> list[slice] | None:
    """Check the job, begin or continue its resume log, and return the rows of the pieces that are missing.

    Returns:
        None if `resume` is set and all results are complete already.

    Raises:
        as [`segment_raster`].
    """
    needed_rasterio()
    with open_raster(job.file) as raster:
        raster_bands(processor, raster, job.bands)
        window = raster_window(model, job.protocol)
        step = TILE if has_windows(window, (raster.height, raster.width)) else raster.height
        stat = os.stat(job.file)
        described = {
            "file": {"bytes": stat.st_size, "modified": stat.st_mtime_ns},
            "size": [raster.bands, raster.height, raster.width],
            "bands": None if job.bands is None else list(job.bands),
            "window": [list(window.size), list(window.stride), window.batch_size, window.blend, window.margin],
            "flip": job.protocol.flip,
            "temperature": decision_of(model.config).temperature,
            "results": sorted(job.outputs),
            "value_type": job.value_type,
            **(subject or {}),
        }
        rows = [slice(start, min(start + step, raster.height)) for start in range(0, raster.height, step)]
    described = json.loads(json.dumps(described))
    found = _read_subject(job.log)
    if found is None:
        if resume and _is_finished(job, described):
            return None
        with complete_file(job.log / SUBJECT) as file:
            file.write_text(json.dumps(described), encoding="utf-8")
    elif not resume:
        raise ValueError(
            f"a segmentation of {job.file.name} was stopped: continue it with resume=True (--resume), or delete the "
            f"folder {job.log} to start anew"
        )
    elif found != described:
        names = [name for name in {**described, **found} if found.get(name) != described.get(name)]
        raise ValueError(
            f"the resume log {job.log} is of another run, which differs in {', '.join(names)}: delete that folder to "
            "start anew"
        )
    return [own for own in rows if not _piece_folder(job, own).exists()]


def write_pieces(
    model: PreTrainedModel,
    processor: Any,
    job: RasterJob,
    pieces: Sequence[slice],
    on_piece: Callable[[int], Any] | None = None,
) -> None:
    """Segment the rows of some pieces, and add each of them to the resume log.

    Args:
        pieces: some of those that [`begin_raster`] returned, from top to bottom.

    Raises:
        as [`segment_raster`].
    """
    with open_raster(job.file) as raster:
        layouts = _layouts(model, raster, job)
        for run in _joined(pieces):
            bands = segment_raster_bands(
                model, processor, raster, job.protocol, slice(run[0].start, run[-1].stop), job.bands
            )
            rest: list[RasterBand] = []
            for own in run:
                stored, rest = _collected(bands, rest, own, layouts, job.value_type)
                _write_piece(job, own, stored, layouts)
                if on_piece is not None:
                    on_piece(own.stop - own.start)


def finish_raster(model: PreTrainedModel, job: RasterJob) -> ClassPixels:
    """Put the results together from all pieces, and delete the resume log.

    Raises:
        as [`segment_raster`].
    """
    tags = {RUN_TAG: _digest(_read_subject(job.log) or {})}
    with open_raster(job.file) as raster:
        layouts = {kind: replace(layout, tags=tags) for kind, layout in _layouts(model, raster, job).items()}
    folders = sorted(folder for folder in job.log.glob("rows-*") if folder.is_dir())
    labels = layouts["labels"]
    counts = _counted((read_part(folder / "labels.tif") for folder in folders), labels)
    if (counts.sum(1) != labels.height * labels.width).any():
        raise ValueError(f"pieces are missing in {job.log}: continue with resume=True (--resume)")
    pixels = _class_pixels(counts, model)
    if pixels.valid == 0:
        shutil.rmtree(job.log)
        raise RasterError(
            f"{job.file} has no pixel with data: check its nodata value (gdalinfo), or choose another raster"
        )
    with contextlib.ExitStack() as stack:
        written = []
        for kind, layout in layouts.items():
            target = Path(job.outputs[kind])
            file = stack.enter_context(staging_folder(target)) / target.name
            parts = (read_part(folder / f"{kind}.tif") for folder in folders)
            write_geotiff(file, layout, parts, overviews="nearest" if kind == "labels" else "average")
            written.append((file, target))
        for file, target in written:  # only when all of them are complete
            beside, names = Path(f"{target}.aux.xml"), Path(f"{file}.aux.xml")
            beside.unlink(missing_ok=True)  # of a file that is replaced
            file.replace(target)
            if names.exists():
                names.replace(beside)
    shutil.rmtree(job.log)
    return pixels


def count_pixels(model: PreTrainedModel, job: RasterJob) -> ClassPixels:
    """Count the pixels of finished results.

    Raises:
        RasterError: if the file of the labels cannot be read.
    """
    with open_raster(job.file) as raster:
        layout = _layouts(model, raster, job)["labels"]
    with open_raster(job.outputs["labels"]) as labels:
        rows = (slice(row, min(row + TILE, labels.height)) for row in range(0, labels.height, TILE))
        return _class_pixels(_counted((labels.read(own) for own in rows), layout), model)


def discard_empty_log(job: RasterJob) -> None:
    """Delete the resume log of a job if it has no finished piece, from which a run could continue."""
    if job.log.is_dir() and not has_finished_pieces(job):
        shutil.rmtree(job.log, ignore_errors=True)


def has_finished_pieces(job: RasterJob) -> bool:
    """Return whether a resume log has finished pieces."""
    return any(job.log.glob("rows-*"))


def _is_finished(job: RasterJob, described: Mapping[str, Any]) -> bool:
    """Return whether all results of a run are complete: each is moved to its place with the digest of the run."""
    digest = _digest(described)
    return all(read_tags(Path(path)).get(RUN_TAG) == digest for path in job.outputs.values())


def _digest(described: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _counted(parts: Iterable[np.ndarray], layout: GeoTiffLayout) -> np.ndarray:
    """Return the number of pixels of each value up to nodata, `(bands, values)`, of labels `(bands, rows, width)`."""
    nodata = int(layout.nodata)
    counts = np.zeros((layout.bands, nodata + 1), np.int64)
    for part in parts:
        for own, band in zip(counts, part, strict=True):
            own += np.bincount(band.ravel(), minlength=nodata + 1)
    return counts


def _class_pixels(counts: np.ndarray, model: PreTrainedModel) -> ClassPixels:
    """Return the pixels of the classes. A multi-label model has one band for each class, whose values are 0 and 1."""
    pixels = counts[:, 1] if decision_of(model.config).multi_label else counts[0, :-1]
    found = {value: int(count) for value, count in enumerate(pixels) if count}
    return ClassPixels(found, int(counts[0, :-1].sum()))


def _layouts(model: PreTrainedModel, raster: Raster, job: RasterJob) -> dict[str, GeoTiffLayout]:
    names, is_multi_label = label_map_classes(model.config), decision_of(model.config).multi_label
    size = {"height": raster.height, "width": raster.width, "crs": raster.crs, "transform": raster.transform}
    layouts = {}
    for kind in job.outputs:
        if kind == "labels" and is_multi_label:
            every = list(names.values())
            layouts[kind] = GeoTiffLayout(len(every), **size, dtype="uint8", nodata=255.0, descriptions=every)
            continue
        if kind == "labels":
            is_small = len(names) < 256  # 255 is nodata
            dtype, nodata = ("uint8", 255.0) if is_small else ("uint16", 65535.0)
            colours = getattr(model.config, "palette", None)
            layouts[kind] = GeoTiffLayout(
                1, **size, dtype=dtype, nodata=nodata, descriptions=["class"], class_names=names, colours=colours
            )
            continue
        dtype, nodata, scale = probability_layout(job.value_type)
        has_classes = kind == "probabilities" or is_multi_label
        described = [names[index] for index in _channels(model)] if has_classes else [kind]
        layouts[kind] = GeoTiffLayout(
            len(described), **size, dtype=dtype, nodata=nodata, descriptions=described, scale=scale
        )
    return layouts


def _channels(model: PreTrainedModel) -> list[int]:
    """Return the label that each channel of the probabilities belongs to. A binary model has that of the object."""
    count, names = int(model.config.num_labels or 0), label_map_classes(model.config)
    return [1] if count == 1 and len(names) == 2 else list(range(count))


def _joined(pieces: Sequence[slice]) -> Iterator[list[slice]]:
    """Yield runs of pieces that follow one another, in which no window is computed twice."""
    run: list[slice] = []
    for piece in pieces:
        if run and run[-1].stop != piece.start:
            yield run
            run = []
        run.append(piece)
    if run:
        yield run


def _collected(
    bands: Iterator[RasterBand],
    rest: list[RasterBand],
    rows: slice,
    layouts: Mapping[str, GeoTiffLayout],
    value_type: str,
) -> tuple[dict[str, np.ndarray], list[RasterBand]]:
    """Return the values of a piece as they are stored, and the bands that reach beyond it.

    Args:
        bands: the bands that follow `rest`.
        rest: bands that a former piece left over.
    """
    stored = {
        kind: np.empty((layout.bands, rows.stop - rows.start, layout.width), layout.numpy_dtype)
        for kind, layout in layouts.items()
    }
    row = rows.start
    while row < rows.stop:
        band = rest.pop() if rest else next(bands)
        own = band.segmented.rows
        stop = min(own.stop, rows.stop)
        inside = slice(row - own.start, stop - own.start)
        for kind, values in stored.items():
            values[:, row - rows.start : stop - rows.start] = _stored(band, kind, inside, layouts[kind], value_type)
        row = stop
        if stop < own.stop:
            rest = [band]
    return stored, rest


def _stored(band: RasterBand, kind: str, rows: slice, layout: GeoTiffLayout, value_type: str) -> np.ndarray:
    valid, segmented = band.valid[rows], band.segmented
    if kind == "labels":
        labels = segmented.labels[..., rows, :].cpu().numpy().astype(layout.dtype)
        return np.where(valid, labels, np.array(layout.nodata, layout.dtype))
    is_map = kind != "probabilities"
    values = (getattr(segmented, kind)() if is_map else segmented.probabilities)[..., rows, :].cpu().numpy()
    return stored_probabilities(values, valid, value_type)


def _write_piece(
    job: RasterJob, rows: slice, stored: Mapping[str, np.ndarray], layouts: Mapping[str, GeoTiffLayout]
) -> None:
    target = _piece_folder(job, rows)
    with staging_folder(target) as staging:
        folder = staging / target.name
        folder.mkdir()
        for kind, values in stored.items():
            layout = layouts[kind]
            own = GeoTiffLayout(
                layout.bands, rows.stop - rows.start, layout.width, layout.dtype, layout.nodata, level=1
            )
            write_geotiff(folder / f"{kind}.tif", own, [values])
        try:
            folder.replace(target)
        except OSError:
            if not target.exists():  # else a process of a run that was killed has just finished this piece
                raise


def _piece_folder(job: RasterJob, rows: slice) -> Path:
    return job.log / f"rows-{rows.start:08d}-{rows.stop:08d}"


def _read_subject(log: Path) -> dict[str, Any] | None:
    """Return the description of the run that a resume log belongs to, or None if it holds no piece."""
    if not any(log.glob("rows-*")):
        return None
    try:
        found = json.loads((log / SUBJECT).read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise TypeError
    except (OSError, ValueError, TypeError):
        raise ValueError(f"{log} is damaged: delete that folder to start anew") from None
    return found


__all__ = [
    "ClassPixels",
    "RasterJob",
    "begin_raster",
    "count_pixels",
    "discard_empty_log",
    "finish_raster",
    "has_finished_pieces",
    "segment_raster",
    "write_pieces",
]
