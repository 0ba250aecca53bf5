# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`segtransformers recipes`: list the training recipes of frozen trunks and of the published models."""

import json
from typing import Annotated

import typer

from ..training.recipes import Recipe, frozen_trunk_recipe_names, get_recipe, recipe_names
from .errors import ends_quietly_if_nobody_reads, one_line_errors


def recipes(
    name: Annotated[
        str | None, typer.Argument(help="Print this recipe as JSON, with all its fields.", show_default=False)
    ] = None,
) -> None:
    """List the training recipes, one line each: for a frozen trunk and any data, and of the published models."""
    if name is not None:
        with one_line_errors(ValueError):
            recipe = get_recipe(name)
        with ends_quietly_if_nobody_reads():
            typer.echo(json.dumps(recipe.to_dict(), indent=2))
        return
    with ends_quietly_if_nobody_reads():
        for known_name in (*frozen_trunk_recipe_names(), *recipe_names()):
            typer.echo(f"{known_name}  {_summary(get_recipe(known_name))}")


def _summary(recipe: Recipe) -> str:
    optimizer, height, width = recipe.optimizer, *recipe.crop_size
    parts = [
        recipe.dataset or "any data, frozen trunk",
        f"{optimizer.name} {optimizer.learning_rate:g}",
        f"{recipe.schedule.steps} steps of {recipe.batch_size} images {height}x{width}",
    ]
    if optimizer.layer_decay != 1:
        parts.append(f"layer decay {optimizer.layer_decay:g}")
    return ", ".join([*parts, f"drop path {recipe.drop_path_rate:g}"])
