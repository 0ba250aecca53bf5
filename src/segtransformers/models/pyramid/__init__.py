# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The convolutional pyramid beside a plain ViT, which ViT-Adapter and ViT-CoMer share."""

from .modules_pyramid import SpatialPrior

__all__ = ["SpatialPrior"]
