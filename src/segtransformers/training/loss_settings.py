# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Losses and class weights of a recipe, applied to a model."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedModel

from ..datasets.class_counts import ClassCounts
from ..models.losses import LOSSES, build_losses
from .class_weights import check_formula, positive_weights_from_counts, weights_from_counts
from .recipes import Recipe


def apply_losses(
    model: PreTrainedModel | Any, recipe: Recipe, counts: Callable[[], ClassCounts] | None = None
) -> list[float] | None:
    """Give a model the losses and class weights of a recipe. They are saved in its config.

    A model keeps its own losses where the recipe has none.

    Args:
        counts: returns the pixels of each class in the training data. It is called only for the name of a formula.

    Returns:
        the class weights, or None if the recipe has none. In a binary model the object's weight over the background's
        is the positive weight of the cross entropy; in a multi-label model each class has its positive weight.

    Raises:
        ValueError: if the model has another kind of loss, or a loss or the weights do not fit it.
    """
    if recipe.losses is None and recipe.auxiliary_losses is None and recipe.class_weights is None:
        return None
    network: Any = model
    config, weights = network.config, None
    if isinstance(recipe.class_weights, str):
        if counts is None:
            raise ValueError(f"class_weights {recipe.class_weights!r} needs the counts of the training data")
        of_counts = positive_weights_from_counts if config.is_multi_label else weights_from_counts
        weights = of_counts(counts(), recipe.class_weights)
    elif recipe.class_weights is not None:
        weights = list(recipe.class_weights)
    if hasattr(config, "label_weights"):
        if recipe.losses is not None or recipe.auxiliary_losses is not None:
            raise ValueError(
                f"{type(model).__name__} has its own losses for masks: leave out the losses; class_weights work"
            )
        config.label_weights = weights
        config.validate_head()
        return weights
    if not hasattr(network, "set_losses"):
        raise ValueError(f"the loss of {type(model).__name__} cannot be changed: leave out losses and class_weights")
    losses = recipe.losses if recipe.losses is not None else config.losses
    auxiliary = recipe.auxiliary_losses if recipe.auxiliary_losses is not None else config.auxiliary_losses
    if weights is not None and (config.is_binary or config.is_multi_label):
        positive = weights if config.is_multi_label else [_object_weight(weights)]
        losses = _with_positive_weights(losses or ["binary_cross_entropy"], positive)
        network.set_losses(losses, None if auxiliary is None else _with_positive_weights(auxiliary, positive))
        return weights
    if losses is None and weights is not None:
        losses = ["cross_entropy"]  # averaged over the weights, so that they do not change the scale of the loss
    network.set_losses(*(_weighted(part, weights) for part in (losses, auxiliary)))
    return weights


def check_recipe_losses(recipe: Recipe) -> None:
    """Check the losses and class weights of a recipe before data are read.

    Raises:
        ValueError: naming the unknown loss, setting or formula.
    """
    for losses in (recipe.losses, recipe.auxiliary_losses):
        if losses is not None:
            build_losses(losses)
    if isinstance(recipe.class_weights, str):
        check_formula(recipe.class_weights)


def recipe_with_losses(recipe: Recipe, losses: str | None, class_weights: str | None) -> Recipe:
    """Return a recipe with the losses and class weights of a command line.

    Args:
        losses: names with optional weights, such as "cross_entropy,dice:3".
        class_weights: the name of a formula, or numbers separated by commas.

    Raises:
        ValueError: naming what is not valid.
    """
    changes: dict[str, Any] = {}
    if losses is not None:
        changes["losses"] = changes["auxiliary_losses"] = tuple(_parsed(part) for part in losses.split(","))
    if class_weights is not None:
        numbers = [_number(part) for part in class_weights.split(",")]
        is_list = all(number is not None for number in numbers)
        changes["class_weights"] = tuple(numbers) if is_list else class_weights.strip()
    recipe = dataclasses.replace(recipe, **changes)
    check_recipe_losses(recipe)
    return recipe


def _parsed(text: str) -> dict[str, Any]:
    name, _, weight = text.strip().partition(":")
    number = _number(weight)
    if weight and number is None:
        raise ValueError(f"{text.strip()!r} is not a loss with a weight, such as dice:3")
    return {"name": name} if number is None else {"name": name, "weight": number}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _weighted(losses: Sequence[Any] | None, weights: Sequence[float] | None) -> list[dict[str, Any]] | None:
    """Return losses with class weights in those that take them and have none."""
    if losses is None:
        return None
    settings = [loss.to_dict() for loss in build_losses(losses)]
    if weights is None:
        return settings
    takes = {name: {field.name for field in dataclasses.fields(kind)} for name, kind in LOSSES.items()}
    return [
        {**loss, "class_weights": list(weights)}
        if "class_weights" in takes[loss["name"]]
        and loss.get("definition") != "mmseg1"
        and not loss.get("class_weights")
        else loss
        for loss in settings
    ]


def _object_weight(weights: Sequence[float]) -> float:
    """Return the weight of the object over that of the background.

    Raises:
        ValueError: if there are not two positive weights.
    """
    if len(weights) != 2 or not all(weights):
        raise ValueError(
            f"class_weights of a binary model must be two numbers above 0, background first, got {list(weights)}"
        )
    return weights[1] / weights[0]


def _with_positive_weights(losses: Sequence[Any], weights: Sequence[float]) -> list[dict[str, Any]]:
    """Return losses of a binary or multi-label model with weights of the positive terms of the cross entropy.

    Raises:
        ValueError: if no loss takes them.
    """
    settings = [loss.to_dict() for loss in build_losses(losses)]
    takers = [loss for loss in settings if loss["name"] == "binary_cross_entropy"]
    if not takers:
        raise ValueError("class_weights of a binary or multi-label model need the loss binary_cross_entropy")
    for loss in takers:
        loss.setdefault("positive_weights", list(weights))
    return settings


__all__ = ["apply_losses", "check_recipe_losses", "recipe_with_losses"]
