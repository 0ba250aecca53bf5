# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Original checkpoints into our models: maps as data, one module per family, reading and writing apart from them."""

from .convert import convert_checkpoint
from .mapping import ConversionError
from .trunks import load_pretrained_trunk

__all__ = ["ConversionError", "convert_checkpoint", "load_pretrained_trunk"]
