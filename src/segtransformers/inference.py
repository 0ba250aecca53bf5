# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Sliding-window arithmetic: pure functions on a model.

Source: `slide_inference` in `mmseg/models/segmentors/encoder_decoder.py` of MMSegmentation 0.20.
"""

from collections.abc import Callable, Sequence

import torch


def window_origins(size: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows that cover one side of an image; the last window is shifted back to fit.

    Args:
        size, window, stride: in pixels. Where `size <= window` there is one window, at 0.
    """
    count = max(size - window + stride - 1, 0) // stride + 1
    return [max(min(index * stride, size - window), 0) for index in range(count)]


def slide(
    forward: Callable[[torch.Tensor], torch.Tensor],
    pixel_values: torch.Tensor,
    window_size: Sequence[int],
    window_stride: Sequence[int],
    window_batch_size: int = 1,
) -> torch.Tensor:
    """Logits of large images from overlapping windows: every pixel is the mean over the windows that cover it.

    Args:
        forward: from windows `(n, 3, h, w)` to logits `(n, num_labels, h, w)`; `n` is at most
            `max(window_batch_size, 1)`. The windows of one image or of several may share a call.
        pixel_values: `(B, 3, H, W)`.
        window_size, window_stride: (height, width) in pixels; a shorter side of the image is taken whole.

    Returns:
        `(B, num_labels, H, W)`, accumulated in float32 (float64 where the logits are).

    Raises:
        ValueError: if a stride is not in 1 ... window.
    """
    for window, stride in zip(window_size, window_stride, strict=True):
        if not 1 <= stride <= window:
            raise ValueError(
                f"window_stride must be between 1 and window_size, got {tuple(window_stride)} for {tuple(window_size)}"
            )
    batch, _, height, width = pixel_values.shape
    rows = window_origins(height, window_size[0], window_stride[0])
    columns = window_origins(width, window_size[1], window_stride[1])
    window_height, window_width = min(window_size[0], height), min(window_size[1], width)
    places = [(image, y, x) for image in range(batch) for y in rows for x in columns]

    total = None
    for start in range(0, len(places), window_batch_size):
        chunk = places[start : start + window_batch_size]
        windows = [pixel_values[image, :, y : y + window_height, x : x + window_width] for image, y, x in chunk]
        logits = forward(torch.stack(windows))
        if total is None:
            dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
            total = logits.new_zeros((batch, logits.shape[1], height, width), dtype=dtype)
        for (image, y, x), window_logits in zip(chunk, logits, strict=True):
            total[image, :, y : y + window_height, x : x + window_width] += window_logits
    assert total is not None  # there is at least one window
    counts = total.new_zeros((height, width))
    for y in rows:
        for x in columns:
            counts[y : y + window_height, x : x + window_width] += 1
    return total.div_(counts)
