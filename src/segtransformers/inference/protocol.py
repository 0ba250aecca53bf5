# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Inference options of an image: scales, mirrored views and sliding windows."""

from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel

from ..escaping import short_repr
from ..image_processing import check_scales
from ..models.layers.sliding_windows import BLENDS, SlidingWindow
from ..whole_numbers import LARGEST_SIDE, check_whole, pair_of_sides


@dataclass(frozen=True)
class InferenceProtocol:
    """The views of an image whose class probabilities are averaged, and the windows that each view is run in.

    `InferenceProtocol()` is the single-scale protocol of a checkpoint, and [`InferenceProtocol.multi_scale`] its
    multi-scale protocol.

    Attributes:
        scales: up to 32 factors, up to 16, on the size that the processor resizes an image to; None is the single-scale
            protocol. The resize follows the `multi_scale` settings of the processor, also for a scale of 1.
        flip: whether each scale has a mirrored view, too.
        window: (height, width) of the sliding windows in pixels. None takes the windows of the model's config.
        stride: (vertical, horizontal) step between windows in pixels, at most `window`. None takes two thirds of
            `window`, as most of the original configs do.
        blend: the weight of a pixel by its position in a window: "mean" (the originals'), "cosine" or "gaussian", which
            avoid seams at the borders of windows; see [`SlidingWindow`].
        margin: pixels at each border of a window that are left out, except at the borders of the image.

    Raises:
        ValueError: if a scale is not positive or too large, `flip` is no truth value, a side or step is not a positive
            whole number, the stride exceeds the window, a stride is given without a window, or blend or margin are not
            valid.
    """

    scales: tuple[float, ...] | None = None
    flip: bool = False
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    blend: str = "mean"
    margin: int = 0

    def __post_init__(self) -> None:
        if self.scales is not None:
            object.__setattr__(self, "scales", check_scales(self.scales))
        if self.flip not in (True, False, None):
            raise ValueError(f"flip must be True or False, got {short_repr(self.flip)}")
        object.__setattr__(self, "flip", bool(self.flip))
        for name in ("window", "stride"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, pair_of_sides(name, getattr(self, name)))
        if self.blend not in BLENDS:
            raise ValueError(f"blend must be one of {', '.join(BLENDS)}, got {short_repr(self.blend)}")
        check_whole("margin", self.margin, 0, LARGEST_SIDE)
        if self.stride is None:
            return
        if self.window is None:
            raise ValueError(f"stride {self.stride} needs a window: pass window=(height, width), too")
        if self.stride[0] > self.window[0] or self.stride[1] > self.window[1]:
            raise ValueError(
                f"stride must not exceed window, got {self.stride} and {self.window}: pixels would be left out"
            )

    @classmethod
    def multi_scale(cls, processor: Any) -> "InferenceProtocol":
        """Return the checkpoint's multi-scale protocol: the scales it was tested at, and mirrored views if it had them.

        Args:
            processor: a [`SegmentationImageProcessor`].

        Raises:
            ValueError: if the processor has no `multi_scale` settings.
        """
        settings = multi_scale_settings(processor)
        return cls(scales=tuple(settings["scales"]), flip=settings["flip"])

    def sliding_window(self, model: PreTrainedModel) -> SlidingWindow | None:
        """Return the windows in which `model` is run, or None if it is run on whole images.

        Raises:
            ValueError: if this protocol has a window, a blend or a margin and the model runs whole images.
        """
        config: Any = model.config
        takes_windows = hasattr(config, "sliding_window")
        is_weighted = self.blend != "mean" or self.margin > 0
        if self.window is None:
            window = config.sliding_window() if takes_windows else None
            if window is None and is_weighted:
                raise ValueError("blend and margin need windows, but the model runs whole images: give a window, too")
            return window if not is_weighted or window is None else self._blended(window)
        if not takes_windows:
            raise ValueError(f"{type(model).__name__} has no sliding window: leave window and stride out")
        height, width = self.window
        stride = self.stride or (max(height * 2 // 3, 1), max(width * 2 // 3, 1))
        own = SlidingWindow(self.window, stride, config.window_batch_size, config.square_window_if_smaller)
        return self._blended(own)

    def _blended(self, window: SlidingWindow) -> SlidingWindow:
        return replace(window, blend=self.blend, margin=self.margin)


def multi_scale_settings(processor: Any) -> dict[str, Any]:
    """Return the `multi_scale` settings of an image processor: scales, flip, and how images are resized for scales.

    Raises:
        ValueError: if it has none, as processors of transformers.
    """
    settings = getattr(processor, "multi_scale", None)
    if settings is None:
        raise ValueError(
            f"{type(processor).__name__} has no settings for several scales: use a SegmentationImageProcessor, or no "
            "scales"
        )
    return settings


__all__ = ["InferenceProtocol", "multi_scale_settings"]
