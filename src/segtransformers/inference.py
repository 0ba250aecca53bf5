# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Sliding-window arithmetic: pure functions on a model.

Source: `slide_inference` in `mmseg/models/segmentors/encoder_decoder.py` of MMSegmentation 0.20.
"""

from collections.abc import Callable, Sequence
from types import EllipsisType

import torch


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

    Args:
        forward: from windows `(n * B, 3, h, w)` to logits `(n * B, num_labels, h, w)`, with n up to
            `window_batch_size`, in the order of [`window_slices`].
        pixel_values: `(B, 3, H, W)`.
        window_size, window_stride: (height, width) in pixels; a shorter side of the image is taken whole.
        window_batch_size: how many windows of each image share a call.

    Returns:
        `(B, num_labels, H, W)` in the dtype of the logits, accumulated in float32 or wider.

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
    total, counts = None, pixel_values.new_zeros((height, width), dtype=torch.float32)
    for start in range(0, len(windows), window_batch_size):
        chunk = windows[start : start + window_batch_size]
        logits = forward(torch.cat([pixel_values[window] for window in chunk]))
        if total is None:
            dtype = torch.promote_types(logits.dtype, torch.float32)
            total = logits.new_zeros((batch, logits.shape[1], height, width), dtype=dtype)
        for place, window_logits in zip(chunk, logits.unflatten(0, (len(chunk), batch)), strict=True):
            total[place] += window_logits
            counts[place] += 1
    assert total is not None  # there is at least one window
    return total.div_(counts).to(logits.dtype)
