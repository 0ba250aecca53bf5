# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""transformers' Swin, ConvNeXt and ResNet with the options of MMSegmentation's backbones that transformers lacks."""

from .configuration_variants import SegConvNextConfig, SegResNetConfig, SegSwinConfig
from .modeling_variants import SegConvNextBackbone, SegResNetBackbone, SegSwinBackbone

__all__ = [
    "SegConvNextBackbone",
    "SegConvNextConfig",
    "SegResNetBackbone",
    "SegResNetConfig",
    "SegSwinBackbone",
    "SegSwinConfig",
]
