# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""How a model is tested: sliding windows, several scales and mirror images, and huge photos band by band.

Sources: `slide_inference` and `aug_test` in `mmseg/models/segmentors/encoder_decoder.py`, `MultiScaleFlipAug` in
`mmseg/datasets/pipelines/test_time_aug.py` of MMSegmentation 0.20; `SETR_Resize` and `PadShortSide` in
`mmseg_custom/datasets/pipelines/transform.py` of ViT-Adapter.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.image_utils import get_image_size

from ..image_processing import ResizedRows, as_8bit_image, keep_ratio_size
from ..models.layers.sliding_windows import SlidingWindow, slide_bands


@dataclass(frozen=True)
class View:
    """One of the pictures that a model sees of an image, or of several images whose pictures have the same sizes.

    Attributes:
        pixel_values: `(B, 3, h, w)`.
        size: (height, width) without what was padded at the right and the bottom.
        flipped: whether left and right are exchanged.
    """

    pixel_values: torch.Tensor
    size: tuple[int, int]
    flipped: bool


def multi_scale_options(processor: Any) -> dict[str, Any]:
    """`scales` and `flip` of a checkpoint's multi-scale protocol, for [`segment_image`]."""
    options = _multi_scale(processor)
    return {"scales": tuple(options["scales"]), "flip": bool(options["flip"])}


def image_views(processor: Any, image: Any, scales: Sequence[float] | None = None, flip: bool = False) -> list[View]:
    """The pictures of one image in the originals' order: scale by scale, each as it is and then flipped.

    Args:
        processor: a [`SegmentationImageProcessor`]; without `scales` any image processor.
        image: one image, in any form that the processor takes.
        scales: factors on the size that the processor gives an image, with what its `multi_scale` says about the
            resize; None is the single-scale protocol.
        flip: whether each picture comes mirrored, too.

    Raises:
        ValueError: if a scale is not positive, or the processor cannot scale.
    """
    views = []
    for options in [{}] if scales is None else [_resize_options(processor, image, scale) for scale in scales]:
        pad = options.pop("pad_shortest_edge", None) or 0
        pixel_values = processor(images=image, return_tensors="pt", **options)["pixel_values"]
        size = (pixel_values.shape[2], pixel_values.shape[3])
        for flipped in (False, True) if flip else (False,):
            view = pixel_values.flip(-1) if flipped else pixel_values
            views.append(View(_padded(processor, view, pad), size, flipped))
    return views


def _multi_scale(processor: Any) -> dict[str, Any]:
    options = getattr(processor, "multi_scale", None)
    if options is None:
        raise ValueError(
            f"{type(processor).__name__} says nothing of several scales: use a SegmentationImageProcessor, or no scales"
        )
    return options


def _resize_options(processor: Any, image: Any, scale: float) -> dict[str, Any]:
    """What the processor is called with for one scale, and `pad_shortest_edge`."""
    if not scale > 0:
        raise ValueError(f"scales must be positive, got {scale}")
    protocol = _multi_scale(processor)
    height, width = image_size(image)
    if not processor.do_resize:
        size = {"height": max(int(height * scale + 0.5), 1), "width": max(int(width * scale + 0.5), 1)}
        return {"do_resize": True, "size": size}
    size = {key: int(value * scale) for key, value in dict(processor.size).items() if value}
    options: dict[str, Any] = {"size": size, "size_divisor": protocol["size_divisor"]}
    if protocol["shortest_edge_at_least"] and "shortest_edge" in size:
        short = max(min(size.values()), protocol["shortest_edge_at_least"])
        long = short * max(height, width) / min(height, width)
        target = keep_ratio_size(height, width, short, long)
        options = {"size": {"height": target[0], "width": target[1]}}
    return options | {"pad_shortest_edge": protocol["pad_shortest_edge"]}


def image_size(image: Any) -> tuple[int, int]:
    """(height, width) in pixels."""
    usual = as_8bit_image(image)
    if hasattr(usual, "height") and hasattr(usual, "width"):  # PIL
        return usual.height, usual.width
    return get_image_size(np.asarray(usual))


def _padded(processor: Any, pixel_values: torch.Tensor, side: int) -> torch.Tensor:
    """Black pixels at the right and the bottom, until no side is shorter than `side`."""
    height, width = pixel_values.shape[2:]
    if min(height, width) >= side:
        return pixel_values
    black = torch.zeros(len(pixel_values[0]), dtype=pixel_values.dtype)
    if processor.do_normalize:
        black -= torch.tensor(processor.image_mean) / torch.tensor(processor.image_std)
    padded = black.view(1, -1, 1, 1).repeat(1, 1, max(height, side), max(width, side))
    padded[:, :, :height, :width] = pixel_values
    return padded


