# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Base class of the losses, and functions that several of them use.

All losses take logits `(B, C, H, W)` and one of three kinds of labels:

- class indices `(B, H, W)` in `[0, C)`, for C above 1;
- 0 and 1 `(B, H, W)`, for C = 1 (binary segmentation);
- masks `(B, C, H, W)` of 0 and 1, one for each class (multi-label segmentation).

The value `ignore_index` excludes a pixel, and in masks the pixel of one class. A batch without a valid pixel has the
loss 0 with a gradient of 0, except with the definitions of other libraries that say otherwise.
"""

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch


@dataclass(frozen=True, kw_only=True)
class PixelLoss(abc.ABC):
    """One loss with its settings.

    Attributes:
        weight: factor of this loss in the sum of all.
    """

    name: ClassVar[str]
    resizes_logits: ClassVar[bool] = False  # takes logits smaller than the labels, too

    weight: float = 1.0

    def __post_init__(self) -> None:
        check_numbers(self, "weight", low=0)

    @abc.abstractmethod
    def __call__(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        ignore_index: int,
        class_counts: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute the loss without its weight.

        Args:
            logits, labels: see the module's docstring. float32 or float64.
            class_counts: `(C,)` numbers of pixels that losses which divide by valid pixels use in place of the counts
                of this batch: the mean over the batches and processes of an optimizer step. With masks, the pixels
                that are valid for each class.

        Returns:
            a scalar.
        """

    @property
    def divides_by_counts(self) -> bool:
        """Return whether the loss divides by the number of valid pixels, and so uses `class_counts`."""
        return False

    @property
    def compares_classes(self) -> bool:
        """Return whether the loss takes a softmax over the classes, and so is not for models with sigmoids."""
        return False

    def for_sigmoids(self) -> "PixelLoss":
        """Return this loss, or the one that takes its place in models with sigmoids."""
        return self

    def check(self, num_labels: int, multi_label: bool = False) -> None:
        """Raise ValueError if the loss or its settings do not fit a model with `num_labels` logits.

        Args:
            multi_label: whether each logit is that of a sigmoid. One logit always is.
        """
        if self.compares_classes and (multi_label or num_labels == 1):
            model = "classes of a multi-label model are independent" if multi_label else "a binary model has one logit"
            instead = self.for_sigmoids().to_dict()["name"]
            setting = "" if instead != self.name else " with the definition standard"
            raise ValueError(f"{self.name} compares classes, and {model}: use {instead}{setting} in its place")
        for name in ("class_weights", "positive_weights", "alpha"):
            values = getattr(self, name, None)
            if isinstance(values, tuple) and len(values) != num_labels:
                raise ValueError(
                    f"{self.name}: {name} has {len(values)} numbers, but the model has {num_labels} classes: give one "
                    "number for each class"
                )

    def to_dict(self) -> dict[str, Any]:
        """Return the name and the settings that differ from their defaults, for JSON."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        changed = {entry.name: values[entry.name] for entry in fields(self) if values[entry.name] != entry.default}
        return {"name": self.name} | {k: list(v) if isinstance(v, tuple) else v for k, v in changed.items()}


def check_numbers(loss: PixelLoss, *names: str, low: float, high: float = math.inf) -> None:
    """Raise ValueError unless each setting is None or a finite number in `[low, high]`."""
    for name in names:
        value = getattr(loss, name)
        if value is None:
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or not low <= value <= high:
            allowed = f"at least {low}" if high == math.inf else f"from {low} to {high}"
            raise ValueError(f"{loss.name}: {name} must be a number {allowed}, got {value!r}")


def check_choice(loss: PixelLoss, setting: str, *choices: str) -> None:
    """Raise ValueError unless the setting is one of `choices`."""
    if getattr(loss, setting) not in choices:
        raise ValueError(f"{loss.name}: {setting} must be one of {', '.join(choices)}, got {getattr(loss, setting)!r}")


def check_weights(loss: PixelLoss, name: str) -> None:
    """Make a tuple of a setting with one weight for each class, and raise ValueError if it is none."""
    values = getattr(loss, name)
    if values is None:
        return
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise ValueError(f"{loss.name}: {name} must be a list with a number for each class, got {values!r}")
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) != len(values) or not all(0 <= value < math.inf for value in numbers) or not any(numbers):
        raise ValueError(f"{loss.name}: {name} must be numbers of at least 0, not all of them 0, got {values!r}")
    object.__setattr__(loss, name, tuple(float(value) for value in numbers))


def vector(values: Sequence[float] | None, like: torch.Tensor) -> torch.Tensor | None:
    """Return the numbers as a tensor with the device and dtype of `like`."""
    return None if values is None else torch.tensor(values, device=like.device, dtype=like.dtype)


def as_masks(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor | None:
    """Return labels as masks with the shape of `logits`, or None where they are class indices."""
    if labels.dim() == logits.dim():
        return labels
    return labels[:, None] if logits.shape[1] == 1 else None


def valid_indices(labels: torch.Tensor, ignore_index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return labels as int64 with 0 for ignored pixels, and the mask of the others."""
    valid = labels != ignore_index
    return labels.long().where(valid, 0), valid


def safe_mean(total: torch.Tensor, divisor: torch.Tensor) -> torch.Tensor:
    """Divide, and return 0 with a gradient of 0 where the divisor is 0."""
    return total / divisor.where(divisor > 0, 1)


__all__ = ["PixelLoss"]
