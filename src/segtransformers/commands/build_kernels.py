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
) -> None:
    """Compile the operators for this machine's torch: needs a C++ compiler (GCC or Clang), no network."""
    with one_line_errors(RuntimeError, OSError):
        script = hub.build_script()
        folders = script.build((output or hub.cache_folder()).resolve())
    for folder in folders:
        typer.echo(f"built {folder}")
    hub.forget()
    if output is None:
        typer.echo(hub.describe())
    else:
        typer.echo(f"used where LOCAL_KERNELS={hub.KERNEL_ID}={output.resolve()}")
