# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Lists of losses as recipes and configs hold them, and their weighted sum."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch

from ...escaping import short_repr
from ..layers.resize import resize
from .base import PixelLoss
from .cross_entropy import BinaryCrossEntropy, CrossEntropy, FocalLoss
from .hard_pixels import HardPixelCrossEntropy
from .lovasz import LovaszLoss
from .overlap import DiceLoss, JaccardLoss, TverskyLoss

LOSSES: dict[str, type[PixelLoss]] = {
    kind.name: kind
    for kind in (
        CrossEntropy,
        BinaryCrossEntropy,
        FocalLoss,
        HardPixelCrossEntropy,
        DiceLoss,
        JaccardLoss,
        TverskyLoss,
        LovaszLoss,
    )
}
MOST_LOSSES = 16


def build_losses(settings: Sequence[str | Mapping[str, Any] | PixelLoss]) -> list[PixelLoss]:
    """Build losses from names or mappings such as `{"name": "dice", "weight": 3.0}`.

    Raises:
        ValueError: naming the unknown loss or setting, or the value that does not fit.
    """
    if (
        isinstance(settings, str | Mapping)
        or not isinstance(settings, Sequence)
        or not 0 < len(settings) <= MOST_LOSSES
    ):
        raise ValueError(
            f"losses must be a list of 1 to {MOST_LOSSES} losses, such as [{{'name': 'cross_entropy'}}], got "
            f"{short_repr(settings)}"
        )
    return [_build(entry) for entry in settings]


def check_losses(losses: Sequence[PixelLoss], num_labels: int, multi_label: bool = False) -> None:
    """Raise ValueError if a loss does not fit a model: see [`PixelLoss.check`]."""
    for loss in losses:
        loss.check(num_labels, multi_label)


def without_class_settings(settings: Sequence[Any], sigmoids: bool = False) -> list[Any]:
    """Return saved losses without the settings that belong to single classes.

    Args:
        sigmoids: whether the new model is binary or multi-label. Losses that compare classes are replaced then.
    """
    if sigmoids:
        settings = for_sigmoids(settings)
    per_class = ("class_weights", "positive_weights", "alpha", "classes")
    return [
        {key: value for key, value in entry.items() if key not in per_class or not isinstance(value, list | tuple)}
        if isinstance(entry, Mapping)
        else entry
        for entry in settings
    ]


def for_sigmoids(settings: Sequence[Any]) -> list[dict[str, Any]]:
    """Return losses for a binary or multi-label model: those that compare classes are replaced."""
    return [loss.for_sigmoids().to_dict() for loss in build_losses(settings)]


def total_loss(
    losses: Sequence[PixelLoss],
    logits: torch.Tensor,
    labels: torch.Tensor,
    ignore_index: int,
    class_counts: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sum weighted losses, in float32 or wider also under autocast.

    Args:
        logits: `(B, C, h, w)`, resized bilinearly to the label map's size where they differ.
        labels, class_counts: see [`PixelLoss`].

    Returns:
        a scalar.
    """
    if not all(loss.resizes_logits for loss in losses):
        logits = resize(logits, labels.shape[-2:])
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits if logits.dtype == torch.float64 else logits.float()
        terms = [loss.weight * loss(logits, labels, ignore_index, class_counts) for loss in losses]
    return sum(terms[1:], terms[0])


def _build(entry: str | Mapping[str, Any] | PixelLoss) -> PixelLoss:
    if isinstance(entry, PixelLoss):
        return entry
    values = {"name": entry} if isinstance(entry, str) else dict(entry) if isinstance(entry, Mapping) else {}
    name = values.pop("name", None)
    if not isinstance(name, str) or name not in LOSSES:
        raise ValueError(f"a loss needs a name of {', '.join(LOSSES)}, got {short_repr(entry)}")
    known = [field.name for field in fields(LOSSES[name])]
    unknown = [short_repr(key) for key in values if key not in known]
    if unknown:
        raise ValueError(f"{name} has no setting {', '.join(unknown)}; it has {', '.join(known)}")
    return LOSSES[name](**values)


__all__ = ["LOSSES", "build_losses", "check_losses", "for_sigmoids", "total_loss", "without_class_settings"]
