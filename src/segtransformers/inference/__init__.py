# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Inference on whole images: several scales, mirror images, sliding windows, and the pipeline."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .pipeline import SegmentationPipeline
    from .segmentation import (
        View,
        image_scores,
        image_size,
        image_views,
        multi_scale_options,
        segment_image,
        segment_views,
        window_in_use,
    )
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "pipeline": ("SegmentationPipeline",),
            "segmentation": (
                "View",
                "image_scores",
                "image_size",
                "image_views",
                "multi_scale_options",
                "segment_image",
                "segment_views",
                "window_in_use",
            ),
        },
    )

__all__ = [
    "SegmentationPipeline",
    "View",
    "image_scores",
    "image_size",
    "image_views",
    "multi_scale_options",
    "segment_image",
    "segment_views",
    "window_in_use",
]
