# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Label maps and class probabilities of whole images, in bands of rows so that an image may be huge.

Source: `aug_test` in `mmseg/models/segmentors/encoder_decoder.py` of MMSegmentation 0.20.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from ..image_processing import Decision, decision_of
from ..models.layers.sliding_windows import SlidingWindow
from .logits import resized_logits, rows_held, upright
from .protocol import InferenceProtocol
from .views import View, groups_of_equal_views, image_size, image_views, loaded
from .window_labels import labels_of_small_logits

ScoreOfLogits = Callable[[Decision, torch.Tensor], torch.Tensor]


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
        int64 `(height, width)` on the model's device: class indices, or 0 and 1 for a binary model. A multi-label
        model gives a mask for each class, bool `(num_labels, height, width)`.

    Raises:
        ValueError: if the model is in training mode, or takes no windows where the protocol has some, or the processor
            has no settings for the scales of the protocol.
    """
    image = loaded(image, processor)
    return segment_views(model, [image_views(processor, image, protocol)], [image_size(image)], protocol)[0]


@torch.no_grad()
def image_scores(
    model: PreTrainedModel, processor: Any, image: Any, protocol: InferenceProtocol | None = None
) -> torch.Tensor:
    """Predict class probabilities at the size of an image: the mean over its views of the softmax over classes.

    For a binary or multi-label model it is the mean of the sigmoids; a binary model has one channel. Labels are decided
    by these scores, so they are never calibrated. [`segment_bands`] has calibrated probabilities, and does not hold
    them for the whole image.

    Arguments and errors are those of [`segment_image`].

    Returns:
        `(num_labels, height, width)`, float32 (float64 for a float64 model), on the model's device.
    """
    protocol = protocol or InferenceProtocol()
    image = loaded(image, processor)
    views = image_views(processor, image, protocol)
    ((scores,),) = mean_scores(
        model, views, [image_size(image)], protocol.sliding_window(model), [Decision.probabilities]
    )
    return scores


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
        for each image the result of [`segment_image`].
    """
    window = (protocol or InferenceProtocol()).sliding_window(model)
    labels: dict[int, torch.Tensor] = {}
    for members, own_views in groups_of_equal_views(views):
        own_sizes = [sizes[index] for index in members]
        labels.update(zip(members, _label_maps(model, own_views, own_sizes, window), strict=True))
    return [labels[index] for index in range(len(views))]


def _label_maps(
    model: PreTrainedModel, views: Sequence[View], sizes: Sequence[tuple[int, int]], window: SlidingWindow | None
) -> list[torch.Tensor]:
    """Return the label maps of images whose views are stacked."""
    if len(views) == 1:
        labels = labels_of_small_logits(model, views[0], sizes, window)
        if labels is not None:
            return labels
    decision = decision_of(model.config)
    if len(sizes) == 1 and (len(views) == 1 or side_by_side_is_smaller(views, sizes[0], window)):
        return [_labels_side_by_side(model, views, sizes[0], window)]
    if len(views) == 1:
        return [
            torch.cat([decision.labels(logits.take(rows)) for rows in logits.slices()], dim=-2)
            for logits in resized_logits(model, views[0], sizes, window)
        ]
    found = mean_scores(model, views, sizes, window, [Decision.probabilities])
    return [decision.labels_of_probabilities(scores) for (scores,) in found]


def side_by_side_is_smaller(views: Sequence[View], size: tuple[int, int], window: SlidingWindow | None) -> bool:
    """Return whether the logits that all views hold at once are fewer than the scores of the whole image."""
    held = sum(rows_held(view, window) * view.pixel_values.shape[3] for view in views)
    return held < size[0] * size[1]


def _labels_side_by_side(
    model: PreTrainedModel, views: Sequence[View], size: tuple[int, int], window: SlidingWindow | None
) -> torch.Tensor:
    """Return the label map of one image, computed band by band from all views."""
    decision = decision_of(model.config)
    labels = decision.empty_labels(model.config.num_labels or 0, size, model.device)
    if len(views) == 1:
        (logits,) = resized_logits(model, views[0], [size], window)
        for rows in logits.slices():
            labels[..., rows, :] = decision.labels(logits.take(rows))
        return labels
    for rows, scores in _score_bands(model, views, size, window):
        labels[..., rows, :] = decision.labels_of_probabilities(scores)
    return labels


def _score_bands(
    model: PreTrainedModel, views: Sequence[View], size: tuple[int, int], window: SlidingWindow | None
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield bands of rows of an image with the mean class probabilities of all views, `(num_labels, rows, width)`."""
    decision = decision_of(model.config)
    logits = [resized_logits(model, view, [size], window)[0] for view in views]
    for rows in logits[0].slices():
        total = decision.probabilities(upright(logits[0], rows, views[0].flipped))
        for more, view in zip(logits[1:], views[1:], strict=True):
            total += decision.probabilities(upright(more, rows, view.flipped))
        yield rows, total.div_(len(views))


def mean_scores(
    model: PreTrainedModel,
    views: Sequence[View],
    sizes: Sequence[tuple[int, int]],
    window: SlidingWindow | None,
    kinds: Sequence[ScoreOfLogits],
) -> list[list[torch.Tensor]]:
    """Return the means over views of each kind of scores, for each image, computed view by view.

    Args:
        model, window: as for [`segment_views`].
        views: of images whose views are stacked.
        sizes: (height, width) of each image.
        kinds: methods of [`Decision`] that map logits `(num_labels, rows, width)` to scores of this shape.

    Returns:
        `(num_labels, height, width)` for each image and kind.
    """
    decision = decision_of(model.config)
    totals: list[list[torch.Tensor]] = []
    for view in views:
        for index, logits in enumerate(resized_logits(model, view, sizes, window)):
            for rows in logits.slices():
                taken = upright(logits, rows, view.flipped)
                parts = [kind(decision, taken) for kind in kinds]
                if index == len(totals):
                    totals.append([part.new_zeros((len(part), *sizes[index])) for part in parts])
                for total, part in zip(totals[index], parts, strict=True):
                    total[:, rows] += part
    return [[total.div_(len(views)) for total in own] for own in totals]


__all__ = ["image_scores", "mean_scores", "segment_image", "segment_views", "side_by_side_is_smaller"]
