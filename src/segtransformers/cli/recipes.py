# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`segtransformers recipes`: list the training recipes in groups, beginning with those for any data."""

import json
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from ..training.recipes import (
    Recipe,
    frozen_trunk_recipe_names,
    get_recipe,
    recipe_names,
    small_model_recipe_names,
)
from .errors import ends_quietly_if_nobody_reads, one_line_errors
from .output import document, result

START = """Start here: `segtransformers train --data DIR --output DIR` chooses among the recipes for any data.
`segtransformers recipes NAME` prints all settings of a recipe, and `train --recipe NAME` trains by it."""
FAMILY_TITLES = {
    "vit_adapter": "ViT-Adapter",
    "vit_comer": "ViT-CoMer",
    "internimage": "InternImage",
    "flash_internimage": "FlashInternImage",
    "segmenter": "Segmenter",
    "mmseg_zoo": "MMSegmentation's own models",
    "dinov2": "DINOv2's heads",
    "dinov3": "DINOv3's heads",
    "eva01": "EVA",
    "eva02": "EVA-02",
    "one_peace": "ONE-PEACE",
}


def recipes(
    name: Annotated[
        str | None, typer.Argument(help="Print this recipe as JSON, with all its fields.", show_default=False)
    ] = None,
) -> None:
    """List the training recipes, one line each, in groups: for any data, and of the published models."""
    if name is not None:
        with one_line_errors(ValueError):
            recipe = get_recipe(name)
        with ends_quietly_if_nobody_reads():
            result(json.dumps(recipe.to_dict(), indent=2))
            document(recipe.to_dict())
        return
    with ends_quietly_if_nobody_reads():
        listed = []
        result(START)
        for title, names in _groups():
            result(f"\n{title}:")
            for known_name in names:
                recipe = get_recipe(known_name)
                result(f"{known_name}  {_summary(recipe)}")
                listed.append(
                    {"name": known_name, "group": title, "dataset": recipe.dataset, "summary": _summary(recipe)}
                )
        document(listed)


def _groups() -> Iterator[tuple[str, Sequence[str]]]:
    """Yield the title of each group with the names of its recipes."""
    yield "For any data, on a frozen pre-trained ViT (--model vit_base_patch14_dinov2)", frozen_trunk_recipe_names()
    yield "For any data, a small model for a CPU (--model packaged)", small_model_recipe_names()
    published = recipe_names()
    families = list(dict.fromkeys(get_recipe(name).family for name in published))
    known = [family for family in FAMILY_TITLES if family in families]
    for family in [*known, *(family for family in families if family not in known)]:
        names = [name for name in published if get_recipe(name).family == family]
        yield f"Of published models, {FAMILY_TITLES.get(family, family)}", names


def _summary(recipe: Recipe) -> str:
    optimizer, height, width = recipe.optimizer, *recipe.crop_size
    parts = [
        recipe.dataset or ("any data, frozen trunk" if recipe.freeze_trunk else "any data"),
        f"{optimizer.name} {optimizer.learning_rate:g}",
        f"{recipe.schedule.steps} steps of {recipe.batch_size} images {height}x{width}",
    ]
    if optimizer.layer_decay != 1:
        parts.append(f"layer decay {optimizer.layer_decay:g}")
    return ", ".join([*parts, f"drop path {recipe.drop_path_rate:g}"])
