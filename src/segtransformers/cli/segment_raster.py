# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`segtransformers segment` of rasters: GeoTIFF files of class indices, measures and probabilities.

Heavy modules are imported inside functions, so that the help and mistyped options cost no time.
"""

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..escaping import one_line, printable, short_repr
from ..files import check_readable, write_failure
from ..model_names import full_model_name
from ..terminal import progress_bar
from .common import check_folder, check_input_file, inference_protocol, load_model, network_dtype
from .errors import UserError, describe, error_line, note, one_line_errors
from .image_files import find_images, result_names
from .output import document
from .processes import in_first_process, process_group
from .shares import print_shares, result_files, shares

if TYPE_CHECKING:
    import torch

    from ..inference.raster_segmentation import ClassPixels, RasterJob

GEOTIFF_ENDINGS = (".tif", ".tiff")
POLYGONS = "--polygons"
FAILURES = (UserError, ValueError, OSError, RuntimeError, MemoryError)  # of one raster among several

ProbabilitiesOption = Annotated[
    Path | None, typer.Option(metavar="PATH", help="For a raster: GeoTIFF file with one band for each class.")
]
ValueTypeOption = Annotated[
    str,
    typer.Option(
        metavar="TYPE",
        help="For a raster: how probabilities are stored, as uint8 (254 is 1), float16 or float32.",
    ),
]
PolygonsOption = Annotated[
    Path | None,
    typer.Option(metavar="PATH", help="For a raster: GeoPackage file (.gpkg) with polygons of the classes."),
]
BandsOption = Annotated[
    str | None,
    typer.Option(metavar="N,N,...", help="For a raster: the bands that the model takes, counted from 1, in its order."),
]
GeotiffOption = Annotated[
    bool,
    typer.Option(
        "--geotiff",
        help="For several rasters: write a GeoTIFF file for each of them. --output and other results are folders then.",
    ),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Continue an interrupted run, and leave finished results as they are.")
]
WorkersOption = Annotated[
    int, typer.Option(min=1, help="Processes that share the rows of each raster; each loads the model.")
]


@dataclass(frozen=True)
class RasterOptions:
    """Options of `segment` that only rasters have, the device and the precision."""

    bands: str | None
    value_type: str
    resume: bool
    workers: int
    device: str | None
    precision: str

    def band_numbers(self) -> tuple[int, ...] | None:
        if self.bands is None:
            return None
        try:
            numbers = tuple(int(part) for part in self.bands.split(","))
        except ValueError:
            numbers = ()
        if not numbers or min(numbers) < 1:
            raise UserError(f"--bands must be numbers from 1 on, such as 4,3,2, got {short_repr(self.bands)}")
        return numbers


@dataclass(frozen=True)
class RasterFiles:
    """A raster, and the files of its results by the options that ask for them."""

    raster: Path
    results: Mapping[str, Path]

    @property
    def polygons(self) -> Path | None:
        return self.results.get(POLYGONS)

    def job_outputs(self) -> dict[str, Path]:
        """Return the GeoTIFF files by their kind."""
        return {_kind(option): path for option, path in self.results.items() if option != POLYGONS}


def is_raster_command(images: Sequence[Path], output: Path | None) -> bool:
    """Return whether one raster is segmented into a GeoTIFF file."""
    from ..rasters import RASTER_ENDINGS

    if output is None or output.suffix.lower() not in GEOTIFF_ENDINGS or output.is_dir() or len(images) != 1:
        return False
    return images[0].suffix.lower() in RASTER_ENDINGS and not images[0].is_dir()


def segment_rasters(
    rasters: Sequence[Path],
    single: bool,
    model: str | None,
    outputs: Mapping[str, Path | None],
    options: RasterOptions,
    protocol_options: Sequence[Any],
) -> None:
    """Segment rasters into GeoTIFF files, and print the share of each class.

    An error of one raster is printed, and the others are still segmented. Errors of all of them end the command.

    Args:
        rasters: files, or folders of them.
        single: whether outputs are files of one raster, instead of folders.
        outputs: by option.
        protocol_options: those of `inference_protocol` after the processor.
    """
    with process_group() as (rank, device_of_process), one_line_errors(ValueError, OSError):
        if model is None:
            raise UserError("a raster needs --model: a folder, a Hub id or the name of a published model")
        named = {option: path for option, path in outputs.items() if path is not None}
        _check_packages(POLYGONS in named)
        targets = _single_target(rasters[0], named) if single else _targets(rasters, named)
        if rank == 0:
            _check_targets(targets)
        run = _RasterRun(targets, model, options, protocol_options, rank, device_of_process)
        failed = run.run()
        if rank == 0:
            document({"model": full_model_name(model), "images": run.done, "failed": run.failures})
        if rank == 0 and failed and len(targets) > 1:
            error_line(f"{failed} of {len(targets)} rasters failed")
        if failed:
            raise typer.Exit(1)


def _check_packages(has_polygons: bool) -> None:
    from ..rasters.polygons import needed_pyogrio
    from ..rasters.writing import needed_rasterio

    needed_rasterio()
    if has_polygons:
        needed_pyogrio()


def _single_target(raster: Path, outputs: Mapping[str, Path]) -> list[RasterFiles]:
    check_input_file(raster, f"the raster {raster}")
    for option, path in outputs.items():
        if option == POLYGONS and path.suffix.lower() != ".gpkg":
            raise UserError(f"{POLYGONS} {path} must end in .gpkg")
        if option != POLYGONS and path.suffix.lower() not in GEOTIFF_ENDINGS:
            raise UserError(f"{option} {path} must end in .tif, because --output is a GeoTIFF file")
        if path.is_dir():
            raise UserError(f"{option} {path} is a folder, where a file is needed")
    return [RasterFiles(raster, dict(outputs))]


def _targets(rasters: Sequence[Path], outputs: Mapping[str, Path]) -> list[RasterFiles]:
    """Return the files of several rasters: in the folder of each option, named after the raster."""
    from ..rasters import RASTER_ENDINGS

    found = find_images(rasters, list(outputs.values()), RASTER_ENDINGS)
    for option, folder in outputs.items():
        if not folder.is_dir() and (folder.exists() or folder.suffix.lower() in (*GEOTIFF_ENDINGS, ".gpkg")):
            raise UserError(f"{option} {folder} must be a folder for the files of several rasters")
    names = result_names([relative for _, relative in found], ending=".tif")
    return [
        RasterFiles(
            raster,
            {
                option: folder / (name.with_suffix(".gpkg") if option == POLYGONS else name)
                for option, folder in outputs.items()
            },
        )
        for (raster, _), name in zip(found, names, strict=True)
    ]


def _check_targets(targets: Sequence[RasterFiles]) -> None:
    """Refuse files that cannot be written, or that are the same, before the model is loaded."""
    for files in targets:
        for option, path in files.results.items():
            check_folder(path.parent, f"{option} {path}")
            check_readable(path)  # a pipe or device would be replaced
    written = [os.path.realpath(path) for files in targets for path in files.results.values()]
    inputs = {os.path.realpath(files.raster) for files in targets}
    if len(set(written)) < len(written) or inputs & set(written):
        raise UserError(f"{', '.join(targets[0].results)} must be different files, and none of them the raster")


def _note_replaced(files: RasterFiles) -> None:
    replaced = [path for path in files.results.values() if path.exists()]
    if replaced:
        more = f" and {len(replaced) - 1} more files" if len(replaced) > 1 else ""
        note(f"{replaced[0]}{more} will be replaced")


class _RasterRun:
    """The rasters of one command, segmented by one model."""

    def __init__(
        self,
        targets: Sequence[RasterFiles],
        name: str,
        options: RasterOptions,
        protocol_options: Sequence[Any],
        rank: int,
        device_of_process: str | None,
    ):
        from ..inference.raster_bands import raster_window
        from ..inference.raster_segmentation import RasterJob
        from ..models.optimize import optimize_if_ours

        self.targets, self.name, self.options, self.rank = targets, name, options, rank
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.done: list[dict[str, Any]] = []
        self.failures: list[dict[str, str]] = []
        self.failed = 0
        network, self.processor = load_model(name, options.device or device_of_process, precision=options.precision)
        protocol = inference_protocol(self.processor, *protocol_options)
        window = raster_window(network, protocol)  # a margin that does not fit is an error of all rasters
        numbers = options.band_numbers()
        self.jobs = [
            RasterJob(files.raster, files.job_outputs(), protocol, numbers, options.value_type) for files in targets
        ]
        self._check_polygons(network)
        config: Any = network.config
        if rank == 0 and protocol.window is None and getattr(config, "sliding_window", lambda: None)() is None:
            sides = " x ".join(map(str, window.size))
            note(f"the model runs whole images; rasters are run in windows of {sides} pixels (--window)")
        dtype = network_dtype(name, network, options.precision)
        self.subject = _subject(network, self.processor, dtype)
        self.network = optimize_if_ours(network, inplace=True, dtype=dtype)  # after its description

    def run(self) -> int:
        """Segment all rasters, and return the number of those that failed."""
        from ..inference.raster_segmentation import discard_empty_log, has_finished_pieces

        try:
            if self.options.workers > 1 and self.world == 1:
                self._run_with_workers()
            else:
                self._run_in_turn()
        except (KeyboardInterrupt, SystemExit):
            kept = [job.log for job in self.jobs if has_finished_pieces(job)]
            if kept and self.rank == 0:
                note(f"stopped. {kept_rows(kept[0])}")
            raise
        finally:
            for job in self.jobs if self.rank == 0 else ():
                discard_empty_log(job)
        return self.failed

    def _run_in_turn(self) -> None:
        for index, job in enumerate(self.jobs):
            with self._errors_of(job):
                pieces = in_first_process(functools.partial(self._begin, index), FAILURES)
                if pieces is not None:
                    self._write(job, pieces)
                in_first_process(functools.partial(self._finish, index, pieces is None), FAILURES)

    def _begin(self, index: int) -> list[slice] | None:
        from ..inference.raster_segmentation import begin_raster
        from ..rasters import open_raster

        job, files = self.jobs[index], self.targets[index]
        pieces = begin_raster(self.network, self.processor, job, self.options.resume, self.subject)
        if pieces is not None:
            _note_replaced(files)
        with open_raster(job.file) as raster:
            if raster.crs is None:
                note(
                    f"{job.file} has no coordinate system, so the results have none either (ground control points are "
                    "not copied: run gdalwarp first)"
                )
        return pieces

    def _write(self, job: "RasterJob", pieces: Sequence[slice]) -> None:
        """Write the pieces of this process, and raise the first error of any process in all of them."""
        from ..inference.raster_segmentation import write_pieces

        error: Exception | None = None
        rows = sum(piece.stop - piece.start for piece in pieces)
        name = "" if len(self.jobs) == 1 else printable(job.file.name)
        with progress_bar(rows, "row", name, shown=self.rank == 0) as bar:
            try:
                own = share_of(pieces, self.rank, self.world)
                write_pieces(
                    self.network, self.processor, job, own, lambda count: bar.update(min(count * self.world, rows))
                )
            except FAILURES as caught:
                error = caught
        if self.world > 1:
            from torch import distributed

            errors: list[Any] = [None] * self.world
            distributed.all_gather_object(errors, error)
            error = next((one for one in errors if one is not None), None)
        if error is not None:
            raise error

    def _finish(self, index: int, is_complete: bool) -> None:
        """Put the results of a raster together, draw its polygons, and print the share of each class."""
        from ..inference.raster_segmentation import count_pixels, finish_raster

        job, files = self.jobs[index], self.targets[index]
        pixels = count_pixels(self.network, job) if is_complete else finish_raster(self.network, job)
        polygons = self._write_polygons(files, is_complete)
        self._print(files, pixels, polygons, is_complete)
        self.done.append(
            {
                "image": str(files.raster),
                **result_files(files.results),
                "classes": shares(pixels.classes, self.network.config, pixels.valid),
            }
        )

    def _write_polygons(self, files: RasterFiles, is_complete: bool) -> str:
        from ..image_processing import label_map_classes
        from ..rasters.polygons import write_polygons

        path = files.polygons
        labels = files.results["--output"]
        if path is None or (is_complete and path.exists() and path.stat().st_mtime >= labels.stat().st_mtime):
            return ""
        number = write_polygons(labels, path, label_map_classes(self.network.config))
        return f" ({number} polygons)"

    def _print(self, files: RasterFiles, pixels: "ClassPixels", polygons: str, is_complete: bool) -> None:
        written = ", ".join(printable(path, None) for path in files.results.values()) + polygons
        arrow = "was segmented before into" if is_complete else "->"
        title = f"{printable(files.raster, None)} {arrow} {written}"
        print_shares(title, pixels.classes, self.network.config, pixels.valid)

    def _run_with_workers(self) -> None:
        from .raster_workers import run_workers

        begun: dict[int, list[slice]] = {}
        for index, job in enumerate(self.jobs):
            with self._errors_of(job):
                pieces = self._begin(index)
                if pieces:
                    begun[index] = pieces
                else:
                    self._finish(index, pieces is None)
        tasks = [(index, self.jobs[index], pieces) for index, pieces in begun.items()]
        with contextlib.closing(
            run_workers(tasks, self.name, self.options.device, self.options.precision, self.options.workers)
        ) as finished:
            for index, message in finished:
                with self._errors_of(self.jobs[index]):
                    if message is not None:
                        raise UserError(message)
                    self._finish(index, False)

    @contextlib.contextmanager
    def _errors_of(self, job: "RasterJob") -> Iterator[None]:
        """Print an error of one raster and count it. An error of writing is raised, because it ends the command."""
        from ..inference.raster_segmentation import has_finished_pieces

        try:
            yield
        except FAILURES as error:
            failure = raster_write_failure(error)
            text = one_line(failure or describe(error)).rstrip(".")
            if has_finished_pieces(job) and "--resume" not in text:  # as a resume log of another run
                text = f"{text}. {kept_rows(job.log)}"
            if self.rank == 0 and failure is not None:
                raise UserError(text) from None
            if failure is not None:
                raise typer.Exit(1) from None
            self.failed += 1
            if self.rank == 0:
                where = "" if str(job.file.name) in text else f"cannot segment {printable(job.file, 200)}: "
                error_line(f"{where}{text}")
                self.failures.append({"image": str(job.file), "error": text})

    def _check_polygons(self, network: Any) -> None:
        from ..image_processing import decision_of

        if self.targets[0].polygons is not None and decision_of(network.config).multi_label:
            raise UserError("--polygons: classes of a multi-label model overlap, so there is no polygon of one class")


def _subject(network: Any, processor: Any, dtype: "torch.dtype | None") -> dict[str, Any]:
    """Describe all but the raster that results depend on, as JSON can hold it."""
    from ..evaluation.subject import describe_model, describe_processor

    return {
        "model": describe_model(network),
        "image_processor": describe_processor(processor),
        "dtype": str(dtype or network.dtype),
        "device": network.device.type,
    }


def _kind(option: str) -> str:
    return "labels" if option == "--output" else option.removeprefix("--").replace("-", "_")


def kept_rows(log: Path) -> str:
    """Say where the finished rows of a raster are, and what to do."""
    return f"The finished rows are kept in {log}: continue with --resume, or delete that folder"


def raster_write_failure(error: BaseException) -> str | None:
    """Return the reason why a result could not be written, or None if this is another error."""
    from ..rasters.writing import WriteError

    return str(error) if isinstance(error, WriteError) else write_failure(error)


def share_of(pieces: Sequence[Any], rank: int, world: int) -> list[Any]:
    """Return the pieces of one of several processes: a run of rows, in which few windows are computed twice."""
    return list(pieces[len(pieces) * rank // world : len(pieces) * (rank + 1) // world])