def window_in_use(
    model: PreTrainedModel, window: Sequence[int] | None = None, stride: Sequence[int] | None = None
) -> SlidingWindow | None:
    """The windows that [`segment_image`] runs with these options; None is none."""
    config: Any = model.config
    if window is None and stride is None:
        return config.sliding_window() if hasattr(config, "sliding_window") else None
    if not hasattr(config, "sliding_window"):
        raise ValueError(f"{type(model).__name__} has no sliding window: leave window and stride out")
    size = window if window is not None else config.window_size
    if stride is None:  # as most originals: two thirds of the window
        stride = [max(side * 2 // 3, 1) for side in size]
    return SlidingWindow((size[0], size[1]), (stride[0], stride[1]), config.window_batch_size)


def _slides(view: View, window: SlidingWindow | None) -> bool:
    """Whether the picture is as large as a window, so that bands are done before the whole is."""
    sides = view.pixel_values.shape[2:]
    return window is not None and all(side >= least for side, least in zip(sides, window.size, strict=True))


def _logit_bands(
    model: PreTrainedModel, view: View, window: SlidingWindow | None
) -> tuple[int, Iterator[torch.Tensor]]:
    """Height and, from top to bottom, bands `(B, num_labels, rows, w)` of the logits of a view, without its padding."""
    pixel_values = view.pixel_values.to(model.device, model.dtype)
    takes_window = hasattr(model.config, "sliding_window")

    def forward(part: torch.Tensor, sliding_window: SlidingWindow | bool = False) -> torch.Tensor:
        options: dict[str, Any] = {"sliding_window": sliding_window} if takes_window else {}
        logits = getattr(model(pixel_values=part, **options), "logits", None)
        if logits is None or logits.ndim != 4:
            raise ValueError(
                f"{type(model).__name__} gives no maps of logits: a model for semantic segmentation is needed"
            )
        return logits

    sides = tuple(pixel_values.shape[2:])
    height, width = view.size
    if window is not None and _slides(view, window):
        return height, _cut(slide_bands(forward, pixel_values, window), height, width)
    logits = forward(pixel_values, False if window is None else window)
    if view.size == sides:
        return logits.shape[2], iter([logits])
    if logits.shape[2:] != sides:
        raise ValueError(f"{type(model).__name__} gives logits of another size than its images: it takes no padding")
    return height, iter([logits[:, :, :height, :width]])


def _cut(bands: Iterator[torch.Tensor], height: int, width: int) -> Iterator[torch.Tensor]:
    for band in bands:
        if height > 0:
            yield band[:, :, :height, :width]
        height -= band.shape[2]


def _resized(
    model: PreTrainedModel, view: View, sizes: Sequence[tuple[int, int]], window: SlidingWindow | None
) -> list[ResizedRows]:
    """The logits of a view at the size of each of its images. For one image they come band by band."""
    height, bands = _logit_bands(model, view, window)
    if len(sizes) == 1:
        return [ResizedRows((band[0] for band in bands), height, sizes[0])]
    logits = torch.cat(list(bands), dim=2)
    return [ResizedRows(iter([one]), height, size) for one, size in zip(logits, sizes, strict=True)]


def _probabilities(resized: ResizedRows, rows: slice, flipped: bool) -> torch.Tensor:
    logits = resized.take(rows)
    return (logits.flip(-1) if flipped else logits).softmax(dim=0)


def _mean_scores(
    model: PreTrainedModel, views: Sequence[View], sizes: Sequence[tuple[int, int]], window: SlidingWindow | None
) -> list[torch.Tensor]:
    """For each image `(num_labels, height, width)`: view after view is added to what holds them all."""
    totals: list[torch.Tensor] = []
    for view in views:
        for index, resized in enumerate(_resized(model, view, sizes, window)):
            if index == len(totals):
                totals.append(resized.weight.new_zeros((len(resized.buffer), *sizes[index])))
            for rows in resized.slices():
                totals[index][:, rows] += _probabilities(resized, rows, view.flipped)
    return [total.div_(len(views)) for total in totals]


def _labels_in_step(
    model: PreTrainedModel, views: Sequence[View], size: tuple[int, int], window: SlidingWindow | None
) -> torch.Tensor:
    """Labels of one image, band after band, each from all views."""
    labels = torch.empty(size, dtype=torch.long, device=model.device)
    maps = [_resized(model, view, [size], window)[0] for view in views]
    for rows in maps[0].slices():
        if len(views) == 1:
            labels[rows] = maps[0].take(rows).argmax(dim=0)
            continue
        total = _probabilities(maps[0], rows, views[0].flipped)
        for resized, view in zip(maps[1:], views[1:], strict=True):
            total += _probabilities(resized, rows, view.flipped)
        labels[rows] = total.div_(len(views)).argmax(dim=0)
    return labels


def _in_step_is_smaller(views: Sequence[View], size: tuple[int, int], window: SlidingWindow | None) -> bool:
    """Whether what all views hold at once is less than the scores of the whole image."""
    held = 0
    for view in views:
        height, width = view.pixel_values.shape[2:]
        if window is not None and _slides(view, window):
            height = min(window.size[0], height)
        held += height * width
    return held < size[0] * size[1]


@torch.no_grad()
def image_scores(
    model: PreTrainedModel,
    processor: Any,
    image: Any,
    *,
    scales: Sequence[float] | None = None,
    flip: bool = False,
    window: Sequence[int] | None = None,
    stride: Sequence[int] | None = None,
) -> torch.Tensor:
    """Class probabilities at the image's own size: the mean over its views of the softmax over classes.

    Args, errors: as of [`segment_image`].

    Returns:
        `(num_labels, height, width)`, float32 (float64 of such a model), on the model's device.
    """
    views, size = image_views(processor, image, scales, flip), image_size(image)
    return _mean_scores(model, views, [size], window_in_use(model, window, stride))[0]


def segment_image(
    model: PreTrainedModel,
    processor: Any,
    image: Any,
    *,
    scales: Sequence[float] | None = None,
    flip: bool = False,
    window: Sequence[int] | None = None,
    stride: Sequence[int] | None = None,
) -> torch.Tensor:
    """The class of every pixel of an image, by the checkpoint's protocol or another.

    The image is worked off in bands of rows, so that memory does not grow with the number of pixels times classes:
    photos of any size fit, if the model runs in windows. Several views (`scales`, `flip`) are worked off in step, each
    with its own row of windows, where that takes less than the scores of all classes at the image's size.

    Args:
        model: in evaluation mode; one of ours, or any model for semantic segmentation.
        processor: its image processor.
        image: one image, in any form that the processor takes.
        scales: factors on the processor's size whose scores are averaged; [`multi_scale_options`] knows those of the
            checkpoint's protocol. None is the single-scale protocol.
        flip: average with the mirror image, too.
        window, stride: (height, width) in pixels, instead of the config's; a stride of None is then two thirds.

    Returns:
        int64 `(height, width)` on the model's device.

    Raises:
        ValueError: for a scale that is not positive, a model in training mode or without windows, a processor that
            cannot scale.
    """
    views = image_views(processor, image, scales, flip)
    return segment_views(model, [views], [image_size(image)], window=window, stride=stride)[0]


@torch.no_grad()
def segment_views(
    model: PreTrainedModel,
    views: Sequence[Sequence[View]],
    sizes: Sequence[tuple[int, int]],
    *,
    window: Sequence[int] | None = None,
    stride: Sequence[int] | None = None,
) -> list[torch.Tensor]:
    """[`segment_image`] for several images, whose [`image_views`] are there already.

    Images whose views have the same sizes share the calls of the network. Of those, the logits of a whole view are held
    at once, and with several views the scores of all classes: batches are for images of usual sizes.

    Args:
        views: of each image, from one call of [`image_views`] each, with the same options.
        sizes: (height, width) of each image.
        model, window, stride, errors: as of [`segment_image`].

    Returns:
        int64 `(height, width)` for each image.
    """
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() first")
    groups: dict[tuple, list[int]] = {}
    for index, own in enumerate(views):
        shapes = tuple((*view.pixel_values.shape[2:], *view.size) for view in own)
        groups.setdefault(shapes, []).append(index)
    labels: dict[int, torch.Tensor] = {}
    used = window_in_use(model, window, stride)
    for members in groups.values():
        own_sizes = [sizes[index] for index in members]
        own_views = [_stacked(same) for same in zip(*(views[index] for index in members), strict=True)]
        if len(members) == 1 and (len(own_views) == 1 or _in_step_is_smaller(own_views, own_sizes[0], used)):
            found = [_labels_in_step(model, own_views, own_sizes[0], used)]
        elif len(own_views) == 1:
            found = [
                torch.cat([resized.take(rows).argmax(dim=0) for rows in resized.slices()])
                for resized in _resized(model, own_views[0], own_sizes, used)
            ]
        else:
            found = [scores.argmax(dim=0) for scores in _mean_scores(model, own_views, own_sizes, used)]
        labels.update(zip(members, found, strict=True))
    return [labels[index] for index in range(len(views))]


def _stacked(views: Sequence[View]) -> View:
    """The same view of several images as one."""
    if len(views) == 1:
        return views[0]
    return View(torch.cat([view.pixel_values for view in views]), views[0].size, views[0].flipped)
