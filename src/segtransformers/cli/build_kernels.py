# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`segtransformers build-kernels`: compile the operators for this machine."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from .errors import one_line_errors


def build_kernels(
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder in which build/ is written; by default a folder of your cache, where models find it."
        ),
    ] = None,
    cuda: Annotated[
        bool | None,
        typer.Option(help="Compile CUDA code for all supported GPUs; by default for the GPU of this machine, if any."),
    ] = None,
) -> None:
    """Compile the operators for this machine's torch. This needs a C++ compiler (GCC or Clang), and nvcc for a GPU."""
    import torch

    from ..operators import dispatcher
    from ..operators.check import check_kernel

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
                        f"checked on {device} against plain PyTorch: the error is {share:.0%} of the allowed error"
                    )
        except Exception:
            for folder in folders:  # else models would use the faulty kernel
                shutil.rmtree(folder)
            typer.echo("the build was removed", err=True)
            raise
    dispatcher.reset()
    if output is None:
        typer.echo(dispatcher.describe())
    else:
        typer.echo(f"to use it, set LOCAL_KERNELS={dispatcher.KERNEL_ID}={output.resolve()}")
