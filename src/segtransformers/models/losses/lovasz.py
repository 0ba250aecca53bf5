# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Lovász-Softmax and Lovász hinge (https://arxiv.org/abs/1705.08790): convex surrogates of the Jaccard loss."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional as F

from .base import PixelLoss, as_masks, check_weights, safe_mean


@dataclass(frozen=True, kw_only=True)
class LovaszLoss(PixelLoss):
    """Lovász-Softmax for class indices, Lovász hinge for binary and multi-label models.

    It equals `mmseg/models/losses/lovasz_loss.py` of MMSegmentation wherever that gives a number.

    Attributes:
        classes: "present" averages over the classes that occur, "all" over all.
        per_image: see [`TverskyLoss`].
        class_weights: a factor for each class; the average is not weighted with them.
    """

    name: ClassVar[str] = "lovasz"

    classes: str | tuple[int, ...] = "present"
    per_image: bool = False
    class_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weights(self, "class_weights")
        if isinstance(self.classes, list | tuple) and self.classes and all(type(c) is int for c in self.classes):
            object.__setattr__(self, "classes", tuple(self.classes))
        elif self.classes not in ("present", "all"):
            raise ValueError(f"lovasz: classes must be 'present', 'all' or a list of classes, got {self.classes!r}")
        if type(self.per_image) is not bool:
            raise ValueError(f"lovasz: per_image must be true or false, got {self.per_image!r}")

    def check(self, num_labels: int, multi_label: bool = False) -> None:
        super().check(num_labels, multi_label)
        if isinstance(self.classes, tuple) and not 0 <= min(self.classes) <= max(self.classes) < num_labels:
            raise ValueError(f"lovasz: classes {list(self.classes)} are not all below the {num_labels} of the model")

    def __call__(self, logits, labels, ignore_index, class_counts=None):
        masks = as_masks(logits, labels)
        groups = [slice(index, index + 1) for index in range(len(logits))] if self.per_image else [slice(None)]
        if masks is None:
            probabilities = logits.softmax(1)
            terms = [self._softmax_loss(probabilities[group], labels[group], ignore_index) for group in groups]
        else:
            terms = [_hinge_loss(logits[group], masks[group], ignore_index) for group in groups]
        losses, counted = (torch.stack(values) for values in zip(*terms, strict=True))
        return safe_mean(losses.sum(), counted.sum())

    def _softmax_loss(
        self, probabilities: torch.Tensor, labels: torch.Tensor, ignore_index: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of some images, and whether any of their pixels is valid."""
        valid = (labels != ignore_index).flatten()
        labels = labels.flatten()
        counted = list(range(probabilities.shape[1]) if isinstance(self.classes, str) else self.classes)
        if self.classes == "present" and not torch.compiler.is_compiling():
            # each class costs a sort; a compiled graph cannot depend on the classes that occur
            counted = [int(c) for c in labels[valid].unique().tolist()]
        total, count = probabilities.sum() * 0, valid.new_zeros((), dtype=probabilities.dtype)
        for index in counted:
            is_class = (labels == index) & valid
            present = (is_class.any() if self.classes == "present" else valid.any()).to(probabilities)
            errors = (is_class.to(probabilities) - probabilities[:, index].flatten()).abs()
            weight = 1.0 if self.class_weights is None else self.class_weights[index]
            total = total + present * weight * _lovasz_extension(errors, is_class, valid)
            count = count + present
        return safe_mean(total, count), (count > 0).to(probabilities)


def _hinge_loss(logits: torch.Tensor, masks: torch.Tensor, ignore_index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the hinge loss over all pixels and channels, and whether any of them is valid."""
    valid = (masks != ignore_index).flatten()
    is_true = (masks.flatten() > 0) & valid
    errors = 1 - torch.where(is_true, 1, -1) * logits.flatten()
    return _lovasz_extension(errors, is_true, valid), valid.any().to(logits)


def _lovasz_extension(errors: torch.Tensor, is_true: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Sum the positive errors times the growth of the Jaccard loss, from the largest error to the smallest.

    Args:
        errors, is_true, valid: `(n,)`. Invalid pixels come last in the order, where they change nothing.
    """
    order = errors.detach().masked_fill(~valid, -torch.inf).argsort(descending=True, stable=True)
    true = is_true[order].to(errors)
    intersection = true.sum() - true.cumsum(0)
    union = true.sum() + (1 - true).cumsum(0)
    jaccard = 1 - intersection / union.clamp(min=1)
    growth = torch.cat([jaccard[:1], jaccard.diff()])
    return (F.relu(errors[order]) * growth * valid[order]).sum()


__all__ = ["LovaszLoss"]
