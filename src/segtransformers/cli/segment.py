# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`segtransformers segment`: images with their classes drawn over them, label maps, and label maps in colours.

Heavy modules are imported inside functions, so that the help and mistyped options cost no time.
"""

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..escaping import printable
from ..files import check_readable
from ..freed_memory import keep_freed_memory
from ..model_names import SMALL_MODEL, full_model_name, model_folder
from ..packaged import example_image_path
from .common import (
    BlendOption,
    DeviceOption,
    FlipOption,
    MarginOption,
    MultiScaleOption,
    PrecisionOption,
    ScalesOption,
    StrideOption,
    WindowOption,
    check_folder,
    inference_protocol,
    load_model,
)
from .errors import UserError, error_line, note, one_line_errors
from .image_files import file_extensions, find_images, result_names
from .output import document, message
from .processes import from_all_processes, in_first_process, number_of_processes, process_group
from .segment_images import MEASURES, Task, log_file, remove_log, segment_images, unfinished_tasks
from .segment_raster import (
    BandsOption,
    GeotiffOption,
    PolygonsOption,
    ProbabilitiesOption,
    RasterOptions,
    ResumeOption,
    ValueTypeOption,
    WorkersOption,
    is_raster_command,
    segment_rasters,
    share_of,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..inference import InferenceProtocol

DEFAULT_OUTPUT = Path("segmentation.png")


def segment(
    images: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[IMAGE]...", help="Images, or folders, which are searched with their sub-folders."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="A folder, a Hub id, the name of a published model, or packaged."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="File for the image with its classes and a legend; a folder for several images. By default "
            "segmentation.png, unless --label-maps or --colour-maps is given."
        ),
    ] = None,
    label_maps: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for label maps: grey PNG files that hold the class index of each pixel, or for a multi-label "
            "model a bit for each class.",
        ),
    ] = None,
    colour_maps: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for label maps in the colours of the classes, as PNG files."),
    ] = None,
    confidence: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Folder for the probability of each pixel's class, as grey PNG files (255 is 1); for a raster, a "
            "GeoTIFF file, or a folder of them with --geotiff.",
        ),
    ] = None,
    entropy: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The same for the entropy of the classes, from 0 to 1.")
    ] = None,
    probability_margin: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="The same for the difference of the two largest probabilities."),
    ] = None,
    probabilities: ProbabilitiesOption = None,
    probability_type: ValueTypeOption = "uint8",
    polygons: PolygonsOption = None,
    bands: BandsOption = None,
    geotiff: GeotiffOption = False,
    resume: ResumeOption = False,
    workers: WorkersOption = 1,
    device: DeviceOption = None,
    precision: PrecisionOption = "fp32",
    multi_scale: MultiScaleOption = False,
    scales: ScalesOption = None,
    flip: FlipOption = False,
    window: WindowOption = None,
    stride: StrideOption = None,
    blend: BlendOption = None,
    margin: MarginOption = None,
) -> None:
    """Draw the predicted classes over images, with a legend, and print the share of each class.

    Without images, the packaged example scene is segmented, with the packaged model, which knows drawn scenes only.
    Without --model, photos are segmented with a small published model of ADE20K's 150 classes, which is downloaded at
    the first use. Images may be huge: a model that runs in windows segments them in bands of rows.

    Files are named after the images, in the same sub-folders; equal names get a number. Label maps have 8 bits, or 16
    bits for models of more than 256 classes. Existing files are replaced.

    A raster (TIFF, JPEG 2000 or NumPy file) with an --output that ends in .tif becomes a GeoTIFF file of class indices.
    It is run in windows at its own resolution, and may be larger than the memory. With --geotiff, several rasters, or
    folders of them, become files of the same names in the folder --output. Under torchrun or accelerate launch the rows
    are divided among the processes.
    """
    keep_freed_memory()
    measures = dict(zip(MEASURES, (confidence, entropy, probability_margin), strict=True))
    is_single_raster = bool(images) and is_raster_command(images or [], output)
    if geotiff or is_single_raster:
        rasters = images or []
        results = {"--output": output, **measures, "--probabilities": probabilities, "--polygons": polygons}
        with one_line_errors():
            if label_maps is not None or colour_maps is not None:
                raise UserError("--label-maps and --colour-maps are for images: --output is the label map of a raster")
            if output is None or not rasters:
                raise UserError("--geotiff needs rasters, and a folder for the GeoTIFF files, --output")
            is_single = is_single_raster or (
                len(rasters) == 1 and not rasters[0].is_dir() and output.suffix.lower() in (".tif", ".tiff")
            )
        segment_rasters(
            rasters,
            is_single,
            model,
            results,
            RasterOptions(bands, probability_type, resume, workers, device, precision),
            (multi_scale, scales, flip, window, stride, blend, margin),
        )
        return
    with process_group() as (rank, device_of_process), one_line_errors(ValueError):
        if probabilities is not None or polygons is not None or bands is not None or workers > 1:
            raise UserError(
                "--probabilities, --polygons, --bands and --workers need one raster, and an --output that ends in "
                ".tif, or --geotiff and a folder as --output"
            )
        if output is None and label_maps is None and colour_maps is None and not any(measures.values()):
            output = DEFAULT_OUTPUT
        options = {"--output": output, "--label-maps": label_maps, "--colour-maps": colour_maps, **measures}
        folders = {option: folder for option, folder in options.items() if folder is not None}
        found = find_images(images or [example_image_path()], list(folders.values()))
        single = not images or (len(images) == 1 and not images[0].is_dir())
        if single and resume:
            raise UserError("--resume needs several images or a folder")
        targets = _targets(found, folders, single)
        # nothing is downloaded for images that do not exist
        has_photos = bool(images) and any(os.path.isfile(path) for path, _ in found)
        name = model or _default_model(has_photos)
        network, processor = load_model(name, device or device_of_process, optimize=True, precision=precision)
        protocol = inference_protocol(processor, multi_scale, scales, flip, window, stride, blend, margin)
        protocol.sliding_window(network)  # a margin that does not fit the windows of the model is an error
        _check_kinds_of_results(network.config, folders)
        tasks: list[Task] = [(path, files) for (path, _), files in zip(found, targets, strict=True)]
        log = None if single else log_file(tasks)
        if log is not None:
            subject = {**_subject(network, processor, protocol), "options": sorted(folders)}
            tasks = in_first_process(lambda: unfinished_tasks(tasks, log, subject, resume))
        if rank == 0:
            if len(tasks) < len(found):
                message(f"{len(found) - len(tasks)} of {len(found)} images have results already")
            _note_replaced([files for _, files in tasks])  # not before an error that leaves them as they are
            message(f"model: {printable(full_model_name(name), None)}, {network.config.num_labels} classes")
        own = share_of(tasks, rank, number_of_processes())
        done, failures = segment_images(network, processor, own, protocol, shown=rank == 0 and len(tasks) > 1)
        done, failures = from_all_processes(done), from_all_processes(failures)
        if rank == 0:
            document({"model": full_model_name(name), "images": done, "failed": failures})
            if log is not None:
                remove_log(log)
            if failures and len(found) > 1:
                error_line(f"{len(failures)} of {len(found)} images failed")
    if failures:
        raise typer.Exit(1)


def _subject(network: "PreTrainedModel", processor: Any, protocol: "InferenceProtocol") -> dict[str, Any]:
    """Describe all but the images that results depend on."""
    from ..evaluation.subject import describe_model, describe_protocol

    return {"model": describe_model(network), "protocol": describe_protocol(network, processor, protocol)}


def _check_kinds_of_results(config: Any, folders: Collection[str]) -> None:
    """Raise an error for label maps and grey images that cannot hold the classes of a multi-label model."""
    from ..visualization import check_bit_planes

    if not getattr(config, "is_multi_label", False):
        return
    if "--label-maps" in folders:
        check_bit_planes(config.num_labels)
    for option in MEASURES:
        if option in folders:
            raise UserError(
                f"{option}: a multi-label model has one for each class, which a grey image cannot hold; the results of "
                "a raster can"
            )


def _default_model(has_photos: bool) -> str:
    """Return the model for photos, or "packaged" for the example scene and if no download is possible."""
    from ..conversion.errors import ConversionError

    if not has_photos:
        return "packaged"
    try:
        model_folder(SMALL_MODEL)
    except ConversionError as error:
        note(
            f"{error}. The packaged model is used instead: it knows drawn scenes only, so its classes mean nothing on "
            f"photos. For photos: --model {SMALL_MODEL}"
        )
        return "packaged"
    return SMALL_MODEL


def _targets(found: Sequence[tuple[Path, Path]], folders: dict[str, Path], single: bool) -> list[dict[str, Path]]:
    """Return the files to write for each image, by option.

    Raises:
        UserError: if a file cannot be written, or would replace an image. Nothing is written yet.
    """
    writable = file_extensions("SAVE")
    names = result_names([relative for _, relative in found])
    targets: list[dict[str, Path]] = [{} for _ in found]
    for option, folder in folders.items():
        is_file = option == "--output" and single and not folder.is_dir()
        if is_file and folder.suffix.lower() not in writable:
            raise UserError(f"--output {folder} must end like an image, for example in .png")
        if not is_file and (folder.exists() or folder.suffix.lower() in writable) and not folder.is_dir():
            several = ", because there are several images" if option == "--output" else ""
            raise UserError(f"{option} {folder} must be a folder{several}")
        check_folder(folder.parent if is_file else folder, f"{option} {folder}")
        for files, name in zip(targets, names, strict=True):
            files[option] = folder if is_file else folder / name
    written = [target for files in targets for target in files.values()]
    inputs = {os.path.realpath(path) for path, _ in found}  # unlike `Path.resolve`, it takes links to themselves
    resolved = [os.path.realpath(target) for target in written]
    for target, place in zip(written, resolved, strict=True):
        check_readable(target)  # a pipe or device would be replaced
        if place in inputs:
            raise UserError(f"{target} would overwrite one of the images: choose another folder for the results")
    if len(set(resolved)) < len(resolved):
        raise UserError(f"{' and '.join(folders)} need different folders")
    return targets


def _note_replaced(targets: Sequence[dict[str, Path]]) -> None:
    """Say which files will be replaced."""
    replaced = [target for files in targets for target in files.values() if target.exists()]
    if replaced:
        more = f" and {len(replaced) - 1} more files" if len(replaced) > 1 else ""
        note(f"{replaced[0]}{more} will be replaced")
