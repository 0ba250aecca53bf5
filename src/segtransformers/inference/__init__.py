# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Inference on whole images: several scales, mirror images, sliding windows, and the pipeline."""

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

__all__ = [
    "View",
    "image_scores",
    "image_size",
    "image_views",
    "multi_scale_options",
    "segment_image",
    "segment_views",
    "window_in_use",
]
