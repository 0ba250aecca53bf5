# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""A plain ViT from timm as a backbone, such as DINOv2 or DINOv3."""

from .configuration_plain_vit import PlainViTConfig
from .modeling_plain_vit import PlainViTBackbone

__all__ = ["PlainViTBackbone", "PlainViTConfig"]
