# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""ViT-Adapter: a plain ViT that gives feature maps for dense prediction."""

from .configuration_vit_adapter import ViTAdapterConfig
from .modeling_vit_adapter import ViTAdapterBackbone

__all__ = ["ViTAdapterBackbone", "ViTAdapterConfig"]
