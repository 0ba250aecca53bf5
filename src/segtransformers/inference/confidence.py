# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Class probabilities, confidence and uncertainty of images, in bands of rows so that an image may be huge.

Probabilities are those at the temperature of the model's config (`calibration_temperature`). Label maps are decided
before that and equal those of [`segment_image`].
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedModel

from ..escaping import short_repr
from ..image_processing import Decision, ResizedRows, by_rows, decision_of
from .logits import resized_logits, upright
from .protocol import InferenceProtocol
from .segmentation import mean_scores, side_by_side_is_smaller
from .views import View, groups_of_equal_views, image_size, image_views, loaded

MEASURES = ("confidence", "entropy", "probability_margin")


@dataclass(frozen=True)
class SegmentedBand:
    """The labels and class probabilities of a band of rows.

    Attributes:
        rows: the rows of the image.
        labels: int64 `(rows, width)`, class indices; 0 and 1 for a binary model. A multi-label model has masks, bool
            `(num_labels, rows, width)`, and measures in this shape.
        uncalibrated: `(num_labels, rows, width)`, float32 (float64 for a float64 model), the mean over the views of
            the softmax over classes, or of the sigmoids of a multi-label model. A binary model has one channel, the
            probability of the object. For Mask2Former they are the sums over queries, divided by their sum over classes
            where that exceeds 1.
        decision: the rule of the model.
        absences: of a binary or multi-label model the mean of [`Decision.absences`], in the shape of `uncalibrated`;
            None for other models.
    """

    rows: slice
    labels: torch.Tensor
    uncalibrated: torch.Tensor
    decision: Decision
    absences: torch.Tensor | None = None

    @cached_property
    def probabilities(self) -> torch.Tensor:
        """The class probabilities at the temperature of the model, in the shape of `uncalibrated`."""
        return self.decision.calibrated(self.uncalibrated, self.absences)

    @classmethod
    def of_logits(cls, rows: slice, logits: Sequence[torch.Tensor], decision: Decision) -> "SegmentedBand":
        """Return the band of the logits `(num_labels, rows, width)` of each view."""
        scores = _mean([decision.probabilities(one) for one in logits])
        # of one view as in `segment_image`: probabilities of large logits may be equal
        labels = decision.labels(logits[0]) if len(logits) == 1 else decision.labels_of_probabilities(scores)
        if decision.are_query_sums:
            scores = _mean([decision.confidences(one) for one in logits])
        absences = [part for one in logits if (part := decision.absences(one)) is not None]
        return cls(rows, labels, scores, decision, _mean(absences) if absences else None)

    def confidence(self) -> torch.Tensor:
        """Return the probability of each pixel's own label, `(rows, width)`."""
        return self.decision.confidence(self.labels, self.probabilities)

    def entropy(self) -> torch.Tensor:
        """Return the entropy of the outcomes of each pixel, `(rows, width)`, from 0 (certain) to 1 (all alike)."""
        outcomes = self.decision.outcomes(self.probabilities)
        if len(outcomes) == 1:  # a model with a single class
            return torch.zeros_like(outcomes[0])
        return by_rows(torch.special.entr, outcomes).sum(0).div_(math.log(len(outcomes))).clamp_(0, 1)

    def probability_margin(self) -> torch.Tensor:
        """Return the difference of the two largest probabilities of each pixel, `(rows, width)`, from 0 to 1."""
        outcomes = self.decision.outcomes(self.probabilities)
        if len(outcomes) == 1:
            return torch.ones_like(outcomes[0])
        first, second = outcomes.topk(2, dim=0).values
        return first - second


def segment_bands(
    model: PreTrainedModel, processor: Any, image: Any, protocol: InferenceProtocol | None = None
) -> Iterator[SegmentedBand]:
    """Predict the class probabilities of an image, and yield them in bands of rows from top to bottom.

    Memory does not grow with pixels times classes if the model runs in windows. All views run side by side.

    Arguments and errors are those of [`segment_image`].

    Yields:
        [`SegmentedBand`]; their rows together are those of the image, and their tensors are on the model's device.
    """
    protocol = protocol or InferenceProtocol()
    image = loaded(image, processor)
    views, window = image_views(processor, image, protocol), protocol.sliding_window(model)
    with torch.no_grad():
        logits = [resized_logits(model, view, [image_size(image)], window)[0] for view in views]
    return _bands(logits, views, decision_of(model.config))


