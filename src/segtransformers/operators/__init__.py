# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Deformable operators: reference and fallback in plain PyTorch, and compiled kernels selected by [`dispatcher`]."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .acceleration import Acceleration, accelerate
    from .deformable_attention import (
        FusedDeformableAttention,
        MultiScaleDeformableAttention,
        ms_deform_attn_fallback,
        ms_deform_attn_gather,
        ms_deform_attn_reference,
    )
    from .deformable_convolution import (
        DeformableConvolutionV3,
        DeformableConvolutionV4,
        dcnv3_fallback,
        dcnv3_gather,
        dcnv3_reference,
        dcnv4_fallback,
        dcnv4_gather,
        dcnv4_reference,
    )
    from .dispatcher import compiled_operators, gathers_in_exports
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "acceleration": ("Acceleration", "accelerate"),
            "deformable_attention": (
                "FusedDeformableAttention",
                "MultiScaleDeformableAttention",
                "ms_deform_attn_fallback",
                "ms_deform_attn_gather",
                "ms_deform_attn_reference",
            ),
            "deformable_convolution": (
                "DeformableConvolutionV3",
                "DeformableConvolutionV4",
                "dcnv3_fallback",
                "dcnv3_gather",
                "dcnv3_reference",
                "dcnv4_fallback",
                "dcnv4_gather",
                "dcnv4_reference",
            ),
            "dispatcher": ("compiled_operators", "gathers_in_exports"),
        },
        submodules=("dispatcher",),
    )

__all__ = [
    "Acceleration",
    "DeformableConvolutionV3",
    "DeformableConvolutionV4",
    "FusedDeformableAttention",
    "MultiScaleDeformableAttention",
    "accelerate",
    "compiled_operators",
    "dcnv3_fallback",
    "dcnv3_gather",
    "dcnv3_reference",
    "dcnv4_fallback",
    "dcnv4_gather",
    "dcnv4_reference",
    "gathers_in_exports",
    "ms_deform_attn_fallback",
    "ms_deform_attn_gather",
    "ms_deform_attn_reference",
]
