# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`segtransformers export`: a model as one file for other runtimes.

Heavy modules are imported inside functions, so that the help and mistyped options cost no time.
"""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from .common import check_file, load_model
from .errors import UserError, one_line_errors


def export(
    output: Annotated[Path, typer.Option(help="File to write: .onnx, or .pt2 for torch.export.")],
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="A folder, a Hub id, the name of a published model, or packaged."),
    ] = None,
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="HEIGHT WIDTH", help="Size of the images in pixels; by default the model's window."),
    ] = None,
    dynamic_batch: Annotated[bool, typer.Option("--dynamic-batch", help="Any number of images at once.")] = False,
    opset: Annotated[
        int | None, typer.Option(help="Version of the ONNX operators; by default PyTorch's choice.")
    ] = None,
    sampling: Annotated[
        str | None,
        typer.Option(help="How deformable layers sample: gather, or grid_sample for the operator GridSample."),
    ] = None,
    check: Annotated[bool, typer.Option(help="Run the file and compare it with the model.")] = True,
) -> None:
    """Write a model as one ONNX file or torch.export program, and check that it computes the same.

    Without --model, the packaged model is written, which knows drawn scenes only. The file takes whole images of one
    size, for a model that runs in windows one window. It holds mean, deviation and class names.
    """
    from ..export import ExportError, export_model, export_size

    with one_line_errors(ValueError, ImportError, ExportError):
        check_file(output, f"--output {output}")
        network, processor = load_model(model or "packaged", "cpu")
        chosen = size or export_size(network, processor)
        runs = check and (output.suffix != ".onnx" or importlib.util.find_spec("onnxruntime") is not None)
        try:
            error = export_model(
                network,
                processor,
                output,
                size=chosen,
                dynamic_batch=dynamic_batch,
                opset=opset,
                sampling=sampling,
                check=runs,
            )
        except OSError as failure:
            raise UserError(f"cannot write {output}: {failure.strerror or failure}") from None
    batch = "any number of images" if dynamic_batch else "one image"
    typer.echo(f"{output}: {batch} of {chosen[0]}x{chosen[1]} pixels (height x width)")
    if error is not None:
        typer.echo(f"checked: logits within {error:.0e} of the model's, as a share of the largest")
    elif check:
        typer.echo("not checked: onnxruntime is not installed")
