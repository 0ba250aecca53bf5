# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""SegFormer's head over any backbone."""

from .configuration_seg_segformer import SegSegformerConfig
from .modeling_seg_segformer import SegSegformerForSemanticSegmentation

__all__ = ["SegSegformerConfig", "SegSegformerForSemanticSegmentation"]
