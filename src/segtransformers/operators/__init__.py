# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Operators with a pure PyTorch reference and a seam for compiled kernels."""

from .deformable_attention import MultiScaleDeformableAttention, ms_deform_attn_reference
from .deformable_convolution import DeformableConvolutionV3, dcnv3_reference

__all__ = [
    "DeformableConvolutionV3",
    "MultiScaleDeformableAttention",
    "dcnv3_reference",
    "ms_deform_attn_reference",
]