def uncertainty_maps(
    model: PreTrainedModel,
    processor: Any,
    image: Any,
    measures: Iterable[str] = MEASURES,
    protocol: InferenceProtocol | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Predict the class of every pixel of an image, and measures of how certain it is.

    Args:
        model, processor, image, protocol: as for [`segment_image`], whose errors this function also raises.
        measures: names of methods of [`SegmentedBand`]: "confidence", "entropy" and "probability_margin".

    Returns:
        labels as of [`segment_image`], and a map in their shape from 0 to 1 for each measure, float32 (float64 for a
        float64 model), on the model's device.

    Raises:
        ValueError: if a measure is unknown.
    """
    measures = tuple(measures)
    for measure in measures:
        if measure not in MEASURES:
            raise ValueError(f"measures must be among {', '.join(MEASURES)}, got {short_repr(measure)}")
    image = loaded(image, processor)
    return _collected(segment_bands(model, processor, image, protocol), image_size(image), measures)


def segment_with_confidence(
    model: PreTrainedModel, processor: Any, image: Any, protocol: InferenceProtocol | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Predict the class of every pixel of an image, and the probability of that class.

    Arguments, memory and errors are those of [`segment_image`].

    Returns:
        int64 and float32 (float64 for a float64 model) `(height, width)`, on the model's device. For a binary model the
        confidence of a background pixel is 1 minus the probability of the object. For Mask2Former it is the sum over
        queries for that class, divided by the sum for all classes where that exceeds 1. It is the probability at the
        temperature of the model. A multi-label model gives its masks and the confidence in each of their pixels,
        `(num_labels, height, width)`.
    """
    image = loaded(image, processor)
    views, sizes = [image_views(processor, image, protocol)], [image_size(image)]
    return segment_views_with_confidence(model, views, sizes, protocol)[0]


@torch.no_grad()
def segment_views_with_confidence(
    model: PreTrainedModel,
    views: Sequence[Sequence[View]],
    sizes: Sequence[tuple[int, int]],
    protocol: InferenceProtocol | None = None,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Predict as [`segment_with_confidence`], for several images whose views are made already.

    Arguments, memory and errors are those of [`segment_views`].

    Returns:
        labels and confidence, as [`segment_with_confidence`] returns them, for each image.
    """
    window = (protocol or InferenceProtocol()).sliding_window(model)
    decision = decision_of(model.config)
    found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for members, own_views in groups_of_equal_views(views):
        own_sizes = [sizes[index] for index in members]
        if len(own_views) == 1 or (len(own_sizes) == 1 and side_by_side_is_smaller(own_views, own_sizes[0], window)):
            logits = [resized_logits(model, view, own_sizes, window) for view in own_views]
            for index, size, *own in zip(members, own_sizes, *logits, strict=True):
                labels, maps = _collected(_bands(own, own_views, decision), size, ("confidence",))
                found[index] = labels, maps["confidence"]
            continue
        kinds: list[Any] = [Decision.probabilities]
        kinds += [Decision.confidences] if decision.are_query_sums else []
        kinds += [Decision.absences] if decision.threshold is not None else []
        for index, means in zip(members, mean_scores(model, own_views, own_sizes, window, kinds), strict=True):
            labels = decision.labels_of_probabilities(means[0])
            calibrated = decision.calibrated(means[-1]) if decision.threshold is None else decision.calibrated(*means)
            found[index] = labels, decision.confidence(labels, calibrated)
    return [found[index] for index in range(len(views))]


def _bands(logits: Sequence[ResizedRows], views: Sequence[View], decision: Decision) -> Iterator[SegmentedBand]:
    """Yield the bands of one image from the logits of each of its views."""
    for rows in logits[0].slices():
        with torch.no_grad():  # not around `yield`, where it would be in effect for the caller
            taken = [upright(one, rows, view.flipped) for one, view in zip(logits, views, strict=True)]
            band = SegmentedBand.of_logits(rows, taken, decision)
        yield band


def _collected(
    bands: Iterable[SegmentedBand], size: tuple[int, int], measures: Sequence[str]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the labels and the maps of some measures, in the shape of the labels, from bands of all rows."""
    labels, maps = None, {}
    for band in bands:
        if labels is None:
            shape = (*band.labels.shape[:-2], *size)
            labels = band.labels.new_empty(shape)
            maps = {measure: band.probabilities.new_empty(shape) for measure in measures}
        labels[..., band.rows, :] = band.labels
        for measure in measures:
            maps[measure][..., band.rows, :] = getattr(band, measure)()
    assert labels is not None  # every image has rows
    return labels, maps


def _mean(scores: Sequence[torch.Tensor]) -> torch.Tensor:
    return sum(scores[1:], scores[0]) / len(scores)


__all__ = [
    "MEASURES",
    "SegmentedBand",
    "segment_bands",
    "segment_views_with_confidence",
    "segment_with_confidence",
    "uncertainty_maps",
]
