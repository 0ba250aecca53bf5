# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Mask2Former, for semantic segmentation, over any backbone."""

from .configuration_seg_mask2former import SegMask2FormerConfig
from .modeling_seg_mask2former import SegMask2FormerForSemanticSegmentation

__all__ = ["SegMask2FormerConfig", "SegMask2FormerForSemanticSegmentation"]
