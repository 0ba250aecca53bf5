# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Layers that compute in the precision of their weights, also under autocast."""

import torch
from torch import nn
from transformers.utils.generic import maybe_autocast


def without_autocast(layer: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Call a layer outside of autocast, with features in the dtype of its weights.

    Sampling offsets need this: in half precision they would be off by parts of a pixel.
    """
    weight = getattr(layer, "weight", getattr(layer, "bias", None))  # an optimized layer's weights are packed
    if isinstance(weight, torch.Tensor) and weight.is_floating_point():  # quantized layers take any dtype
        features = features.to(weight.dtype)
    with maybe_autocast(features.device.type, enabled=False):
        return layer(features)


__all__ = ["without_autocast"]
