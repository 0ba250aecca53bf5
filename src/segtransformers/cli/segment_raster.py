# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`segtransformers segment` of a raster: a GeoTIFF file of class indices, and of probabilities.

Heavy modules are imported inside functions, so that the help and mistyped options cost no time.
"""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..escaping import one_line, printable, short_repr
from ..files import write_failure
from .common import check_file, check_input_file, inference_protocol, load_model
from .errors import UserError, note, one_line_errors
from .processes import process_group

if TYPE_CHECKING:
    from ..inference.raster_segmentation import RasterJob

LISTED_CLASSES = 12
GEOTIFF_ENDINGS = (".tif", ".tiff")
POLL_SECONDS = 0.2

ProbabilitiesOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="For a raster: GeoTIFF file with one band for each class.")
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
    typer.Option(metavar="FILE", help="For a raster: GeoPackage file (.gpkg) with polygons of the classes."),
]
BandsOption = Annotated[
    str | None,
    typer.Option(metavar="N,N,...", help="For a raster: the bands that the model takes, counted from 1, in its order."),
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Continue a raster that was interrupted.")]
WorkersOption = Annotated[
    int, typer.Option(min=1, help="Processes that share the rows of a raster; each loads the model.")
]


@dataclass(frozen=True)
class RasterOptions:
    """Options of `segment` that only rasters have, and the device."""

    bands: str | None
    value_type: str
    resume: bool
    workers: int
    device: str | None

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


def is_raster_command(images: Sequence[Path], output: Path | None) -> bool:
    """Return whether one raster is segmented into a GeoTIFF file."""
    from ..rasters import RASTER_ENDINGS

    if output is None or output.suffix.lower() not in GEOTIFF_ENDINGS or output.is_dir() or len(images) != 1:
        return False
    return images[0].suffix.lower() in RASTER_ENDINGS and not images[0].is_dir()


def segment_raster_file(
    file: Path,
    model: str | None,
    outputs: Mapping[str, Path | None],
    polygons: Path | None,
    options: RasterOptions,
    protocol_options: Sequence[Any],
) -> None:
    """Segment a raster into GeoTIFF files, and print the share of each class.

    Args:
        outputs: the files, by option.
        protocol_options: those of `inference_protocol` after the processor.
    """
    with process_group() as (rank, device_of_process), one_line_errors(ValueError, OSError):
        check_input_file(file, f"the raster {file}")
        if model is None:
            raise UserError("a raster needs --model: a folder, a Hub id or the name of a published model")
        named = {option: path for option, path in outputs.items() if path is not None}
        _check_outputs(file, named, polygons, rank)
        found = _segmented(file, model, named, options, protocol_options, rank, device_of_process, polygons is not None)
        if found is None:
            return
        counts, config = found
        written = [printable(path, None) for path in named.values()]
        if polygons is not None:
            from ..image_processing import label_map_classes
            from ..rasters.polygons import write_polygons

            number = write_polygons(named["--output"], polygons, label_map_classes(config))
            written.append(f"{printable(polygons, None)} ({number} polygons)")
        typer.echo("\n".join([f"{printable(file, None)} -> {', '.join(written)}", *share_lines(counts, config)]))


def share_lines(areas: Mapping[int, float], config: Any, total: float | None = None) -> list[str]:
    """Return lines with the share of each class, largest first.

    Args:
        areas: pixels, or the share of them, of each class.
        total: all pixels, or 1. None takes the sum of the areas, where each pixel has one class.
    """
    from ..image_processing import label_map_classes

    names, total = label_map_classes(config), max(sum(areas.values()) if total is None else total, 1e-12)
    largest = sorted(areas, key=lambda index: -areas[index])
    lines = [
        f"  {100 * areas[index] / total:5.1f} %  {printable(names.get(index, index))}"
        for index in largest[:LISTED_CLASSES]
    ]
    return lines if len(areas) <= LISTED_CLASSES else [*lines, f"  and {len(areas) - LISTED_CLASSES} more classes"]


def _check_outputs(file: Path, outputs: Mapping[str, Path], polygons: Path | None, rank: int) -> None:
    """Refuse files that cannot be written, or that are the same, before the model is loaded."""
    from ..rasters.polygons import needed_pyogrio
    from ..rasters.writing import needed_rasterio

    needed_rasterio()
    for option, path in outputs.items():
        if path.suffix.lower() not in GEOTIFF_ENDINGS:
            raise UserError(f"{option} {path} must end in .tif, because --output is a GeoTIFF file")
    every = {**outputs, **({} if polygons is None else {"--polygons": polygons})}
    if polygons is not None:
        needed_pyogrio()
        if polygons.suffix.lower() != ".gpkg":
            raise UserError(f"--polygons {polygons} must end in .gpkg")
    places = [os.path.realpath(path) for path in (*every.values(), file)]
    if len(set(places)) < len(places):
        raise UserError(f"{', '.join(every)} must be different files, and none of them the raster")
    for option, path in every.items() if rank == 0 else ():
        check_file(path, f"{option} {path}")


def _segmented(
    file: Path,
    name: str,
    outputs: Mapping[str, Path],
    options: RasterOptions,
    protocol_options: Sequence[Any],
    rank: int,
    device_of_process: str | None,
    has_polygons: bool,
) -> tuple[dict[int, int], Any] | None:
    """Segment a raster, and return the pixels of each class and the model's config; None in further processes."""
    from tqdm import tqdm

    from ..evaluation.subject import describe_model
    from ..image_processing import decision_of
    from ..inference.raster_segmentation import RasterJob, begin_pieces, join_pieces, write_pieces
    from ..models.optimize import optimize_if_ours

    world = int(os.environ.get("WORLD_SIZE", "1"))
    network, processor = load_model(name, options.device or device_of_process)
    protocol = inference_protocol(processor, *protocol_options)
    files = {_kind(option): path for option, path in outputs.items()}
    job = RasterJob(file, files, protocol, options.band_numbers(), options.value_type)

    def begin() -> list[slice]:
        if has_polygons and decision_of(network.config).multi_label:
            raise UserError("--polygons: classes of a multi-label model overlap, so there is no polygon of one class")
        subject = {"model": describe_model(network), "dtype": str(network.dtype), "device": network.device.type}
        pieces = begin_pieces(network, processor, job, options.resume, subject)
        _note_raster(job, network)
        return pieces

    pieces = _in_first_process(begin, rank, world)
    network = optimize_if_ours(network, inplace=True)  # after its description
    rows = sum(piece.stop - piece.start for piece in pieces)
    try:
        with tqdm(total=rows, unit="row", disable=None if rank == 0 else True) as bar:
            if options.workers > 1 and world == 1:
                _run_workers(job, name, options, pieces, bar)
            else:
                write_pieces(
                    network, processor, job, _share(pieces, rank, world), lambda count: bar.update(count * world)
                )
        if world > 1:
            from torch import distributed

            distributed.barrier()
        return (join_pieces(network, job), network.config) if rank == 0 else None
    except OSError as error:
        reason = write_failure(error) or _text(error)
        raise UserError(f"{reason}. The finished rows are kept in {job.log}: continue with --resume") from None


