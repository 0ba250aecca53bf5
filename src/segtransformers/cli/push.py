# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`segtransformers push`: push a converted or fine-tuned folder, with its model card, to the Hub."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import check_input_file
from .errors import UserError, one_line_errors
from .output import document, result


def push(
    folder: Annotated[Path, typer.Argument(help="A folder that save_pretrained or a conversion wrote.")],
    repository: Annotated[
        str, typer.Argument(metavar="REPO", help="A repository on the Hub; it is created if it does not exist.")
    ],
    measured: Annotated[
        list[Path] | None, typer.Option(metavar="JSON", help="Results of `segtransformers evaluate`, for the card.")
    ] = None,
    license: Annotated[str | None, typer.Option(help="Licence of the weights, by the Hub's name for it.")] = None,
    base_model: Annotated[
        str | None, typer.Option(metavar="REPO", help="The model on the Hub from which this model was made.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open a pull request in the repository instead of changing it.")
    ] = False,
) -> None:
    """Push a folder to the Hub in one commit. This needs `hf auth login` or HF_TOKEN.

    A model card is written if the folder has none, or if its card is still as the conversion wrote it. --measured,
    --license and --base-model always replace the card.
    """
    from ..hub.model_card import has_generated_card, write_model_card
    from ..hub.publishing import check_destination, check_pushable, push_folder

    with one_line_errors(ValueError, OSError):
        check_pushable(folder)
        results = [_read_results(path) for path in measured or []]
        destination = check_destination(repository, private, create_pr)
        replaces_card = bool(results or license or base_model)
        if replaces_card or not (folder / "README.md").is_file() or has_generated_card(folder):
            write_model_card(
                folder,
                repo_id=destination.repo_id,
                license=license,
                base_model=base_model,
                measured=results,
            )
        address = push_folder(folder, destination.repo_id, private, create_pr)
        result(f"pushed to {address}")
        document({"repository": destination.repo_id, "address": str(address)})


def _read_results(path: Path) -> dict[str, Any]:
    check_input_file(path, f"--measured {path}")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} holds no results: {error}") from None
    if not isinstance(results, dict):
        raise UserError(f"{path} holds no results: it must be a file that `segtransformers evaluate` wrote")
    return results
