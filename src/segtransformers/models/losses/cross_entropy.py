# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Cross entropy over softmax, cross entropy over sigmoids, and the focal loss."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional as F

from .base import (
    PixelLoss,
    as_masks,
    check_choice,
    check_numbers,
    check_weights,
    safe_mean,
    valid_indices,
    vector,
)
from .resized_cross_entropy import cross_entropy_sum


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(PixelLoss):
    """Cross entropy over the softmax of all classes.

    Attributes:
        class_weights: a factor for each class.
        label_smoothing: share of the target that all classes get equally, in [0, 1).
        average_over: the divisor of the sum. "class_weights" is torch's: the sum of the class weights of all valid
            pixels, which is their number where all weights are 1. "valid_pixels" counts them also where there are
            weights (MMSegmentation's `avg_non_ignore=True`). "all_pixels" counts ignored pixels too, as
            MMSegmentation does by default (`mmseg/models/losses/cross_entropy_loss.py`).
    """

    name: ClassVar[str] = "cross_entropy"
    resizes_logits: ClassVar[bool] = True

    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    average_over: str = "class_weights"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weights(self, "class_weights")
        check_numbers(self, "label_smoothing", low=0, high=0.999)
        check_choice(self, "average_over", "class_weights", "valid_pixels", "all_pixels")

    @property
    def divides_by_counts(self) -> bool:
        return self.average_over != "all_pixels"

    @property
    def compares_classes(self) -> bool:
        return True

    def for_sigmoids(self) -> PixelLoss:
        average_over = "all_pixels" if self.average_over == "all_pixels" else "valid_pixels"
        return BinaryCrossEntropy(weight=self.weight, average_over=average_over)

    def __call__(self, logits, labels, ignore_index, class_counts=None):
        weights = vector(self.class_weights, logits)
        total = cross_entropy_sum(logits, labels, ignore_index, weights, self.label_smoothing)
        if self.average_over == "all_pixels":
            return total / labels.numel()
        is_weighted = self.average_over == "class_weights" and weights is not None
        if class_counts is not None:
            counts = class_counts.to(logits)
            return safe_mean(total, (counts * weights if is_weighted else counts).sum())
        indices, valid = valid_indices(labels, ignore_index)
        return safe_mean(total, (weights[indices] * valid if is_weighted else valid).sum())


@dataclass(frozen=True, kw_only=True)
class BinaryCrossEntropy(PixelLoss):
    """Cross entropy over the sigmoid of each class, for binary and multi-label models and for class indices.

    Attributes:
        positive_weights: a factor of the positive term, for each class.
        average_over: "valid_pixels" or "all_pixels" (times classes), see [`CrossEntropy`].
    """

    name: ClassVar[str] = "binary_cross_entropy"

    positive_weights: tuple[float, ...] | None = None
    average_over: str = "valid_pixels"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weights(self, "positive_weights")
        check_choice(self, "average_over", "valid_pixels", "all_pixels")

    @property
    def divides_by_counts(self) -> bool:
        return self.average_over != "all_pixels"

    def __call__(self, logits, labels, ignore_index, class_counts=None):
        weights = vector(self.positive_weights, logits)
        masks = as_masks(logits, labels)
        if masks is None:
            total = _sum_of_sigmoid_terms(
                logits,
                labels,
                ignore_index,
                negative=F.softplus,
                positive=lambda true, classes: F.softplus(-true) * (1 if weights is None else weights[classes]),
            )
        else:
            valid = masks != ignore_index
            targets = masks.where(valid, 0).to(logits)
            factors = None if weights is None else weights[:, None, None]
            terms = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=factors, reduction="none")
            total = (terms * valid).sum()
        return _mean_over_pixels_and_classes(total, logits, labels, ignore_index, self.average_over, class_counts)


@dataclass(frozen=True, kw_only=True)
class FocalLoss(PixelLoss):
    """Focal loss (https://arxiv.org/abs/1708.02002) over the sigmoid of each class.

    Attributes:
        gamma: exponent of the error; 0 is cross entropy.
        alpha: weight of the positive term, and 1 - alpha of the negative one, in [0, 1]: one number, or one for each
            class. None leaves both terms as they are.
        class_weights: a factor for all terms of a class.
        average_over: "valid_pixels" or "all_pixels" (times classes); the second is MMSegmentation's
            (`mmseg/models/losses/focal_loss.py`).
    """

    name: ClassVar[str] = "focal"

    gamma: float = 2.0
    alpha: float | tuple[float, ...] | None = 0.25
    class_weights: tuple[float, ...] | None = None
    average_over: str = "valid_pixels"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "gamma", low=0)
        if isinstance(self.alpha, list | tuple):
            check_weights(self, "alpha")
        else:
            check_numbers(self, "alpha", low=0, high=1)
        if isinstance(self.alpha, tuple) and max(self.alpha) > 1:
            raise ValueError(f"{self.name}: alpha must be numbers from 0 to 1, got {list(self.alpha)}")
        check_weights(self, "class_weights")
        check_choice(self, "average_over", "valid_pixels", "all_pixels")

    @property
    def divides_by_counts(self) -> bool:
        return self.average_over != "all_pixels"

    def __call__(self, logits, labels, ignore_index, class_counts=None):
        classes = logits.shape[1]
        ones = logits.new_ones(classes)
        alpha = vector(self.alpha, logits) if isinstance(self.alpha, tuple) else self.alpha
        weights = ones if self.class_weights is None else vector(self.class_weights, logits)
        positive_weights = weights if alpha is None else weights * alpha
        negative_weights = weights if alpha is None else weights * (1 - alpha)

        def negative(values: torch.Tensor) -> torch.Tensor:
            return F.softplus(values) * values.sigmoid() ** self.gamma

        masks = as_masks(logits, labels)
        if masks is None:
            total = _sum_of_sigmoid_terms(
                logits,
                labels,
                ignore_index,
                negative=negative,
                positive=lambda true, indices: negative(-true) * positive_weights[indices],
                negative_weights=negative_weights,
            )
        else:
            valid = masks != ignore_index
            is_positive = masks.where(valid, 0) > 0
            factors = torch.where(is_positive, positive_weights[:, None, None], negative_weights[:, None, None])
            total = (negative(torch.where(is_positive, -logits, logits)) * factors * valid).sum()
        return _mean_over_pixels_and_classes(total, logits, labels, ignore_index, self.average_over, class_counts)


def _sum_of_sigmoid_terms(logits, labels, ignore_index, negative, positive, negative_weights=None) -> torch.Tensor:
    """Sum a term over all classes of all valid pixels, with another term at the true class.

    A one-hot copy of the labels is never made: the negative term of the true class is subtracted again.
    """
    indices, valid = valid_indices(labels, ignore_index)
    true = logits.gather(1, indices[:, None])[:, 0]
    if negative_weights is None:
        all_negative, true_negative = negative(logits).sum(1), negative(true)
    else:
        all_negative = torch.einsum("bchw,c->bhw", negative(logits), negative_weights)
        true_negative = negative(true) * negative_weights[indices]
    return ((all_negative - true_negative + positive(true, indices)) * valid).sum()


def _mean_over_pixels_and_classes(total, logits, labels, ignore_index, average_over, class_counts) -> torch.Tensor:
    if average_over == "all_pixels":
        return total / logits.numel()
    valid = (labels != ignore_index).sum() if class_counts is None else class_counts.to(logits).sum()
    return safe_mean(total, valid if labels.dim() == logits.dim() else valid * logits.shape[1])


__all__ = ["BinaryCrossEntropy", "CrossEntropy", "FocalLoss"]
