# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Segmenter: a plain ViT with a mask transformer or a linear layer as decoder."""

from .configuration_segmenter import SegmenterConfig, SegmenterViTConfig
from .modeling_segmenter import SegmenterForSemanticSegmentation, SegmenterViTBackbone

__all__ = ["SegmenterConfig", "SegmenterForSemanticSegmentation", "SegmenterViTBackbone", "SegmenterViTConfig"]
