# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Self-attention of a trunk where timm's own does not fit.

Each class takes over the layers of timm's attention under the same names, and calls each layer's own `forward`.

Sources: the windows follow `segmentation/mmseg_custom/models/backbones/base/{vit,uniperceiver}.py` of
czczup/ViT-Adapter; BEiT (https://arxiv.org/abs/2106.08254); EVA-02 (https://arxiv.org/abs/2303.11331).
"""

from typing import Any

import torch
from timm.layers import Attention as PlainAttention
from timm.layers import apply_rot_embed_cat
from timm.models.beit import Attention as TimmBeitAttention
from timm.models.eva import EvaAttention as TimmEvaAttention
from torch import nn
from torch.nn import functional as F

from ..layers.token_grid import Grid, has_variable_size


def split_windows(tokens: torch.Tensor, grid: Grid, window: int) -> torch.Tensor:
    """Split `(B, h * w, C)` into windows `(B * rows * columns, window^2, C)`, padded with zeros to full windows."""
    (height, width), (rows, columns) = grid, _window_counts(grid, window)
    windows = F.pad(tokens.unflatten(1, grid), (0, 0, 0, columns * window - width, 0, rows * window - height))
    windows = windows.unflatten(1, (rows, window)).unflatten(3, (columns, window)).transpose(2, 3)
    return windows.flatten(3, 4).flatten(0, 2)


def join_windows(windows: torch.Tensor, grid: Grid, window: int) -> torch.Tensor:
    """Undo [`split_windows`]."""
    tokens = windows.unflatten(0, (-1, *_window_counts(grid, window))).unflatten(3, (window, window)).transpose(2, 3)
    tokens = tokens.flatten(3, 4).flatten(1, 2)
    if has_variable_size(grid):  # a slice would be left out where the traced image fills its windows
        rows, columns = (torch.arange(side, device=tokens.device) for side in grid)
        return tokens.index_select(1, rows).index_select(2, columns).flatten(1, 2)
    return tokens[:, : grid[0], : grid[1]].flatten(1, 2)


def _window_counts(grid: Grid, window: int) -> Grid:
    counts = (grid[0] + window - 1) // window, (grid[1] + window - 1) // window
    if has_variable_size(grid):
        # torch.export would fix a single row or column, or exclude it. The added windows hold zeros.
        at_least_two: Any = torch.sym_max
        return at_least_two(counts[0], 2), at_least_two(counts[1], 2)
    return counts


class DotProductAttention(nn.Module):
    """Scaled dot-product attention as a layer, so that `optimize_for_inference` can replace it."""

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, logit_bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Map `(B, heads, N, head_dim)` each to `(B, N, heads * head_dim)`.

        Args:
            logit_bias: `(1, heads, N, N)`; the queries come before the keys.
        """
        if logit_bias is not None and torch.compiler.is_exporting():
            # the exporter to ONNX rejects the strides that fused attention with a bias returns
            logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
            attended = (logits + logit_bias).softmax(-1) @ value
        else:
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=logit_bias)
        return attended.transpose(1, 2).flatten(2)


