# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""InternImage and FlashInternImage: a backbone of deformable convolutions."""

from .configuration_internimage import InternImageConfig
from .modeling_internimage import InternImageBackbone

__all__ = ["InternImageBackbone", "InternImageConfig"]
