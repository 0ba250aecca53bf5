# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`segtransformers push-kernels`: push the compiled operators to the Hub."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from .errors import one_line_errors


def push_kernels(
    repository: Annotated[
        str, typer.Argument(metavar="REPO", help="A kernel repository on the Hub; it is created if it does not exist.")
    ],
    build: Annotated[
        Path | None,
        typer.Option(help="Folder with build/ of a portable build (build.py --portable); by default one is made."),
    ] = None,
    cuda: Annotated[
        bool | None, typer.Option(help="Compile CUDA code; by default if nvcc and a C++ compiler are found.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
) -> None:
    """Push the operators, compiled for many machines, to the Hub. This needs `hf auth login` or HF_TOKEN.

    Compiling needs `pip install ziglang`. The operators go into a branch of the repository for their version.
    """
    from ..hub import kernel_publishing
    from ..hub.publishing import check_destination
    from ..operators import dispatcher
    from ..operators.check import check_kernel

    with one_line_errors(ValueError, RuntimeError, OSError), tempfile.TemporaryDirectory() as temporary:
        check_destination(repository, private, repo_type="kernel")  # before the minutes of compilation
        script = dispatcher.build_script()
        if build is None:
            build = Path(temporary)
            script.build(build, cuda=cuda, portable="hub")
        kernel_publishing.check_build(build)
        share = check_kernel(dispatcher.load_folder(build), "cpu")
        typer.echo(f"checked on cpu against plain PyTorch: the error is {share:.0%} of the allowed error")
        sources = dispatcher.sources()
        assert sources is not None  # build_script has read its build.py
        pushed = kernel_publishing.push_kernels(build, sources, repository, private)
    name = pushed.partition("@")[0]
    typer.echo(f"pushed {pushed}")
    typer.echo(f"to use it, set SEGTRANSFORMERS_KERNELS_REPO={name}@{dispatcher.VERSION}, or to this commit: {pushed}")
