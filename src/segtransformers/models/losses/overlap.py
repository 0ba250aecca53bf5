# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Losses that compare areas: Dice, Jaccard and Tversky.

The Tversky index (https://arxiv.org/abs/1706.05721) of true positives TP, false positives FP and false negatives FN is
`TP / (TP + alpha FP + beta FN)`. Dice has alpha = beta = 0.5, Jaccard alpha = beta = 1. The probabilities are those of
a softmax for class indices, and of sigmoids for binary and multi-label models.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from .base import PixelLoss, as_masks, check_choice, check_numbers, check_weights, safe_mean, valid_indices, vector


@dataclass(frozen=True, kw_only=True)
class TverskyLoss(PixelLoss):
    """One minus the Tversky index of each class, averaged over the classes that occur.

    Attributes:
        alpha, beta: weights of false positives and of false negatives.
        smooth: added to numerator and denominator.
        class_weights: a factor for each class; the average is weighted with them.
        per_image: whether each image has its own areas. The loss is then the mean over the images with valid pixels,
            which does not depend on how images are divided among batches, if each image has a valid pixel. False adds
            the areas of the whole batch, so that the mean over accumulated batches or processes is another loss than
            that of the joined batch.
        definition: "standard", or "mmseg" (`mmseg/models/losses/tversky_loss.py`): per image, over all classes, with
            class weights as factors only.
    """

    name: ClassVar[str] = "tversky"

    alpha: float = 0.3
    beta: float = 0.7
    smooth: float = 1.0
    class_weights: tuple[float, ...] | None = None
    per_image: bool = False
    definition: str = "standard"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "alpha", "beta", "smooth", low=0)
        check_weights(self, "class_weights")
        check_choice(self, "definition", "standard", "mmseg")
        if type(self.per_image) is not bool:
            raise ValueError(f"{self.name}: per_image must be true or false, got {self.per_image!r}")
        if self.alpha == self.beta == 0:
            raise ValueError(f"{self.name}: alpha and beta must not both be 0")

    def __call__(self, logits, labels, ignore_index, class_counts=None):
        is_standard = self.definition == "standard"
        areas = _areas(logits, labels, ignore_index)
        if is_standard and not self.per_image:
            areas = [area.sum(0, keepdim=True) for area in areas]
        return self._loss(*areas) if is_standard else self._loss_of_mmseg(*areas)

    def _loss(self, both: torch.Tensor, predicted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        errors = 1 - _tversky(both, predicted, true, self.alpha, self.beta, self.smooth)
        weights = (true > 0).to(errors)
        if self.class_weights is not None:
            weights = weights * vector(self.class_weights, errors)
        images = safe_mean((errors * weights).sum(1), weights.sum(1))
        return safe_mean(images.sum(), (weights.sum(1) > 0).sum())

    def _loss_of_mmseg(self, both: torch.Tensor, predicted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        errors = (1 - _tversky(both, predicted, true, self.alpha, self.beta, self.smooth)).mean(0)
        return (errors if self.class_weights is None else errors * vector(self.class_weights, errors)).mean()


@dataclass(frozen=True, kw_only=True)
class JaccardLoss(TverskyLoss):
    """One minus the intersection over union of each class. The attributes are those of [`TverskyLoss`]."""

    name: ClassVar[str] = "jaccard"

    alpha: float = 1.0
    beta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.alpha, self.beta) != (1, 1):
            raise ValueError("jaccard: alpha and beta are 1; use tversky for other values")


@dataclass(frozen=True, kw_only=True)
class DiceLoss(PixelLoss):
    """One minus the Dice coefficient of each class, averaged over the classes that occur.

    Attributes:
        smooth: added to numerator and denominator, as in [`TverskyLoss`]; "mmseg" and "mmseg1" add it as the original.
        exponent: of the probabilities in the denominator of "mmseg".
        class_weights, per_image: see [`TverskyLoss`].
        definition: "standard"; "mmseg" for MMSegmentation 0.x (`mmseg/models/losses/dice_loss.py`): per image, over
            all classes, squares in the denominator, where ignored pixels count too, and count as the last class in the
            label map; "mmseg1" for MMSegmentation 1.x: one ratio for each image over all classes and pixels, with
            squares in the denominator unless `exponent` is 1.
        softmax: whether "mmseg1" takes the softmax instead of sigmoids.
    """

    name: ClassVar[str] = "dice"

    smooth: float = 1.0
    exponent: float = 2.0
    class_weights: tuple[float, ...] | None = None
    per_image: bool = False
    definition: str = "standard"
    softmax: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "smooth", "exponent", low=0)
        check_weights(self, "class_weights")
        check_choice(self, "definition", "standard", "mmseg", "mmseg1")
        for name in ("per_image", "softmax"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{self.name}: {name} must be true or false, got {getattr(self, name)!r}")
        if self.definition == "mmseg1" and self.exponent not in (1, 2):
            raise ValueError(f"{self.name}: exponent must be 1 or 2 with the definition mmseg1, got {self.exponent}")
        if self.definition == "mmseg1" and self.class_weights is not None:
            raise ValueError(f"{self.name}: the definition mmseg1 has no class_weights")

    @property
    def compares_classes(self) -> bool:
        return self.definition == "mmseg" or self.softmax

    def for_sigmoids(self) -> PixelLoss:
        return DiceLoss(weight=self.weight, smooth=self.smooth) if self.compares_classes else self

    def __call__(self, logits, labels, ignore_index, class_counts=None):
        if self.definition == "mmseg":
            return self._loss_of_mmseg(logits, labels, ignore_index)
        if self.definition == "mmseg1":
            return self._loss_of_mmseg1(logits, labels, ignore_index)
        standard = TverskyLoss(
            alpha=0.5,
            beta=0.5,
            smooth=self.smooth,
            class_weights=self.class_weights,
            per_image=self.per_image,
        )
        return standard(logits, labels, ignore_index)

    def _loss_of_mmseg(self, logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> torch.Tensor:
        classes = logits.shape[1]
        if labels.dim() == logits.dim() or classes == 1:
            raise ValueError("dice: the definition mmseg is for class indices of at least two classes")
        probabilities = logits.softmax(1)
        # an ignored pixel counts as the last class in the denominator
        clamped = labels.long().clamp(0, classes - 1)
        both = _sums_by_class(probabilities, clamped, labels != ignore_index)
        true = _counts_by_class(clamped, torch.ones_like(clamped, dtype=torch.bool), both)
        predicted = (probabilities**self.exponent).sum((2, 3))
        errors = (1 - (2 * both + self.smooth) / (predicted + true + self.smooth)).mean(0)
        return (errors if self.class_weights is None else errors * vector(self.class_weights, errors)).mean()

    def _loss_of_mmseg1(self, logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> torch.Tensor:
        probabilities = logits.softmax(1) if self.softmax else logits.sigmoid()
        masks = as_masks(logits, labels)
        if masks is None:
            indices, valid = valid_indices(labels, ignore_index)
            both = _sums_by_class(probabilities, indices, valid).sum(1)
            true = valid.sum((1, 2))
        else:
            targets = masks.where(masks != ignore_index, 0).to(probabilities)
            both, true = (probabilities * targets).sum((1, 2, 3)), targets.sum((1, 2, 3))
        if self.exponent == 1:
            ratio = (2 * both + self.smooth) / (probabilities.sum((1, 2, 3)) + true + self.smooth)
        else:
            ratio = 2 * both / ((probabilities**2).sum((1, 2, 3)) + true + 2 * self.smooth)
        return (1 - ratio).mean()


def _areas(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> list[torch.Tensor]:
    """Return the areas of intersection, prediction and label of each image and class, `(B, C)` each."""
    masks = as_masks(logits, labels)
    if masks is None:
        indices, valid = valid_indices(labels, ignore_index)
        probabilities = logits.softmax(1)
        both = _sums_by_class(probabilities, indices, valid)
        # a product with the mask would be one more copy of all probabilities
        predicted = torch.einsum("bchw,bhw->bc", probabilities, valid.to(probabilities))
        return [both, predicted, _counts_by_class(indices, valid, both)]
    valid = masks != ignore_index
    probabilities = logits.sigmoid() * valid
    targets = masks.where(valid, 0).to(probabilities)
    return [(probabilities * targets).sum((2, 3)), probabilities.sum((2, 3)), targets.sum((2, 3))]


def _sums_by_class(probabilities: torch.Tensor, indices: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Sum the probability of the true class over the valid pixels of each class, `(B, C)`."""
    true = probabilities.gather(1, indices[:, None])[:, 0] * valid
    sums = probabilities.new_zeros(probabilities.shape[:2])
    return sums.scatter_add(1, indices.flatten(1), true.flatten(1))


def _counts_by_class(indices: torch.Tensor, valid: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Count the valid pixels of each class, with the shape `(B, C)` and the dtype of `like`."""
    return torch.zeros_like(like).scatter_add(1, indices.flatten(1), valid.flatten(1).to(like))


def _tversky(both, predicted, true, alpha: float, beta: float, smooth: float) -> torch.Tensor:
    denominator = both + alpha * (predicted - both) + beta * (true - both) + smooth
    return safe_mean(both + smooth, denominator)


__all__ = ["DiceLoss", "JaccardLoss", "TverskyLoss"]
