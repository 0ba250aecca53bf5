# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The image processor: the test-time transform of MMSegmentation 0.x, and label maps from logits."""

from .image_processor import (
    ResizedRows,
    SegmentationImageProcessor,
    SegmentationImageProcessorPil,
    argmax_resized,
    keep_ratio_size,
    resize_image,
    resize_labels,
    usual_image,
)

__all__ = [
    "ResizedRows",
    "SegmentationImageProcessor",
    "SegmentationImageProcessorPil",
    "argmax_resized",
    "keep_ratio_size",
    "resize_image",
    "resize_labels",
    "usual_image",
]
