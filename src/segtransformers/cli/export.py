# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`segtransformers export`: a model as one file for other runtimes.

Heavy modules are imported inside functions, so that the help and mistyped options cost no time.
"""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..export.options import RUNTIME_FORMATS
from .common import check_file, load_model
from .errors import UserError, one_line_errors
from .image_files import find_images
from .output import document
from .output import result as print_result

if TYPE_CHECKING:
    from ..export import ExportOptions

CALIBRATION_IMAGES = 100


def export(
    output: Annotated[Path, typer.Option(help="File to write: .onnx, .xml for OpenVINO, or .pt2 for PyTorch.")],
    runtime: Annotated[
        str | None,
        typer.Option(
            help="onnxruntime, openvino, torch, or aot-inductor to compile for this kind of CPU; by default by the "
            "ending of the file."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="A folder, a Hub id, the name of a published model, or packaged."),
    ] = None,
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="HEIGHT WIDTH", help="Size of the images in pixels; by default the model's window."),
    ] = None,
    dynamic_batch: Annotated[bool, typer.Option("--dynamic-batch", help="Any number of images at once.")] = False,
    dynamic_size: Annotated[
        bool, typer.Option("--dynamic-size", help="Any height and width that are multiples of 32.")
    ] = False,
    precision: Annotated[
        str, typer.Option(help="float32, float16, bfloat16, float16-weights (half the file), or int8.")
    ] = "float32",
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help=f"For int8: a folder of images, of which {CALIBRATION_IMAGES} are used."),
    ] = None,
    takes_pixels: Annotated[
        bool, typer.Option("--takes-pixels", help="Take 8-bit images (batch, height, width, 3); normalise in the file.")
    ] = False,
    result: Annotated[str, typer.Option(help="logits, or labels for 8-bit label maps.")] = "logits",
    opset: Annotated[
        int | None, typer.Option(help="Version of the ONNX operators, from 17 on; by default PyTorch's choice.")
    ] = None,
    sampling: Annotated[
        str | None,
        typer.Option(help="How deformable layers sample: gather, or grid_sample for the operator GridSample."),
    ] = None,
    check: Annotated[bool, typer.Option(help="Run the file, compare it with the model, and measure its time.")] = True,
) -> None:
    """Write a model as one file for other runtimes, and check that it computes the same.

    Without --model, the packaged model is written, which knows drawn scenes only. The file takes whole images, for a
    model that runs in windows one window. It holds mean, deviation and class names. The commands segment, evaluate and
    demo take such a file as --model.
    """
    from ..export import ExportError, ExportOptions, export_model, export_size
    from ..export.options import files_of

    with one_line_errors(ValueError, ImportError, ExportError):
        output = _with_ending(output, runtime)
        check_file(output, f"--output {output}")
        options = ExportOptions(
            dynamic_batch=dynamic_batch,
            dynamic_size=dynamic_size,
            opset=opset,
            sampling=sampling,
            precision=precision,
            calibration=_calibration_images(calibration),
            takes_pixels=takes_pixels,
            result=result,
            compiled=runtime == "aot-inductor",
        )
        options.check_format(output.suffix)
        network, processor = load_model(model or "packaged", "cpu")
        chosen = size or export_size(network, processor)
        runs = check and (output.suffix != ".onnx" or importlib.util.find_spec("onnxruntime") is not None)
        try:
            error = export_model(network, processor, output, size=chosen, check=runs, **vars(options))
        except OSError as failure:
            raise UserError(f"cannot write {output}: {failure.strerror or failure}") from None
        batch = "any number of images" if dynamic_batch else "one image"
        sides = "any multiples of 32" if dynamic_size else f"{chosen[0]}x{chosen[1]}"
        megabytes = sum(path.stat().st_size for path in files_of(output)) / 1e6
        print_result(f"{output}: {batch} of {sides} pixels (height x width), {precision}, {megabytes:.1f} MB")
        times: dict[str, float] = {}
        if error is not None:
            kind = "share of pixels with another label" if result == "labels" else "largest difference of logits"
            ending = "" if result == "labels" else ", as a share of the largest"
            print_result(f"checked: {kind} {error:.0e}{ending}")
            times = _print_times(output, options, chosen)
        elif check:
            print_result("not checked: onnxruntime is not installed")
        files = files_of(output)
        document(
            {
                "files": [str(path) for path in files],
                "bytes": sum(path.stat().st_size for path in files),
                "size": None if dynamic_size else list(chosen),
                "precision": precision,
                "error": None if error is None else float(error),
                "seconds_per_image": times,
            }
        )


def _with_ending(output: Path, runtime: str | None) -> Path:
    """Return the file to write, with the ending of the runtime if it has none."""
    if runtime is None:
        return output
    if runtime not in RUNTIME_FORMATS:
        raise UserError(f"--runtime must be one of {', '.join(RUNTIME_FORMATS)}, got {runtime}")
    ending = RUNTIME_FORMATS[runtime]
    if output.suffix not in ("", ending):
        raise UserError(f"--runtime {runtime} writes files that end in {ending}, got --output {output}")
    return output.with_suffix(ending)


def _calibration_images(folder: Path | None) -> list[Path]:
    """Return images of a folder, evenly spread over its list."""
    if folder is None:
        return []
    if not folder.is_dir():
        raise UserError(f"--calibration {folder} must be a folder of images")
    found = [path for path, _ in find_images([folder], [])]
    step = max(len(found) / CALIBRATION_IMAGES, 1)
    return [found[int(index * step)] for index in range(min(len(found), CALIBRATION_IMAGES))]


def _print_times(output: Path, options: "ExportOptions", size: tuple[int, int]) -> dict[str, float]:
    """Print and return the seconds that an image takes in each installed runtime.

    A runtime that refuses the file gets a line, too.
    """
    import numpy as np

    from ..export import ExportError, read_description
    from ..export.running import installed_runtimes, runner, seconds_per_image

    channels = len(read_description(output)["mean"])
    generator = np.random.default_rng(0)
    images: np.ndarray
    if options.takes_pixels:
        images = generator.integers(0, 256, (1, *size, channels), dtype=np.uint8)
    else:
        images = generator.standard_normal((1, channels, *size), dtype=np.float32)
    times: dict[str, float] = {}
    for runtime in installed_runtimes(output):
        name = "AOTInductor" if options.compiled else runtime
        try:
            times[name] = seconds_per_image(runner(output, runtime), images)
            print_result(f"{name}: {1000 * times[name]:.0f} ms for an image")
        except ExportError as error:
            print_result(f"{name}: {error}")
    return times
