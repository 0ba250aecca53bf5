# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""UperNet over any backbone."""

from .configuration_seg_upernet import SegUperNetConfig
from .modeling_seg_upernet import SegUperNetForSemanticSegmentation

__all__ = ["SegUperNetConfig", "SegUperNetForSemanticSegmentation"]
