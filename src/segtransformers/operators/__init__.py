# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Operators with a pure PyTorch reference and a seam for compiled kernels."""

from .deformable_attention import MultiScaleDeformableAttention, ms_deform_attn_reference

__all__ = ["MultiScaleDeformableAttention", "ms_deform_attn_reference"]
