# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Plain vision transformers from timm as trunks. Nothing outside this folder knows timm."""

from timm.layers import DropPath

from .architectures import describe_trunk
from .blocks import TRUNK_BLOCKS, plain_block
from .modeling_trunk import TokenLayout, Trunk, TrunkEmbeddings, init_trunk_weights
from .positions import Grid
from .pretrained import FromTrunkMixin, trunk_normalization

# What device maps and FSDP must not split: a weight is used outside the module that owns it
UNSPLIT_MODULES = [TrunkEmbeddings.__name__, *(block.__name__ for block in TRUNK_BLOCKS.values())]

__all__ = [
    "UNSPLIT_MODULES",
    "DropPath",
    "FromTrunkMixin",
    "Grid",
    "TokenLayout",
    "Trunk",
    "TrunkEmbeddings",
    "describe_trunk",
    "init_trunk_weights",
    "plain_block",
    "trunk_normalization",
]
