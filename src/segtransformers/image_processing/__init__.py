# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The image processors: the test-time transform of MMSegmentation 0.x, and label maps from logits."""

from .decision import Decision, by_rows, decision_of, label_map_classes
from .image_processor import SegmentationImageProcessor, SegmentationImageProcessorPil
from .inputs import as_8bit_image, integer_label_map, load_image, processor_bands, upright_rgb
from .label_maps import ResizedRows, resized_labels
from .options import check_enlargement, check_scales
from .resizing import keep_ratio_size, resize_image, resize_labels

__all__ = [
    "Decision",
    "by_rows",
    "decision_of",
    "label_map_classes",
    "resized_labels",
    "ResizedRows",
    "SegmentationImageProcessor",
    "SegmentationImageProcessorPil",
    "as_8bit_image",
    "check_enlargement",
    "check_scales",
    "integer_label_map",
    "keep_ratio_size",
    "load_image",
    "processor_bands",
    "resize_image",
    "resize_labels",
    "upright_rgb",
]
