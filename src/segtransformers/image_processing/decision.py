# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The rule by which the scores of a model become a label map, and the classes of that label map.

A model with one class is binary: its logit is that of a sigmoid, and its label map holds 0 for the background and 1 for
the class. All other models take the class with the largest score, and so does Mask2Former with one class.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch

from ..models.segmentation.configuration_segmentation import BACKGROUND


@dataclass(frozen=True)
class Decision:
    """The rule by which scores become labels.

    Attributes:
        threshold: the probability above which a pixel of a binary model belongs to the class; None for other models.
        are_query_sums: whether logits are sums of probabilities over queries, as those of Mask2Former.
        temperature: divides the logarithms of the confidences in [`calibrated`]. Labels do not depend on it.
    """

    threshold: float | None = None
    are_query_sums: bool = False
    temperature: float = 1.0

    def labels(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the label map `(H, W)`, int64, of logits `(C, H, W)`."""
        if self.threshold is None:
            return logits.argmax(dim=0)
        return (logits[0] > math.log(self.threshold / (1 - self.threshold))).long()

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the probabilities of logits `(C, H, W)`, in the same shape."""
        return logits.softmax(dim=0) if self.threshold is None else logits.sigmoid()

    def labels_of_probabilities(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Return the label map `(H, W)`, int64, of probabilities `(C, H, W)`."""
        return probabilities.argmax(dim=0) if self.threshold is None else (probabilities[0] > self.threshold).long()

    def confidences(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the confidence in each class, `(C, H, W)`, of logits in this shape.

        These are the probabilities, except for sums over queries: their softmax over many classes is small for each of
        them, while the sums themselves are probabilities where they do not add up to more than 1.
        """
        if not self.are_query_sums:
            return self.probabilities(logits)
        return logits / logits.sum(0).clamp(min=1)

    def calibrated(self, confidences: torch.Tensor) -> torch.Tensor:
        """Return the confidences at the temperature of the model, in the same shape `(C, H, W)`.

        For softmax and sigmoid this equals dividing the logits of one view by the temperature. The sums over queries of
        Mask2Former have no such logits: their logarithms are divided, with the probability that is missing to 1 as a
        further outcome, "no class". The order of the classes stays the same.

        Args:
            confidences: what [`confidences`] returns, or its mean over several views.
        """
        if self.temperature == 1:
            return confidences
        outcomes = self.outcomes(confidences)
        logarithms = outcomes.clamp(min=torch.finfo(outcomes.dtype).tiny).log() / self.temperature
        return logarithms.softmax(dim=0)[: len(confidences)]

    def outcomes(self, confidences: torch.Tensor) -> torch.Tensor:
        """Return confidences `(C, ...)` with the outcomes that they lack, so that they add up to 1.

        A binary model lacks the background, which is appended. Sums over queries lack "no class".
        """
        if self.threshold is None and not self.are_query_sums:
            return confidences
        return torch.cat([confidences, (1 - confidences.sum(0, keepdim=True)).clamp(min=0)])

    def confidence(self, labels: torch.Tensor, confidences: torch.Tensor) -> torch.Tensor:
        """Return the confidence `(H, W)` in labels `(H, W)`, of confidences `(C, H, W)`."""
        if self.threshold is None:
            return confidences.gather(0, labels[None])[0]
        return torch.where(labels > 0, confidences[0], 1 - confidences[0])


def decision_of(config: Any) -> Decision:
    """Return the rule of a model with this config, which may be one of transformers."""
    is_binary = getattr(config, "is_binary", getattr(config, "num_labels", None) == 1)
    threshold = float(getattr(config, "threshold", 0.5)) if is_binary else None
    temperature = float(getattr(config, "calibration_temperature", None) or 1)
    return Decision(threshold, getattr(config, "logits_are_query_sums", False), temperature)


def label_map_classes(config: Any) -> dict[int, str]:
    """Return the names of the values of a model's label maps."""
    names = {index: str(config.id2label[index]) for index in range(len(config.id2label))}
    is_object_alone = decision_of(config).threshold is not None and len(names) == 1  # binary models of transformers
    return {0: BACKGROUND, 1: names[0]} if is_object_alone else names


__all__ = ["Decision", "decision_of", "label_map_classes"]
