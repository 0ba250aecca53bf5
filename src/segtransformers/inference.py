# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""How a model is tested: sliding windows, several scales and mirror images, and huge photos band by band.

Sources: `slide_inference` and `aug_test` in `mmseg/models/segmentors/encoder_decoder.py`, `MultiScaleFlipAug` in
`mmseg/datasets/pipelines/test_time_aug.py` of MMSegmentation 0.20; `SETR_Resize` and `PadShortSide` in
`mmseg_custom/datasets/pipelines/transform.py` of ViT-Adapter.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.image_utils import get_image_size

from .image_processing import ResizedRows, keep_ratio_size, usual_image


def window_origins(size: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows that cover one side of an image; the last window is shifted back to fit.

    Args:
        size, window, stride: in pixels. Where `size <= window` there is one window, at 0.
    """
    count = max(size - window + stride - 1, 0) // stride + 1
    return [max(min(index * stride, size - window), 0) for index in range(count)]


def window_slices(
    size: Sequence[int], window_size: Sequence[int], window_stride: Sequence[int]
) -> list[tuple[EllipsisType, slice, slice]]:
    """Indices that cut the windows out of `(..., *size)`, row by row; a shorter side is taken whole.

    Args:
        size, window_size, window_stride: (height, width) in pixels.
    """
    height, width = (min(window, side) for window, side in zip(window_size, size, strict=True))
    return [
        (..., slice(y, y + height), slice(x, x + width))
        for y in window_origins(size[0], window_size[0], window_stride[0])
        for x in window_origins(size[1], window_size[1], window_stride[1])
    ]


def slide(
    forward: Callable[[torch.Tensor], torch.Tensor],
    pixel_values: torch.Tensor,
    window_size: Sequence[int],
    window_stride: Sequence[int],
    window_batch_size: int = 1,
) -> torch.Tensor:
    """Logits of large images from overlapping windows: every pixel is the mean over the windows that cover it.

    Args, errors: as of [`slide_bands`].

    Returns:
        `(B, num_labels, H, W)` in the dtype of the logits, accumulated in float32 or wider.
    """
    bands = list(slide_bands(forward, pixel_values, window_size, window_stride, window_batch_size))
    return bands[0] if len(bands) == 1 else torch.cat(bands, dim=2)


def slide_bands(
    forward: Callable[[torch.Tensor], torch.Tensor],
    pixel_values: torch.Tensor,
    window_size: Sequence[int],
    window_stride: Sequence[int],
    window_batch_size: int = 1,
) -> Iterator[torch.Tensor]:
    """[`slide`] from the top to the bottom of the image, as soon as rows are done: memory for one row of windows.

    Args:
        forward: from windows `(n * B, 3, h, w)` to logits `(n * B, num_labels, h, w)`, with n up to
            `window_batch_size`, in the order of [`window_slices`].
        pixel_values: `(B, 3, H, W)`.
        window_size, window_stride: (height, width) in pixels; a shorter side of the image is taken whole.
        window_batch_size: how many windows of each image share a call.

    Yields:
        `(B, num_labels, rows, W)`; the rows of all bands together are H.

    Raises:
        ValueError: if a stride is not in 1 ... window.
    """
    for window, stride in zip(window_size, window_stride, strict=True):
        if not 1 <= stride <= window:
            raise ValueError(
                f"window_stride must be between 1 and window_size, got {tuple(window_stride)} for {tuple(window_size)}"
            )
    batch, _, height, width = pixel_values.shape
    windows = window_slices((height, width), window_size, window_stride)
    counts = pixel_values.new_zeros((0, width), dtype=torch.float32)
    total, top = None, 0  # sums and counts are of the rows from `top` on, as far as windows were there
    for start in range(0, len(windows), window_batch_size):
        chunk = windows[start : start + window_batch_size]
        logits = forward(torch.cat([pixel_values[window] for window in chunk]))
        if total is None:
            dtype = torch.promote_types(logits.dtype, torch.float32)
            total = logits.new_zeros((batch, logits.shape[1], 0, width), dtype=dtype)
        added = chunk[-1][1].stop - top - len(counts)
        if added > 0:
            total = torch.cat([total, total.new_zeros((*total.shape[:2], added, width))], dim=2)
            counts = torch.cat([counts, counts.new_zeros((added, width))])
        for (_, rows, columns), part in zip(chunk, logits.unflatten(0, (len(chunk), batch)), strict=True):
            place = (..., slice(rows.start - top, rows.stop - top), columns)
            total[place] += part
            counts[place] += 1
        following = start + window_batch_size
        done = (windows[following][1].start if following < len(windows) else height) - top
        if done > 0:
            yield (total[:, :, :done] / counts[:done]).to(logits.dtype)
            total, counts, top = total[:, :, done:], counts[done:], top + done


@dataclass(frozen=True)
class View:
    """One of the pictures that a model sees of an image.

    Attributes:
        pixel_values: `(1, 3, h, w)`.
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
    usual = usual_image(image)
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


@contextlib.contextmanager
def _window(model: PreTrainedModel, window: Sequence[int] | None, stride: Sequence[int] | None) -> Iterator[None]:
    """Another window in the model's config for a while."""
    if window is None and stride is None:
        yield
        return
    config: Any = model.config
    fields = ("inference_mode", "window_size", "window_stride")
    if not all(hasattr(config, field) for field in fields):
        raise ValueError(f"{type(model).__name__} has no sliding window: leave window and stride out")
    before = {field: getattr(config, field) for field in fields}
    try:
        config.inference_mode = "slide"
        config.window_size = list(window) if window is not None else config.window_size
        if stride is None:  # as most originals: two thirds of the window
            stride = [max(side * 2 // 3, 1) for side in config.window_size]
        config.window_stride = list(stride)
        yield
    finally:
        for field, value in before.items():
            setattr(config, field, value)


def _logit_bands(model: PreTrainedModel, view: View) -> tuple[int, Iterator[torch.Tensor]]:
    """Height and, from top to bottom, bands `(num_labels, rows, w)` of the logits of a view, without its padding."""
    pixel_values = view.pixel_values.to(model.device, model.dtype)
    config: Any = model.config
    window = config.sliding_window() if hasattr(config, "sliding_window") else None

    def forward(part: torch.Tensor) -> torch.Tensor:
        return model(pixel_values=part).logits

    sides = tuple(pixel_values.shape[2:])
    height, width = view.size
    if window is not None and all(side >= least for side, least in zip(sides, window[0], strict=True)):
        bands = slide_bands(forward, pixel_values, window[0], window[1], config.window_batch_size)
        return height, _cut((band[0] for band in bands), height, width)
    logits = forward(pixel_values)[0]  # one window, or whole: the model knows
    if view.size == sides:
        return logits.shape[1], iter([logits])
    if logits.shape[1:] != sides:
        raise ValueError(f"{type(model).__name__} gives logits of another size than its images: it takes no padding")
    return height, iter([logits[:, :height, :width]])


def _cut(bands: Iterator[torch.Tensor], height: int, width: int) -> Iterator[torch.Tensor]:
    for band in bands:
        if height > 0:
            yield band[:, :height, :width]
        height -= band.shape[1]


def _score_bands(model: PreTrainedModel, view: View, size: tuple[int, int]) -> Iterator[tuple[slice, torch.Tensor]]:
    """Logits `(num_labels, rows, width)` at the size of the image, and which rows they are, from top to bottom."""
    height, bands = _logit_bands(model, view)
    resized = ResizedRows(bands, height, size)
    for rows in resized.slices():
        logits = resized.take(rows)
        yield rows, logits.flip(-1) if view.flipped else logits


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
    total: torch.Tensor | None = None
    with _window(model, window, stride):
        for view in views:
            for rows, logits in _score_bands(model, view, size):
                if total is None:
                    total = logits.new_zeros((len(logits), *size))
                total[:, rows] += logits.softmax(dim=0)
    assert total is not None  # there is at least one view
    return total.div_(len(views))


@torch.no_grad()
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

    A single view (no `scales`, no `flip`) is worked off in bands of rows, so that memory does not grow with the number
    of pixels times classes: photos of any size fit, if the model runs in windows. Several views hold the scores of all
    classes at the image's size, `num_labels * height * width` numbers.

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
        ValueError: for a scale that is not positive, a model without windows, a processor that cannot scale.
    """
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() first")
    views, size = image_views(processor, image, scales, flip), image_size(image)
    if len(views) > 1:
        options: dict[str, Any] = {"scales": scales, "flip": flip, "window": window, "stride": stride}
        return image_scores(model, processor, image, **options).argmax(dim=0)
    labels = torch.empty(size, dtype=torch.long, device=model.device)
    with _window(model, window, stride):
        for rows, logits in _score_bands(model, views[0], size):
            labels[rows] = logits.argmax(dim=0)
    return labels
