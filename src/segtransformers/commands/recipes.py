# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`segtransformers recipes`: how the published models were trained."""

import typer

from ..training.recipes import Recipe, get_recipe, recipe_names


def recipes() -> None:
    """List the training recipes of the published models, one line each."""
    for name in recipe_names():
        typer.echo(f"{name}  {_described(get_recipe(name))}")


def _described(recipe: Recipe) -> str:
    optimizer, height, width = recipe.optimizer, *recipe.crop_size
    parts = [
        recipe.dataset,
        f"{optimizer.name} {optimizer.learning_rate:g}",
        f"{recipe.schedule.steps} steps of {recipe.batch_size} images {height}x{width}",
    ]
    if optimizer.layer_decay != 1:
        parts.append(f"layer decay {optimizer.layer_decay:g}")
    return ", ".join([*parts, f"drop path {recipe.drop_path_rate:g}"])
