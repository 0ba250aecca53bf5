# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Original checkpoints into our models: maps as data, one module per family, reading and writing apart from them."""

from .convert import convert_checkpoint
from .mapping import ConversionError

__all__ = ["ConversionError", "convert_checkpoint"]