class WindowAttention(nn.Module):
    """Attention among the tokens of each window of `window x window` tokens.

    The token grid is padded with zeros at the right and the bottom to full windows. Padded keys take part in the
    softmax. ViT-Adapter pads queries, keys and values, so that padded keys are zero. With Uni-Perceiver it pads the
    tokens before the projection, so that padded keys equal the projection's bias.

    Args:
        attention: timm's attention, whose layers are taken over.
        window: side of a window in tokens.
        pad_before_projection: whether to pad the tokens, as with Uni-Perceiver, not queries, keys and values.
    """

    def __init__(self, attention: PlainAttention, window: int, pad_before_projection: bool):
        super().__init__()
        self.window, self.pad_before_projection = window, pad_before_projection
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.qkv = attention.qkv
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm
        self.norm = attention.norm
        self.proj = attention.proj
        self.attend = DotProductAttention()

    def forward(self, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Map `(B, h * w, C)` on a grid `(h, w)` to the same shape."""
        window = self.window
        if self.pad_before_projection:
            qkv = self.qkv(split_windows(tokens, grid, window))
        else:
            qkv = split_windows(self.qkv(tokens), grid, window)
        # each (B * rows * columns, heads, window^2, head_dim)
        query, key, value = qkv.unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        attended = self.attend(self.q_norm(query), self.k_norm(key), value)
        return self.proj(self.norm(join_windows(attended, grid, window)))


class BeitTrunkAttention(nn.Module):
    """BEiT's attention: biases on queries and values, none on keys, and a bias on the attention logits.

    timm's class adds the biases in place to the output of `qkv`, or reads the weight of `qkv` and does not call it.

    Args:
        attention: timm's attention, whose layers and biases are taken over.
    """

    def __init__(self, attention: TimmBeitAttention):
        super().__init__()
        self.num_heads = attention.num_heads
        self.q_bias, self.v_bias = attention.q_bias, attention.v_bias
        self.qkv, self.proj = attention.qkv, attention.proj
        self.attend = DotProductAttention()

    def forward(self, tokens: torch.Tensor, logit_bias: torch.Tensor | None = None) -> torch.Tensor:
        """Map `(B, N, C)` to the same shape.

        Args:
            logit_bias: `(1, heads, N, N)`; the queries come before the keys.
        """
        return self.proj(self.attend(*_query_key_value(self, tokens), logit_bias))


class EvaTrunkAttention(nn.Module):
    """EVA-02's attention: biases on queries and values, none on keys, and rotated queries and keys.

    It replaces timm's class where that class has the fault that [`BeitTrunkAttention`] names.

    Args:
        attention: timm's attention, whose layers and biases are taken over.
        num_prefix_tokens: tokens in front of the patches, which are not rotated.
    """

    def __init__(self, attention: TimmEvaAttention, num_prefix_tokens: int):
        super().__init__()
        self.num_heads, self.num_prefix_tokens = attention.num_heads, num_prefix_tokens
        self.rotate_half = attention.rotate_half
        self.q_bias, self.v_bias = attention.q_bias, attention.v_bias
        self.qkv = attention.qkv
        if self.qkv is None:
            self.q_proj, self.k_proj, self.v_proj = attention.q_proj, attention.k_proj, attention.v_proj
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm
        self.norm = attention.norm
        self.proj = attention.proj
        self.attend = DotProductAttention()

    def forward(
        self, tokens: torch.Tensor, rope: torch.Tensor | None = None, logit_bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Map `(B, N, C)` to the same shape.

        Args:
            rope: sines and cosines of timm's rotary embedding for the patch tokens.
            logit_bias: `(1, heads, N, N)`; the queries come before the keys.
        """
        query, key, value = _query_key_value(self, tokens)
        query, key = self.q_norm(query), self.k_norm(key)
        if rope is not None:
            query, key = (self._rotated(part, rope).type_as(value) for part in (query, key))
        return self.proj(self.norm(self.attend(query, key, value, logit_bias)))

    def _rotated(self, part: torch.Tensor, rope: torch.Tensor) -> torch.Tensor:
        prefix, patches = part[:, :, : self.num_prefix_tokens], part[:, :, self.num_prefix_tokens :]
        return torch.cat([prefix, apply_rot_embed_cat(patches, rope, half=self.rotate_half)], dim=2)


def _query_key_value(
    attention: BeitTrunkAttention | EvaTrunkAttention, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Project `(B, N, C)` to query, key and value, `(B, heads, N, head_dim)` each, with biases on two of them."""
    if attention.qkv is None:
        query, key, value = attention.q_proj(tokens), attention.k_proj(tokens), attention.v_proj(tokens)
    else:
        query, key, value = attention.qkv(tokens).chunk(3, dim=-1)
    if attention.q_bias is not None:
        # the dtype of the projection, which autocast may have lowered
        query = query + attention.q_bias.to(query.dtype)
        value = value + attention.v_bias.to(value.dtype)
    query, key, value = (part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in (query, key, value))
    return query, key, value


__all__ = [
    "BeitTrunkAttention",
    "DotProductAttention",
    "EvaTrunkAttention",
    "WindowAttention",
    "join_windows",
    "split_windows",
]
