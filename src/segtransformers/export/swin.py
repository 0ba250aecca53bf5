# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Swin's layer for programs that take images of any size."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.swin.modeling_swin import SwinLayer

from ..models.layers.token_grid import Grid
from ..models.trunk.attention import join_windows, split_windows


class AnySizeSwinLayer(nn.Module):
    """`SwinLayer` of transformers' `SwinBackbone`, without comparisons of sizes.

    `SwinLayer` crops only where it padded and leaves the number of windows to be inferred. A program traced from it
    refuses one image, images of a single row of windows, and images that fill their windows.

    Args:
        layer: its inner layers are taken over.
    """

    def __init__(self, layer: SwinLayer):
        super().__init__()
        self.window_size, self.shift_size = layer.window_size, layer.shift_size
        self.attention, self.mlp = layer.attention, layer.mlp
        self.layernorm_before, self.layernorm_after = layer.layernorm_before, layer.layernorm_after

    def forward(
        self, hidden_states: torch.Tensor, input_dimensions: Grid, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Map tokens `(B, h * w, C)` of a grid (h, w) to tokens and to what the attention returns beside them."""
        options.pop("always_partition", None)  # backbones always do
        (height, width), window, shift = input_dimensions, self.window_size, self.shift_size
        padded = (height + window - 1) // window * window, (width + window - 1) // window * window
        features = self.layernorm_before(hidden_states).unflatten(1, (height, width))
        features = F.pad(features, (0, 0, 0, padded[1] - width, 0, padded[0] - height))
        mask = None
        if shift:
            features = features.roll((-shift, -shift), (1, 2))
            mask = self._mask(padded, features)
        attended, weights = self.attention(split_windows(features.flatten(1, 2), padded, window), mask, **options)
        features = join_windows(attended, padded, window).unflatten(1, padded)
        if shift:
            features = features.roll((shift, shift), (1, 2))
        for axis, side in enumerate(input_dimensions, start=1):  # a slice would be left out where nothing is padded
            features = features.index_select(axis, torch.arange(side, device=features.device))
        hidden_states = hidden_states + features.flatten(1, 2)
        return hidden_states + self.mlp(self.layernorm_after(hidden_states)), weights

    def _mask(self, padded: Grid, like: torch.Tensor) -> torch.Tensor:
        """Return -100 between places that only the shift brought together: `(windows, window^2, window^2)`."""
        regions = []
        for length in padded:
            places = torch.arange(length, device=like.device)
            regions.append((places >= length - self.window_size).int() + (places >= length - self.shift_size).int())
        region = (regions[0][:, None] * 3 + regions[1]).flatten()[None, :, None].to(like.dtype)
        windows = split_windows(region, padded, self.window_size)[:, :, 0]
        return (windows[:, None] != windows[:, :, None]).to(like.dtype) * -100.0


__all__ = ["AnySizeSwinLayer"]
