# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Plain vision transformers from timm as trunks. Nothing outside this folder knows timm."""

from timm.layers import DropPath

from .architectures import describe_trunk
from .backbone import TrunkBackbone
from .blocks import plain_block
from .modeling_trunk import TokenLayout, Trunk, TrunkEmbeddings, init_trunk_weights
from .positions import Grid
from .pretrained import FromTrunkMixin, trunk_normalization

__all__ = [
    "DropPath",
    "FromTrunkMixin",
    "Grid",
    "TokenLayout",
    "Trunk",
    "TrunkBackbone",
    "TrunkEmbeddings",
    "describe_trunk",
    "init_trunk_weights",
    "plain_block",
    "trunk_normalization",
]
