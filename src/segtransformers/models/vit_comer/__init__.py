# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""ViT-CoMer: a plain ViT and a convolutional pyramid that inform each other."""

from .configuration_vit_comer import ViTCoMerConfig
from .modeling_vit_comer import ViTCoMerBackbone

__all__ = ["ViTCoMerBackbone", "ViTCoMerConfig"]
