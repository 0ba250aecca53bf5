# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`segtransformers convert`: the conversion scripts, where there is no clone of the repository."""

from typing import Annotated

import typer

from ..conversion.cli import BACKBONES, main
from .common import UserError, one_line_errors


def convert(
    context: typer.Context,
    family: Annotated[str, typer.Argument(metavar="|".join(BACKBONES), help="Which models.")] = "",
) -> None:
    """Convert an original checkpoint; `segtransformers convert vit_adapter --help` tells the options and the rows."""
    with one_line_errors():
        if family not in BACKBONES:
            raise UserError(
                f"say first of which family the checkpoint is, as in `segtransformers convert vit_adapter --checkpoint "
                f"FILE --output DIR`: {', '.join(BACKBONES)}"
            )
    raise typer.Exit(main(family, context.args, f"segtransformers convert {family}"))
