# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""What the configs of all our `...ForSemanticSegmentation` models share."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class SegmentationConfig(PreTrainedConfig):
    r"""
    The test-time protocol of a checkpoint and its colours.

    Args:
        inference_mode (`str`, defaults to `"whole"`):
            `"whole"` runs the network on the whole image. `"slide"` runs it, in evaluation mode and on images larger
            than the window, on overlapping windows and averages their logits.
        window_size (pair of `int`, *optional*):
            Height and width of the window in pixels.
        window_stride (pair of `int`, *optional*):
            Vertical and horizontal step between windows in pixels, at most `window_size`.
        window_batch_size (`int`, defaults to 1):
            How many windows the network runs on at once.
        semantic_loss_ignore_index (`int`, defaults to 255):
            The label value of pixels that have no class.
        palette (`list` of `[red, green, blue]`, *optional*):
            The colour of each class, 0 to 255, for drawing.

    Raises:
        ValueError: if these contradict each other.
    """

    inference_mode: str = "whole"
    window_size: int | list[int] | tuple[int, ...] | None = None
    window_stride: int | list[int] | tuple[int, ...] | None = None
    window_batch_size: int = 1
    semantic_loss_ignore_index: int = 255
    palette: list[list[int]] | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        for name in ("window_size", "window_stride"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, [value, value] if isinstance(value, int) else list(value))
        if self.inference_mode not in ("whole", "slide"):
            raise ValueError(f"inference_mode must be 'whole' or 'slide', got {self.inference_mode!r}")
        if self.inference_mode == "slide" and (self.window_size is None or self.window_stride is None):
            raise ValueError("inference_mode='slide' needs window_size and window_stride")
        if self.window_batch_size < 1:
            raise ValueError(f"window_batch_size must be at least 1, got {self.window_batch_size}")
        # a number of labels chosen anew (from_pretrained(..., num_labels=N)) makes the old colours meaningless
        if self.palette is not None and len(self.palette) != self.num_labels:
            self.palette = None


__all__ = ["SegmentationConfig"]
