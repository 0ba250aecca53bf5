# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Plain vision transformers from timm as trunks. No other folder imports timm."""

from .architectures import describe_trunk
from .backbone import TrunkBackbone
from .blocks import plain_block
from .modeling_trunk import Trunk
from .pretrained import check_trunk_available, trunk_normalization, trunk_repository

__all__ = [
    "Trunk",
    "TrunkBackbone",
    "check_trunk_available",
    "describe_trunk",
    "plain_block",
    "trunk_normalization",
    "trunk_repository",
]
