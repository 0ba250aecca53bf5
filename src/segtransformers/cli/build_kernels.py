# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`segtransformers build-kernels`: the compiled operators, for this machine."""

import shutil
from pathlib import Path
from typing import Annotated

import torch
import typer

from ..operators import dispatcher
from ..operators.check import check_kernel
from .common import one_line_errors


def build_kernels(
    output: Annotated[
        Path | None, typer.Option(help="Folder to write build/ to; by default in your cache folder, where it is found.")
    ] = None,
    cuda: Annotated[
        bool | None,
        typer.Option(help="Compile CUDA code for all supported GPUs; by default for the GPU at hand, if there is one."),
    ] = None,
) -> None:
    """Compile the operators for this machine's torch: needs a C++ compiler (GCC or Clang), for a GPU also nvcc."""
    with one_line_errors(RuntimeError, OSError):
        script = dispatcher.build_script()
        target = (output or dispatcher.cache_folder()).resolve()
        folders = script.build(target, cuda=cuda)
        for folder in folders:
            typer.echo(f"built {folder}")
        try:
            functions = dispatcher.load_folder(target)
            for device in sorted(dispatcher.devices_of(functions)):
                if device != "cuda" or torch.cuda.is_available():
                    share = check_kernel(functions, device)
                    typer.echo(
                        f"checked on {device} against plain PyTorch: errors are {share:.0%} of what rounding may do"
                    )
        except Exception:  # or models would find it
            for folder in folders:
                shutil.rmtree(folder)
            typer.echo("removed what was built", err=True)
            raise
    dispatcher.reset()
    if output is None:
        typer.echo(dispatcher.describe())
    else:
        typer.echo(f"used where LOCAL_KERNELS={dispatcher.KERNEL_ID}={output.resolve()}")
