# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The rule by which the scores of a model become labels, and the classes of these labels.

A model with one class is binary: its logit is that of a sigmoid, and its label map holds 0 for the background and 1 for
the class. A multi-label model has a sigmoid for each class, and its labels are a mask for each class. All other models
take the class with the largest score, and so does Mask2Former with one class.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..models.segmentation.configuration_segmentation import BACKGROUND

LEAST_ABSENCE = 1e-6  # of "no class"; less is the rounding of a sum of probabilities


@dataclass(frozen=True)
class Decision:
    """The rule by which scores become labels.

    Labels are a label map `(H, W)`, int64, or the masks `(C, H, W)`, bool, of a multi-label model.

    Attributes:
        threshold: the probability above which a pixel of a binary or multi-label model belongs to the class; None for
            other models.
        are_query_sums: whether logits are sums of probabilities over queries, as those of Mask2Former.
        temperature: divides the logarithms of the confidences in [`calibrated`]. Labels do not depend on it.
        multi_label: whether each class has a mask of its own.
    """

    threshold: float | None = None
    are_query_sums: bool = False
    temperature: float = 1.0
    multi_label: bool = False

    def empty_labels(self, num_labels: int, size: tuple[int, int], device: torch.device) -> torch.Tensor:
        """Return a tensor for the labels of an image of (height, width) `size`; `[..., rows, :]` is a band of it."""
        if self.multi_label:
            return torch.empty((num_labels, *size), dtype=torch.bool, device=device)
        return torch.empty(size, dtype=torch.long, device=device)

    def labels(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the labels of logits `(C, H, W)`."""
        if self.threshold is None:
            return logits.argmax(dim=0)
        above = (logits if self.multi_label else logits[0]) > math.log(self.threshold / (1 - self.threshold))
        return above if self.multi_label else above.long()

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the probabilities of logits `(C, H, W)`, in the same shape."""
        return by_rows(lambda row: row.softmax(dim=0) if self.threshold is None else row.sigmoid(), logits)

    def labels_of_probabilities(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Return the labels of probabilities `(C, H, W)`."""
        if self.threshold is None:
            return probabilities.argmax(dim=0)
        above = (probabilities if self.multi_label else probabilities[0]) > self.threshold
        return above if self.multi_label else above.long()

    def confidences(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the confidence in each class, `(C, H, W)`, of logits in this shape.

        These are the probabilities, except for sums over queries: their softmax over many classes is small for each of
        them, while the sums themselves are probabilities where they do not add up to more than 1.
        """
        if not self.are_query_sums:
            return self.probabilities(logits)
        return logits / logits.sum(0).clamp(min=1)

    def absences(self, logits: torch.Tensor) -> torch.Tensor | None:
        """Return the probability that a class is absent, `(C, H, W)`, of a binary or multi-label model; else None.

        It is 1 minus the probability, but not rounded to 0 where that is almost 1.
        """
        return None if self.threshold is None else self.probabilities(-logits)

    def calibrated(self, confidences: torch.Tensor, absences: torch.Tensor | None = None) -> torch.Tensor:
        """Return the confidences at the temperature of the model, in the same shape `(C, H, W)`.

        For softmax and sigmoid this equals dividing the logits of one view by the temperature. The sums over queries of
        Mask2Former have no such logits: their logarithms are divided, with the probability that is missing to 1 as a
        further outcome, "no class". The order of the classes stays the same.

        Args:
            confidences: what [`confidences`] returns, or its mean over several views.
            absences: the same of [`absences`].
        """
        if self.temperature == 1:
            return confidences
        logarithms = self.log_outcomes(confidences, absences)
        scaled = by_rows(lambda row: (row / self.temperature).softmax(dim=0), logarithms)
        return scaled[0] if self.multi_label else scaled[: len(confidences)]

    def log_outcomes(self, confidences: torch.Tensor, absences: torch.Tensor | None = None) -> torch.Tensor:
        """Return the logarithms of [`outcomes`]."""
        outcomes = self.outcomes(confidences, absences)
        least = torch.finfo(outcomes.dtype).tiny
        return by_rows(lambda row: row.clamp(min=least).log(), outcomes)

    def outcomes(self, confidences: torch.Tensor, absences: torch.Tensor | None = None) -> torch.Tensor:
        """Return confidences `(C, ...)` with the outcomes that they lack, so that they add up to 1.

        A binary model lacks the background, which is appended. Sums over queries lack "no class". Each class of a
        multi-label model has two outcomes, present and absent: they have the shape `(2, C, ...)`.
        """
        if self.multi_label:
            return torch.stack([confidences, 1 - confidences if absences is None else absences])
        if self.threshold is None and not self.are_query_sums:
            return confidences
        if absences is None:
            absences = 1 - confidences.sum(0, keepdim=True)
            absences = absences * (absences > LEAST_ABSENCE)
        return torch.cat([confidences, absences])

    def confidence(self, labels: torch.Tensor, confidences: torch.Tensor) -> torch.Tensor:
        """Return the confidence in labels, in their shape, of confidences `(C, H, W)`."""
        if self.threshold is None:
            return confidences.gather(0, labels[None])[0]
        own = confidences if self.multi_label else confidences[0]
        return torch.where(labels > 0, own, 1 - own)


def by_rows(function: Callable[[torch.Tensor], torch.Tensor], values: torch.Tensor) -> torch.Tensor:
    """Apply an elementwise function or softmax to `(..., H, W)` so that the result of a pixel does not depend on H.

    CPUs compute exponentials and logarithms of the last elements of a tensor with other code, whose last bit may
    differ. Row by row, an image and its bands of rows give the same bits.
    """
    if values.device.type != "cpu" or values.ndim < 3 or torch.compiler.is_compiling():
        return function(values)
    result = torch.empty_like(values)
    for row in range(values.shape[-2]):
        result[..., row, :] = function(values[..., row, :])
    return result


def decision_of(config: Any) -> Decision:
    """Return the rule of a model with this config, which may be one of transformers."""
    is_multi_label = getattr(config, "is_multi_label", False)
    is_binary = getattr(config, "is_binary", getattr(config, "num_labels", None) == 1)
    threshold = float(getattr(config, "threshold", 0.5)) if is_binary or is_multi_label else None
    temperature = float(getattr(config, "calibration_temperature", None) or 1)
    return Decision(threshold, getattr(config, "logits_are_query_sums", False), temperature, is_multi_label)


def label_map_classes(config: Any) -> dict[int, str]:
    """Return the names of the values of a model's label maps, or of its masks."""
    names = {index: str(config.id2label[index]) for index in range(len(config.id2label))}
    decision = decision_of(config)  # binary models of transformers name the object alone
    is_object_alone = decision.threshold is not None and not decision.multi_label and len(names) == 1
    return {0: BACKGROUND, 1: names[0]} if is_object_alone else names


__all__ = ["Decision", "by_rows", "decision_of", "label_map_classes"]
