# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""InternImage: a convolutional backbone whose convolutions choose where they look."""

from .configuration_internimage import InternImageConfig
from .modeling_internimage import InternImageBackbone

__all__ = ["InternImageBackbone", "InternImageConfig"]
