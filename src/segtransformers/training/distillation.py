# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Distillation: train a model to predict the class probabilities of a better one, besides the labels.

Source: Distilling the Knowledge in a Neural Network (https://arxiv.org/abs/1503.02531).
"""

import dataclasses
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..image_processing import decision_of
from ..models.layers.resize import resize

STRIDE = 4  # of the compared predictions, in pixels: that of most heads


class Distillation:
    """A trained model whose predictions another model learns.

    All pixels count, also those without a label.

    Args:
        teacher: a trained model. It is set to evaluation mode, and [`SegmentationTrainer`] moves it to its device.
        student: the model to train.
        teacher_processor, student_processor: their image processors; images are normalized again if these differ.
        weight: factor of this loss, which is added to that of the labels.
        temperature: divides the logits of both. Larger ones give the less likely classes more weight.

    Raises:
        ValueError: if the classes or the kinds of labels differ, the student has no logits for pixels (Mask2Former), or
            a number is not valid.
    """

    def __init__(
        self,
        teacher: Any,
        student: Any,
        teacher_processor: Any,
        student_processor: Any,
        weight: float = 1.0,
        temperature: float = 1.0,
    ):
        if not 0 < weight < float("inf") or not 0 < temperature < float("inf"):
            raise ValueError(f"weight and temperature must be positive, got {weight} and {temperature}")
        self.decision, own = decision_of(teacher.config), decision_of(student.config)
        if own.are_query_sums:
            raise ValueError(
                f"{type(student).__name__} predicts masks of queries and has no logits for pixels: distil into "
                "UperNet, Segmenter or a linear head"
            )
        self.are_sigmoids = own.threshold is not None
        if (self.decision.threshold is not None, self.decision.multi_label) != (self.are_sigmoids, own.multi_label):
            raise ValueError("the teacher and the model must both be binary, or both multi-label, or neither")
        names = [
            [str(model.config.id2label[i]) for i in range(model.config.num_labels)] for model in (teacher, student)
        ]
        if names[0] != names[1]:
            raise ValueError(_difference(*names))
        self.scale, self.shift = _renormalization(student_processor, teacher_processor)
        self.teacher: nn.Module = teacher.eval().requires_grad_(False)
        self.weight, self.temperature = weight, temperature

    def loss(self, logits: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the weighted divergence of the student's from the teacher's probabilities, a mean over pixels.

        It is multiplied by the square of the temperature, so that its gradient keeps its size.

        Args:
            logits: of the student, `(B, C, h, w)`.
            pixel_values: its input `(B, channels, H, W)`.
        """
        size = [-(-side // STRIDE) for side in pixel_values.shape[2:]]
        targets = self._targets(pixel_values, size)
        with torch.autocast(logits.device.type, enabled=False):
            logits = resize(logits.float(), size) / self.temperature
            if self.are_sigmoids:
                terms = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
                entropy = -torch.special.xlogy(targets, targets) - torch.special.xlogy(1 - targets, 1 - targets)
                divergence = terms - entropy
            else:
                divergence = F.kl_div(logits.log_softmax(1), targets, reduction="none")
            return self.weight * self.temperature**2 * divergence.sum(1).mean()

    @torch.no_grad()
    def _targets(self, pixel_values: torch.Tensor, size: list[int]) -> torch.Tensor:
        """Return the teacher's probabilities `(B, C, *size)` at the temperature."""
        images = pixel_values * self.scale.to(pixel_values) + self.shift.to(pixel_values)
        scores = resize(self.teacher(images).logits.float(), size)
        decision = dataclasses.replace(self.decision, temperature=self.temperature)
        targets = torch.stack(
            [decision.calibrated(decision.confidences(image), decision.absences(image)) for image in scores]
        )
        if decision.are_query_sums:  # the student has no outcome "no class"
            targets = targets / targets.sum(1, keepdim=True).clamp(min=torch.finfo(targets.dtype).tiny)
        return targets


def _difference(teacher: list[str], student: list[str]) -> str:
    if len(teacher) != len(student):
        return f"the teacher has {len(teacher)} classes and the model {len(student)}: they must be the same"
    index = next(i for i, (first, second) in enumerate(zip(teacher, student, strict=True)) if first != second)
    return (
        f"class {index} is {teacher[index]!r} for the teacher and {student[index]!r} for the model: they must have the "
        "same classes in the same order"
    )


def _renormalization(own: Any, other: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return factor and summand, `(channels, 1, 1)`, that turn images of one processor into those of another."""
    (mean, std), (other_mean, other_std) = (_normalization(processor) for processor in (own, other))
    if len(mean) != len(other_mean):
        raise ValueError(f"the teacher takes images of {len(other_mean)} channels and the model of {len(mean)}")
    return (std / other_std)[:, None, None], ((mean - other_mean) / other_std)[:, None, None]


def _normalization(processor: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation of the channels, in the units of the image before it is rescaled."""
    factor = processor.rescale_factor if processor.do_rescale else 1.0
    channels = len(processor.image_mean)
    mean = processor.image_mean if processor.do_normalize else [0.0] * channels
    std = processor.image_std if processor.do_normalize else [1.0] * channels
    return torch.tensor(mean, dtype=torch.float64) / factor, torch.tensor(std, dtype=torch.float64) / factor


__all__ = ["Distillation"]
