# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Cross entropy of the hardest pixels only (online hard example mining, https://arxiv.org/abs/1604.03540)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional as F

from .base import PixelLoss, check_choice, check_numbers, check_weights, safe_mean, vector
from .cross_entropy import BinaryCrossEntropy


@dataclass(frozen=True, kw_only=True)
class HardPixelCrossEntropy(PixelLoss):
    """Cross entropy of pixels whose true class has a low probability.

    Which pixels are kept, and how many, depends on the other pixels of the batch. So the mean over accumulated batches
    or processes is another loss than that of the joined batch, except for "mmseg" over all pixels where the threshold
    alone decides.

    Attributes:
        threshold: pixels with a probability below it are kept, and more if they are fewer than `min_kept`. None keeps
            the pixels with the largest loss.
        min_kept: number of pixels to keep at least; with "standard" and "mmseg" for each image on average.
        class_weights: a factor for each class.
        definition: "standard" averages over the kept pixels. "mmseg" divides their sum by all pixels
            (`mmseg/core/seg/sampler/ohem_pixel_sampler.py`). "pidnet" averages over the kept pixels, and `min_kept`
            counts for the whole batch (`OhemCrossEntropy` of MMSegmentation 1.x). In both, the threshold is strict,
            so that they may keep one pixel fewer than `min_kept`.
        average_over: the divisor of "mmseg": "all_pixels" or "valid_pixels".
    """

    name: ClassVar[str] = "ohem_cross_entropy"

    threshold: float | None = 0.7
    min_kept: int = 100_000
    class_weights: tuple[float, ...] | None = None
    definition: str = "standard"
    average_over: str = "all_pixels"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "threshold", low=0)
        check_weights(self, "class_weights")
        check_choice(self, "definition", "standard", "mmseg", "pidnet")
        check_choice(self, "average_over", "all_pixels", "valid_pixels")
        if type(self.min_kept) is not int or self.min_kept < 1:
            raise ValueError(f"{self.name}: min_kept must be a whole number of at least 1, got {self.min_kept!r}")
        if self.definition == "pidnet" and self.threshold is None:
            raise ValueError(f"{self.name}: the definition pidnet needs a threshold")

    @property
    def compares_classes(self) -> bool:
        return True

    def for_sigmoids(self) -> PixelLoss:
        return BinaryCrossEntropy(weight=self.weight)

    def __call__(self, logits, labels, ignore_index, class_counts=None):
        losses = F.cross_entropy(logits, labels.long(), ignore_index=ignore_index, reduction="none")
        valid = labels != ignore_index
        weighted = losses
        if self.class_weights is not None:
            weights = vector(self.class_weights, logits)
            weighted = losses * weights[labels.long().where(valid, 0)]
        with torch.no_grad():
            kept = self._largest(weighted, valid) if self.threshold is None else self._below(losses, valid)
        total = (weighted * kept).sum()
        if self.definition != "mmseg":
            return safe_mean(total, kept.sum())
        return total / labels.numel() if self.average_over == "all_pixels" else safe_mean(total, valid.sum())

    def _largest(self, losses: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Return the mask of the pixels with the largest loss."""
        ranked = losses.masked_fill(~valid, -torch.inf).flatten()
        chosen = ranked.topk(min(self.min_kept * len(losses), ranked.numel())).indices
        return torch.zeros_like(valid.flatten()).scatter(0, chosen, True).view_as(valid) & valid

    def _below(self, losses: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Return the mask of the pixels whose true class has a probability below the threshold."""
        probabilities = (-losses).exp()
        ranked = probabilities.masked_fill(~valid, torch.inf).flatten().sort().values
        least = self.min_kept * (1 if self.definition == "pidnet" else len(losses))
        is_standard = self.definition == "standard"
        rank = (valid.sum() - 1).clamp(min=0, max=least - 1 if is_standard else least)
        last = ranked.gather(0, rank[None])[0]
        kept = probabilities < last.clamp(min=self.threshold)
        return (kept | (probabilities <= last) if is_standard else kept) & valid


__all__ = ["HardPixelCrossEntropy"]
