# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Label maps and class probabilities of whole images, in bands of rows so that an image may be huge.

Source: `aug_test` in `mmseg/models/segmentors/encoder_decoder.py` of MMSegmentation 0.20.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from ..image_processing import decision_of
from ..models.layers.sliding_windows import SlidingWindow
from .logits import probabilities, resized_logits, rows_held
from .protocol import InferenceProtocol
from .views import View, image_size, image_views, loaded, stacked


def segment_image(
    model: PreTrainedModel, processor: Any, image: Any, protocol: InferenceProtocol | None = None
) -> torch.Tensor:
    """Predict the class of every pixel of an image.

    The result is computed in bands of rows, so memory does not grow with pixels times classes: an image of any size
    fits if the model runs in windows. Several views are run side by side, each with its own row of windows, where that
    takes less memory than the scores of all classes at the size of the image.

    A call changes neither the model, its config nor the processor, so threads may share them.

    Args:
        model: in evaluation mode; one of ours, or any model for semantic segmentation.
        processor: its image processor.
        image: one image, in any form that the processor takes, or a path. A file is turned as its EXIF data say.
        protocol: the inference options. None is the single-scale protocol of the checkpoint.

    Returns:
        int64 `(height, width)` on the model's device: class indices, or 0 and 1 for a binary model.

    Raises:
        ValueError: if the model is in training mode, or takes no windows where the protocol has some, or the processor
            has no settings for the scales of the protocol.
    """
    image = loaded(image, processor)
    return segment_views(model, [image_views(processor, image, protocol)], [image_size(image)], protocol)[0]


