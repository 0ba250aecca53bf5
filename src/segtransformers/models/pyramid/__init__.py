# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The convolutional pyramid beside a plain ViT: what ViT-Adapter and ViT-CoMer share."""

from .modules_pyramid import ConvNormReluSequence, DeformableAttention, SamplingGeometry, SpatialPrior

__all__ = ["ConvNormReluSequence", "DeformableAttention", "SamplingGeometry", "SpatialPrior"]
