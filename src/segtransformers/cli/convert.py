# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`segtransformers convert`: the conversion scripts, without a clone of the repository."""

from typing import Annotated

import typer

from ..conversion.cli import main
from ..published import FAMILIES
from .errors import UserError, one_line_errors


def convert(
    context: typer.Context,
    family: Annotated[str, typer.Argument(metavar="|".join(FAMILIES), help="The family of the checkpoint.")] = "",
) -> None:
    """Convert an original checkpoint into a folder that from_pretrained loads.

    `segtransformers convert vit_adapter --help` lists the options and the published checkpoints of a family.
    """
    if family in ("-h", "--help"):  # all options are arguments here, because most belong to the conversion script
        typer.echo(context.get_help())
        raise typer.Exit
    with one_line_errors():
        if family not in FAMILIES:
            wrong = f"{family} is no family of checkpoints: " if family and not family.startswith("-") else ""
            raise UserError(
                f"{wrong}name the family first, as in `segtransformers convert vit_adapter --checkpoint FILE --output "
                f"DIR`: {', '.join(FAMILIES)}"
            )
    raise typer.Exit(main(family, context.args, f"segtransformers convert {family}"))
