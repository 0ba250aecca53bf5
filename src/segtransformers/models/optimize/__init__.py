# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Faster layers for inference. [`optimize_for_inference`] is the only way to them."""

from .optimize import OPTIMIZATIONS, optimize_for_inference, optimize_if_ours

__all__ = ["OPTIMIZATIONS", "optimize_for_inference", "optimize_if_ours"]
