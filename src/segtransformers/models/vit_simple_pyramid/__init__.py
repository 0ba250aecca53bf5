# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""A plain ViT with a simple feature pyramid, as in EVA-02's and BEiT's segmentation models."""

from .configuration_vit_simple_pyramid import ViTSimplePyramidConfig
from .modeling_vit_simple_pyramid import ViTSimplePyramidBackbone

__all__ = ["ViTSimplePyramidBackbone", "ViTSimplePyramidConfig"]
