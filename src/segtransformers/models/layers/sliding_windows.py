# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Sliding windows: logits of a large image as the mean over overlapping crops.

Source: `slide_inference` in `mmseg/models/segmentors/encoder_decoder.py` of MMSegmentation 0.20. Weighted means, which
show no seams at the borders of windows, follow nnU-Net (https://arxiv.org/abs/1809.10486).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import EllipsisType
from typing import Protocol

import torch

from ...whole_numbers import LARGEST_SIDE, check_whole, pair_of_sides

BLENDS = ("mean", "cosine", "gaussian")
MAX_BAND_BYTES = 1 << 23  # rows of merged logits are divided and yielded in pieces of at most this size

WindowIndex = tuple[EllipsisType, slice, slice]


@dataclass(frozen=True)
class SlidingWindow:
    """Size and stride of the windows that cover an image.

    Attributes:
        size: (height, width) in pixels. An image that is shorter along a side is taken whole along it.
        stride: (vertical, horizontal) step between windows in pixels, at most `size`.
        batch_size: number of windows of each image that share one forward pass.
        square_if_smaller: whether an image that is smaller than the window on both sides is run in squares of its
            shorter side, as DINOv3's segmentors are.
        blend: the weight of a pixel by its position in the window. "mean" weights all alike, as the originals do.
            "cosine" is half a period of a sine along each side, and "gaussian" has a standard deviation of an eighth of
            the side, so that the logits of the center prevail.
        margin: pixels at each border of a window that are left out, except at the borders of the image.

    Raises:
        ValueError: if a number is not whole or not positive, a stride exceeds its side, the blend is unknown, or the
            margins leave out pixels.
    """

    size: tuple[int, int]
    stride: tuple[int, int]
    batch_size: int = 1
    square_if_smaller: bool = False
    blend: str = "mean"
    margin: int = 0

    def __post_init__(self) -> None:
        for name in ("size", "stride"):
            object.__setattr__(self, name, pair_of_sides(f"{name} of a window", getattr(self, name)))
        if any(step > side for step, side in zip(self.stride, self.size, strict=True)):
            raise ValueError(
                f"window_stride must not exceed window_size, got {list(self.stride)} and {list(self.size)}: pixels "
                "would be left out"
            )
        check_whole("window_batch_size", self.batch_size, 1, LARGEST_SIDE)
        if self.blend not in BLENDS:
            raise ValueError(f"blend must be one of {', '.join(BLENDS)}, got {self.blend!r}")
        check_whole("margin", self.margin, 0, LARGEST_SIDE)
        if any(side - 2 * self.margin < step for side, step in zip(self.size, self.stride, strict=True)):
            raise ValueError(
                f"a margin of {self.margin} leaves out pixels between windows of {list(self.size)} at steps of "
                f"{list(self.stride)}: margin must be at most half of size minus stride"
            )

    def covers(self, image_size: Sequence[int]) -> bool:
        """Return whether one window holds a whole image of (height, width) pixels."""
        fitted = self.fitted(image_size)
        return all(side <= window for side, window in zip(image_size, fitted.size, strict=True))

    def fitted(self, image_size: Sequence[int]) -> "SlidingWindow":
        """Return the window for an image of (height, width) pixels: this one, or a square in a small image."""
        height, width = image_size[0], image_size[1]
        if not self.square_if_smaller or height >= self.size[0] or width >= self.size[1]:
            return self
        side = min(height, width)
        margin = min(self.margin, side // 4)
        stride = tuple(min(step, side - 2 * margin) for step in self.stride)
        return replace(self, size=(side, side), stride=stride, margin=margin, square_if_smaller=False)

    def indices(self, image_size: Sequence[int]) -> list[WindowIndex]:
        """Return the indices that cut the windows out of a tensor `(..., height, width)`, row by row.

        Args:
            image_size: (height, width) in pixels.
        """
        height, width = (min(window, side) for window, side in zip(self.size, image_size, strict=True))
        return [
            (..., slice(y, y + height), slice(x, x + width))
            for y in window_origins(image_size[0], self.size[0], self.stride[0])
            for x in window_origins(image_size[1], self.size[1], self.stride[1])
        ]


def window_origins(size: int, window: int, stride: int) -> list[int]:
    """Return the first pixels of the windows that cover one side of an image.

    The last window is shifted back so that it ends with the image. Where `size <= window` there is one window, at 0.

    Args:
        size, window, stride: in pixels.
    """
    count = max(size - window + stride - 1, 0) // stride + 1
    return [max(min(index * stride, size - window), 0) for index in range(count)]


def slide(
    forward: Callable[[torch.Tensor], torch.Tensor], pixel_values: torch.Tensor, window: SlidingWindow
) -> torch.Tensor:
    """Merge the logits of overlapping windows: each pixel is a weighted mean over the windows that cover it.

    Args:
        forward: maps windows `(n * B, C, h, w)` to logits `(n * B, num_labels, h, w)`, with n up to
            `window.batch_size`.
        pixel_values: `(B, C, H, W)`.

    Returns:
        `(B, num_labels, H, W)` in the dtype of the logits, accumulated in float32 or wider.
    """
    merge = _merge if torch.compiler.is_exporting() else _merge_outside_graphs
    return merge(forward, pixel_values, window)


def _merge(
    forward: Callable[[torch.Tensor], torch.Tensor], pixel_values: torch.Tensor, window: SlidingWindow
) -> torch.Tensor:
    merged, top = None, 0
    for band in slide_bands(forward, pixel_values, window):
        if merged is None:
            merged = band.new_empty((*band.shape[:2], *pixel_values.shape[2:]))
        merged[:, :, top : top + band.shape[2]] = band
        top += band.shape[2]
    assert merged is not None  # every image has at least one window
    return merged


# torch.compile would unroll the loop over windows into one graph for each image size. It stops here instead and
# compiles `forward`, whose input has the size of a window.
_merge_outside_graphs = torch.compiler.disable(_merge, recursive=False)


class PixelSource(Protocol):
    """A tensor `(B, C, H, W)`, or an object that makes such a tensor's windows when they are needed."""

    @property
    def shape(self) -> Sequence[int]: ...

    @property
    def device(self) -> torch.device: ...

    def __getitem__(self, index: WindowIndex, /) -> torch.Tensor: ...


def slide_bands(
    forward: Callable[[torch.Tensor], torch.Tensor],
    pixel_values: PixelSource,
    window: SlidingWindow,
    rows: slice | None = None,
) -> Iterator[torch.Tensor]:
    """Run [`slide`] from top to bottom and yield rows of the result as soon as no later window adds to them.

    Memory holds the sums of one row of windows, `num_labels * window height * W` numbers, and the logits of one call.
    Where a row has fewer windows than `window.batch_size`, a call takes several rows.

    Args:
        forward, pixel_values, window: as for [`slide`].
        rows: the rows that are wanted; None takes all. Each pixel is computed by the same calls in the same order as
            with all rows, so the result is the same bit for bit.

    Yields:
        `(B, num_labels, rows, W)`; the bands together have H rows, or those that are wanted.
    """
    batch, _, height, width = pixel_values.shape
    first_row, last_row = (0, height) if rows is None else (rows.start, rows.stop)
    window = window.fitted((height, width))
    calls = [
        call
        for call in windows_of_each_call((height, width), window)
        if call[-1][1].stop > first_row and call[0][1].start < last_row
    ]
    held_rows = max(call[-1][1].stop - call[0][1].start for call in calls)
    row_weights, column_weights = (
        _weights(side, window, axis, pixel_values.device) for axis, side in enumerate((height, width))
    )
    row_sums, column_sums = (_sums(weights, side) for weights, side in ((row_weights, height), (column_weights, width)))
    is_weighted = window.blend != "mean" or window.margin > 0
    sums = None  # over windows; its first row is the first row of the current call
    for index, call in enumerate(calls):
        top = call[0][1].start
        logits = forward(torch.cat([pixel_values[window_index] for window_index in call]))
        if sums is None:
            dtype = torch.promote_types(logits.dtype, torch.float32)
            sums = logits.new_zeros((batch, logits.shape[1], held_rows, width), dtype=dtype)
        for (_, window_rows, columns), part in zip(call, logits.unflatten(0, (len(call), batch)), strict=True):
            covered = sums[..., window_rows.start - top : window_rows.stop - top, columns]
            if is_weighted:
                weights = row_weights[window_rows.start][:, None] * column_weights[columns.start]
                covered.addcmul_(part.to(sums.dtype), weights.to(sums.dtype))
            else:
                covered += part
        finished_rows = (calls[index + 1][0][1].start if index + 1 < len(calls) else last_row) - top
        step = max(finished_rows, 1)
        if not torch.compiler.is_compiling():  # the number of elements would fix the batch size of an exported program
            step = max(MAX_BAND_BYTES // (sums[:, :, 0].numel() * sums.element_size()), 1)
        for start in range(max(first_row - top, 0), finished_rows, step):
            stop = min(start + step, finished_rows)
            divisors = row_sums[top + start : top + stop, None] * column_sums
            yield (sums[:, :, start:stop] / divisors).to(logits.dtype)
        if finished_rows > 0:
            # move the unfinished rows up, in pieces that do not overlap so that no copy of all rows is made
            for start in range(0, held_rows - finished_rows, finished_rows):
                stop = min(start + finished_rows, held_rows - finished_rows)
                sums[:, :, start:stop] = sums[:, :, start + finished_rows : stop + finished_rows]
            sums[:, :, held_rows - finished_rows :] = 0


def windows_of_each_call(image_size: Sequence[int], window: SlidingWindow) -> list[list[WindowIndex]]:
    """Group the windows by forward pass: in order, and a row that needs several passes shares none with the next."""
    windows = window.indices(image_size)
    columns = sum(index[1] == windows[0][1] for index in windows)
    if columns <= window.batch_size:
        return [windows[start : start + window.batch_size] for start in range(0, len(windows), window.batch_size)]
    calls = -(-columns // window.batch_size)  # for each row, of sizes as equal as possible
    ends = [columns * (call + 1) // calls for call in range(calls)]
    return [
        windows[row + start : row + end]
        for row in range(0, len(windows), columns)
        for start, end in zip([0, *ends], ends, strict=False)
    ]


def _weights(size: int, window: SlidingWindow, axis: int, device: torch.device) -> dict[int, torch.Tensor]:
    """Return the weights of the pixels of each window along one side, float32, by the window's first pixel.

    The weight of a pixel is the product of those of its row and of its column.

    Args:
        size: of the image along the axis, in pixels.
    """
    length = min(window.size[axis], size)
    positions = (torch.arange(length, device=device, dtype=torch.float32) + 0.5) / length
    weights = torch.ones_like(positions)
    if window.blend == "cosine":
        weights = torch.sin(math.pi * positions)
    elif window.blend == "gaussian":
        weights = torch.exp(-0.5 * ((positions - 0.5) * 8) ** 2)
    result = {}
    for origin in window_origins(size, window.size[axis], window.stride[axis]):
        own = weights.clone()
        if window.margin and origin > 0:
            own[: window.margin] = 0
        if window.margin and origin + length < size:
            own[length - window.margin :] = 0
        result[origin] = own
    return result


def _sums(weights: dict[int, torch.Tensor], size: int) -> torch.Tensor:
    """Sum the weights of all windows at each pixel of one side, float32 `(size,)`."""
    sums = next(iter(weights.values())).new_zeros(size)
    for origin, own in weights.items():
        sums[origin : origin + len(own)] += own
    return sums


__all__ = [
    "BLENDS",
    "PixelSource",
    "SlidingWindow",
    "WindowIndex",
    "slide",
    "slide_bands",
    "window_origins",
    "windows_of_each_call",
]
