# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`segtransformers push`: a converted or fine-tuned folder, with its model card, to the Hub."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..hub.model_card import has_generated_card, write_model_card
from ..hub.publishing import check_destination, check_pushable, push_folder
from .common import UserError, one_line_errors


def push(
    folder: Annotated[Path, typer.Argument(help="What save_pretrained or a conversion wrote.")],
    repository: Annotated[str, typer.Argument(metavar="REPO", help="A name on the Hub; created if it is not there.")],
    measured: Annotated[
        list[Path] | None, typer.Option(metavar="JSON", help="Results of `segtransformers evaluate`, for the card.")
    ] = None,
    license: Annotated[str | None, typer.Option(help="Of the weights, as the Hub calls licences.")] = None,
    base_model: Annotated[
        str | None, typer.Option(metavar="REPO", help="The model on the Hub that this one was made from.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Nobody else shall see the repository.")] = False,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open a pull request in it, change nothing yourself.")
    ] = False,
) -> None:
    """Push a folder to the Hub in one commit; needs `hf auth login` or HF_TOKEN.

    The model card is written where there is none, or where it is as the conversion wrote it. It is written anew with
    --measured, --license or --base-model.
    """
    with one_line_errors(ValueError, OSError):
        check_pushable(folder)
        results = [_read(path) for path in measured or []]
        destination = check_destination(repository, private, create_pr)
        anew = bool(results or license or base_model)
        if anew or not (folder / "README.md").is_file() or has_generated_card(folder):
            write_model_card(
                folder,
                repo_id=destination.repo_id,
                license=license,
                base_model=base_model,
                measured=results,
            )
        typer.echo(f"pushed to {push_folder(folder, destination.repo_id, private, create_pr)}")


def _read(path: Path) -> dict[str, Any]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} holds no results: {error}") from None
    if not isinstance(results, dict):
        raise UserError(f"{path} holds no results: it must be what `segtransformers evaluate` wrote")
    return results
