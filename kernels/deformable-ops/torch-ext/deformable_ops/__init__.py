# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Compiled deformable attention, DCNv3 and DCNv4: weighted sums of bilinear samples at learned positions.

`dense` and `matrix` have operators for the rest of a model, for inference on a CPU.
"""

from . import dense, layers, matrix
from ._ops import add_op_namespace_prefix, ops
from .functions import dcnv3, dcnv4, ms_deform_attn, ms_deform_attn_fused

__all__ = [
    "add_op_namespace_prefix",
    "dcnv3",
    "dcnv4",
    "dense",
    "layers",
    "matrix",
    "ms_deform_attn",
    "ms_deform_attn_fused",
    "ops",
]