def _text(error: OSError) -> str:
    return str(error).rstrip(".") or type(error).__name__


def _kind(option: str) -> str:
    return "labels" if option == "--output" else option.removeprefix("--").replace("-", "_")


def _note_raster(job: "RasterJob", network: Any) -> None:
    """Say what a user may not expect of this raster and model."""
    from ..inference.raster_bands import raster_window
    from ..rasters import open_raster

    with open_raster(job.file) as raster:
        if raster.crs is None:
            note(f"{job.file} has no coordinate system, so the results have none either")
    config = network.config
    if job.protocol.window is None and (not hasattr(config, "sliding_window") or config.sliding_window() is None):
        window = raster_window(network, job.protocol)
        sides = " x ".join(map(str, window.size))
        note(f"the model runs whole images; the raster is run in windows of {sides} pixels (--window)")


def _in_first_process(make: Any, rank: int, world: int) -> Any:
    """Call `make` in the first process, and return its result, or raise its error, in every process."""
    found: list[Any] = [None]
    if rank == 0:
        try:
            found = [make()]
        except (UserError, ValueError, OSError) as error:
            found = [error]
    if world > 1:
        from torch import distributed

        distributed.broadcast_object_list(found)
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def _share(pieces: Sequence[slice], rank: int, world: int) -> list[slice]:
    """Return the pieces of one of several processes: a run of rows, in which few windows are computed twice."""
    return list(pieces[len(pieces) * rank // world : len(pieces) * (rank + 1) // world])


def _run_workers(job: "RasterJob", name: str, options: RasterOptions, pieces: Sequence[slice], bar: Any) -> None:
    """Segment pieces in several processes of this machine.

    Raises:
        UserError: if one of them failed. It has printed why.
    """
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    done = context.SimpleQueue()
    threads = max((os.cpu_count() or 1) // options.workers, 1)
    processes = [
        context.Process(
            target=_work,
            args=(job, name, options.device, _share(pieces, rank, options.workers), threads, done),
            daemon=True,  # ends with this process
        )
        for rank in range(options.workers)
    ]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        time.sleep(POLL_SECONDS)
        while not done.empty():
            bar.update(done.get())
        if any(process.exitcode for process in processes):
            break
    failed = [process for process in processes if process.exitcode]
    for process in processes if failed else ():
        process.terminate()
    if failed:
        raise UserError(f"a process failed. The finished rows are kept in {job.log}: continue with --resume")


def _work(job: "RasterJob", name: str, device: str | None, pieces: list[slice], threads: int, done: Any) -> None:
    """Segment pieces in a process of its own, which ends with status 1 and a line about an error."""
    import torch

    from ..inference.raster_segmentation import write_pieces

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads)
    try:
        network, processor = load_model(name, device, optimize=True)
        write_pieces(network, processor, job, pieces, done.put)
    except (UserError, ValueError, OSError, RuntimeError, MemoryError) as error:
        typer.echo(f"process: {one_line(write_failure(error) or str(error) or type(error).__name__)}", err=True)
        sys.exit(1)
