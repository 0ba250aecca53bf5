# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`segtransformers build-kernels`: the compiled operators, for this machine."""

from pathlib import Path
from typing import Annotated

import typer

from ..operators import hub
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
        script = hub.build_script()
        folders = script.build((output or hub.cache_folder()).resolve(), cuda=cuda)
    for folder in folders:
        typer.echo(f"built {folder}")
    hub.forget()
    if output is None:
        typer.echo(hub.describe())
    else:
        typer.echo(f"used where LOCAL_KERNELS={hub.KERNEL_ID}={output.resolve()}")
