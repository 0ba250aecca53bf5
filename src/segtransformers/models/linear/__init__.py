# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""A linear classifier over any backbone."""

from .configuration_seg_linear import SegLinearConfig
from .modeling_seg_linear import SegLinearForSemanticSegmentation

__all__ = ["SegLinearConfig", "SegLinearForSemanticSegmentation"]