@torch.no_grad()
def segment_with_confidence(
    model: PreTrainedModel, processor: Any, image: Any, protocol: InferenceProtocol | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Predict the class of every pixel of an image, and the probability of that class.

    Arguments, memory and errors are those of [`segment_image`].

    Returns:
        int64 and float32 (float64 for a float64 model) `(height, width)`, on the model's device. For a binary model the
        confidence of a background pixel is 1 minus the probability of the object. For Mask2Former it is the sum over
        queries for that class, divided by the sum for all classes where that exceeds 1.
    """
    protocol = protocol or InferenceProtocol()
    image = loaded(image, processor)
    size, decision = image_size(image), decision_of(model.config)
    labels = torch.empty(size, dtype=torch.long, device=model.device)
    confidence: torch.Tensor | None = None
    views, window = image_views(processor, image, protocol), protocol.sliding_window(model)
    logits = [resized_logits(model, view, [size], window)[0] for view in views]
    for rows in logits[0].slices():
        bands = [one.take(rows) for one in logits]
        bands = [band.flip(-1) if view.flipped else band for band, view in zip(bands, views, strict=True)]
        scores = sum(map(decision.probabilities, bands[1:]), decision.probabilities(bands[0])) / len(bands)
        labels[rows] = decision.labels_of_probabilities(scores)
        if confidence is None:
            confidence = scores.new_empty(size)
        if decision.are_query_sums:
            scores = sum(map(decision.confidences, bands[1:]), decision.confidences(bands[0])) / len(bands)
        confidence[rows] = decision.confidence(labels[rows], scores)
    assert confidence is not None  # every image has rows
    return labels, confidence


@torch.no_grad()
def image_scores(
    model: PreTrainedModel, processor: Any, image: Any, protocol: InferenceProtocol | None = None
) -> torch.Tensor:
    """Predict class probabilities at the size of an image: the mean over its views of the softmax over classes.

    For a binary model it is the mean of the sigmoid, with one channel.

    Arguments and errors are those of [`segment_image`].

    Returns:
        `(num_labels, height, width)`, float32 (float64 for a float64 model), on the model's device.
    """
    protocol = protocol or InferenceProtocol()
    image = loaded(image, processor)
    views = image_views(processor, image, protocol)
    return _mean_scores(model, views, [image_size(image)], protocol.sliding_window(model))[0]


@torch.no_grad()
def segment_views(
    model: PreTrainedModel,
    views: Sequence[Sequence[View]],
    sizes: Sequence[tuple[int, int]],
    protocol: InferenceProtocol | None = None,
) -> list[torch.Tensor]:
    """Predict label maps as [`segment_image`], for several images whose views are made already.

    Images whose views have equal sizes share the forward passes. They hold the logits of a whole view in memory, and
    with several views the scores of all classes, so batches are for images of usual sizes.

    Args:
        model: as for [`segment_image`], whose errors this function also raises.
        views: the [`image_views`] of each image, all with `protocol`.
        sizes: (height, width) of each image.
        protocol: the inference options. None is the single-scale protocol of the checkpoint.

    Returns:
        int64 `(height, width)` for each image.
    """
    window = (protocol or InferenceProtocol()).sliding_window(model)
    groups: dict[tuple, list[int]] = {}
    for index, own in enumerate(views):
        shapes = tuple((*view.pixel_values.shape[2:], *view.size) for view in own)
        groups.setdefault(shapes, []).append(index)
    labels: dict[int, torch.Tensor] = {}
    for members in groups.values():
        own_sizes = [sizes[index] for index in members]
        own_views = [stacked(same) for same in zip(*(views[index] for index in members), strict=True)]
        labels.update(zip(members, _label_maps(model, own_views, own_sizes, window), strict=True))
    return [labels[index] for index in range(len(views))]


def _label_maps(
    model: PreTrainedModel, views: Sequence[View], sizes: Sequence[tuple[int, int]], window: SlidingWindow | None
) -> list[torch.Tensor]:
    """Return the label maps of images whose views are stacked."""
    decision = decision_of(model.config)
    if len(sizes) == 1 and (len(views) == 1 or _side_by_side_is_smaller(views, sizes[0], window)):
        return [_labels_side_by_side(model, views, sizes[0], window)]
    if len(views) == 1:
        return [
            torch.cat([decision.labels(logits.take(rows)) for rows in logits.slices()])
            for logits in resized_logits(model, views[0], sizes, window)
        ]
    return [decision.labels_of_probabilities(scores) for scores in _mean_scores(model, views, sizes, window)]


def _side_by_side_is_smaller(views: Sequence[View], size: tuple[int, int], window: SlidingWindow | None) -> bool:
    """Return whether the logits that all views hold at once are fewer than the scores of the whole image."""
    held = sum(rows_held(view, window) * view.pixel_values.shape[3] for view in views)
    return held < size[0] * size[1]


def _labels_side_by_side(
    model: PreTrainedModel, views: Sequence[View], size: tuple[int, int], window: SlidingWindow | None
) -> torch.Tensor:
    """Return the label map of one image, computed band by band from all views."""
    decision = decision_of(model.config)
    labels = torch.empty(size, dtype=torch.long, device=model.device)
    if len(views) == 1:
        (logits,) = resized_logits(model, views[0], [size], window)
        for rows in logits.slices():
            labels[rows] = decision.labels(logits.take(rows))
        return labels
    for rows, scores in _score_bands(model, views, size, window):
        labels[rows] = decision.labels_of_probabilities(scores)
    return labels


def _score_bands(
    model: PreTrainedModel, views: Sequence[View], size: tuple[int, int], window: SlidingWindow | None
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield bands of rows of an image with the mean class probabilities of all views, `(num_labels, rows, width)`."""
    decision = decision_of(model.config)
    logits = [resized_logits(model, view, [size], window)[0] for view in views]
    for rows in logits[0].slices():
        total = probabilities(logits[0], rows, views[0].flipped, decision)
        for more, view in zip(logits[1:], views[1:], strict=True):
            total += probabilities(more, rows, view.flipped, decision)
        yield rows, total.div_(len(views))


def _mean_scores(
    model: PreTrainedModel, views: Sequence[View], sizes: Sequence[tuple[int, int]], window: SlidingWindow | None
) -> list[torch.Tensor]:
    """Return the mean class probabilities of each image, `(num_labels, height, width)`, computed view by view."""
    decision = decision_of(model.config)
    totals: list[torch.Tensor] = []
    for view in views:
        for index, logits in enumerate(resized_logits(model, view, sizes, window)):
            for rows in logits.slices():
                part = probabilities(logits, rows, view.flipped, decision)
                if index == len(totals):
                    totals.append(part.new_zeros((len(part), *sizes[index])))
                totals[index][:, rows] += part
    return [total.div_(len(views)) for total in totals]


__all__ = ["image_scores", "segment_image", "segment_views", "segment_with_confidence"]
