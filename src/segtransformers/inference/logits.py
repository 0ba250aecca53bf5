# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Logits of a view at the size of its images, in bands of rows.

Source: `slide_inference` and `whole_inference` in `mmseg/models/segmentors/encoder_decoder.py` of MMSegmentation 0.20.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from ..image_processing import ResizedRows
from ..models.layers.sliding_windows import SlidingWindow, slide_bands
from .views import View


def resized_logits(
    model: PreTrainedModel, view: View, sizes: Sequence[tuple[int, int]], window: SlidingWindow | None
) -> list[ResizedRows]:
    """Run the model on a view, and resize the logits to the size of each of its images.

    For one image the logits are computed while they are taken, band by band. For several they are held whole.

    Args:
        model: in evaluation mode.
        view: of one image or several.
        sizes: (height, width) of each image.
        window: the windows that the view is run in; None runs it whole.

    Raises:
        ValueError: if the model is in training mode, has no logits of pixels, or takes no padding.
    """
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() first")
    height, bands = _logit_bands(model, view, window)
    if len(sizes) == 1:
        return [ResizedRows((band[0] for band in bands), height, sizes[0])]
    logits = torch.cat(list(bands), dim=2)
    return [ResizedRows(iter([one]), height, size) for one, size in zip(logits, sizes, strict=True)]


def upright(logits: ResizedRows, rows: slice, flipped: bool) -> torch.Tensor:
    """Return the logits of some rows, mirrored back, `(num_labels, rows, width)`."""
    taken = logits.take(rows)
    return taken.flip(-1) if flipped else taken


def rows_held(view: View, window: SlidingWindow | None) -> int:
    """Return the number of rows of logits that are in memory while a view is run."""
    height = view.pixel_values.shape[2]
    return min(window.size[0], height) if window is not None and _fills_window(view, window) else height


def _fills_window(view: View, window: SlidingWindow) -> bool:
    """Return whether no side of the view is shorter than the window, so that logits can come band by band."""
    return all(side >= least for side, least in zip(view.pixel_values.shape[2:], window.size, strict=True))


def _logit_bands(
    model: PreTrainedModel, view: View, window: SlidingWindow | None
) -> tuple[int, Iterator[torch.Tensor]]:
    """Return the height of the logits, and their bands `(B, num_labels, rows, w)` from top to bottom, unpadded."""
    pixel_values = view.pixel_values.to(model.device, model.dtype)
    takes_window = hasattr(model.config, "sliding_window")

    def forward(part: torch.Tensor, sliding_window: SlidingWindow | bool = False) -> torch.Tensor:
        options: dict[str, Any] = {"sliding_window": sliding_window} if takes_window else {}
        logits = getattr(model(pixel_values=part, **options), "logits", None)
        if logits is None or logits.ndim != 4:
            raise ValueError(
                f"{type(model).__name__} returns no logits of pixels: a model for semantic segmentation is needed"
            )
        return logits

    height, width = view.size
    if window is not None and _fills_window(view, window):
        return height, _without_padding(slide_bands(forward, pixel_values, window), height, width)
    # The model itself handles views smaller than its window: Segmenter enlarges them.
    logits = forward(pixel_values, False if window is None else window)
    input_size = tuple(pixel_values.shape[2:])
    if view.size == input_size:
        return logits.shape[2], iter([logits])
    if logits.shape[2:] != input_size:
        raise ValueError(
            f"{type(model).__name__} returns logits of another size than its input, so padding cannot be cut off"
        )
    return height, iter([logits[:, :, :height, :width]])


def _without_padding(bands: Iterator[torch.Tensor], height: int, width: int) -> Iterator[torch.Tensor]:
    for band in bands:
        if height > 0:
            yield band[:, :, :height, :width]
        height -= band.shape[2]


__all__ = ["resized_logits", "rows_held", "upright"]
