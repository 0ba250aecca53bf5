# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""A trunk's attention by the kernel, without logits and position biases of all tokens in memory."""

from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import Attention as PlainAttention
from timm.models.eva import EvaAttention
from torch import nn

from ...operators import dispatcher
from ..layers.token_grid import Grid
from ..trunk.attention import BeitTrunkAttention, DotProductAttention, EvaTrunkAttention
from ..trunk.blocks import BeitTrunkBlock, EvaTrunkBlock, PlainTrunkBlock
from ..trunk.positions import RelativePositionBias
from .onednn_linear import packed_products
from .position_bias import SharedRelativePositionBias
from .replacement import is_on_cpu, is_plain, linear_layer, replace_modules


@dataclass(frozen=True)
class OffsetBiases:
    """Relative position biases that [`MatrixAttention`] expands as it needs them.

    Attributes:
        layer: the plain layer.
        table, grid, interpolation: its arguments.
    """

    layer: Any
    table: torch.Tensor
    grid: Grid
    interpolation: tuple[torch.Tensor, torch.Tensor] | None

    def expanded(self) -> torch.Tensor:
        """Return the biases of all tokens, `(1, heads, tokens, tokens)`."""
        return self.layer(self.table, self.grid, self.interpolation)

    def of_offsets(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return `keys_of_columns` and `prefix` for the kernel's attention, see `deformable_ops/matrix.py`."""
        layer = self.layer.position_bias if isinstance(self.layer, SharedRelativePositionBias) else self.layer
        keys = layer.keys_of_columns(layer.offset_biases(self.table, self.interpolation), self.grid)
        return keys.float().contiguous(), self.table[-3:].float().contiguous() if layer.num_prefix_tokens else None


class OffsetBias(nn.Module):
    """[`RelativePositionBias`] for [`MatrixAttention`], which adds the biases while it computes the logits.

    Args:
        position_bias: the layer to replace.
    """

    def __init__(self, position_bias: nn.Module):
        super().__init__()
        self.position_bias = position_bias

    def forward(
        self, table: torch.Tensor, grid: Grid, interpolation: tuple[torch.Tensor, torch.Tensor] | None
    ) -> OffsetBiases:
        """See [`RelativePositionBias`]."""
        return OffsetBiases(self.position_bias, table, grid, interpolation)


class MatrixAttention(DotProductAttention):
    """[`DotProductAttention`] by the kernel."""

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        logit_bias: torch.Tensor | OffsetBiases | None = None,
    ) -> torch.Tensor:
        """Map `(B, heads, N, head_dim)` each to `(B, N, heads * head_dim)`."""
        is_odd = query.dtype == torch.bfloat16 and query.shape[-1] % 2 == 1
        matrix = None if is_odd else dispatcher.matrix_operators(query)
        if matrix is None or isinstance(logit_bias, torch.Tensor):
            bias = logit_bias.expanded() if isinstance(logit_bias, OffsetBiases) else logit_bias
            return super().forward(query, key, value, bias)
        query, key, value = (part if part.stride(-1) == 1 else part.contiguous() for part in (query, key, value))
        biases = () if logit_bias is None else logit_bias.of_offsets()
        return matrix.attention(query, key, value, query.shape[-1] ** -0.5, *biases).flatten(2)


class TokenAttention(nn.Module):
    """timm's attention of a plain ViT in evaluation mode, around [`MatrixAttention`].

    Args:
        attention: timm's attention, whose layers are taken over.
    """

    def __init__(self, attention: PlainAttention):
        super().__init__()
        self.num_heads = attention.num_heads
        self.qkv, self.proj = attention.qkv, attention.proj
        self.q_norm, self.k_norm, self.norm = attention.q_norm, attention.k_norm, attention.norm
        self.attend = MatrixAttention()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map `(B, N, C)` to the same shape."""
        qkv = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        return self.proj(self.norm(self.attend(self.q_norm(query), self.k_norm(key), value)))


def use_matrix_attention(model: nn.Module) -> int:
    """Replace the attention of trunks on a CPU whose products by the kernel are fast."""
    parameter = next(model.parameters(), None)
    if parameter is None or not is_on_cpu(model) or packed_products(parameter.dtype) is None:
        return 0
    for block in model.modules():
        if isinstance(block, (BeitTrunkBlock, EvaTrunkBlock)) and _attends(block) and _has_position_bias(block):
            block.position_bias = OffsetBias(block.position_bias)
        elif type(block) is EvaTrunkBlock and is_plain(block.attn, EvaAttention) and _is_common(block.attn):
            block.attn = EvaTrunkAttention(block.attn, block.attn.num_prefix_tokens)
        elif type(block) is PlainTrunkBlock and is_plain(block.attn, PlainAttention) and _is_common(block.attn):
            block.attn = TokenAttention(block.attn)
        if _attends(block):
            _join_biases(block.attn)
    return replace_modules(
        model, lambda module: MatrixAttention() if is_plain(module, DotProductAttention) else None
    ) + sum(isinstance(module, TokenAttention) for module in model.modules())


def _join_biases(attention: Any) -> None:
    """Give the joint projection of query, key and value the biases that are added to its parts."""
    if attention.qkv is None or attention.q_bias is None or not is_plain(attention.qkv, nn.Linear):
        return
    if attention.qkv.bias is None:
        biases = attention.q_bias, torch.zeros_like(attention.q_bias), attention.v_bias
        attention.qkv = linear_layer(attention.qkv.weight.detach(), torch.cat(biases).detach())
        attention.q_bias = attention.v_bias = None


def _attends(block: nn.Module) -> bool:
    """Return whether a block attends by biases and layers that may be replaced."""
    attention = getattr(block, "attn", None)
    if not (isinstance(attention, (BeitTrunkAttention, EvaTrunkAttention)) and is_plain(attention, type(attention))):
        return False
    return is_plain(attention.attend, DotProductAttention)


def _has_position_bias(block: BeitTrunkBlock | EvaTrunkBlock) -> bool:
    layer = block.position_bias
    return type(layer) is SharedRelativePositionBias or (layer is not None and is_plain(layer, RelativePositionBias))


def _is_common(attention: nn.Module) -> bool:
    """Return whether an attention has none of the parts that newer versions of timm add, such as a gate."""
    known = {"qkv", "q_proj", "k_proj", "v_proj", "q_norm", "k_norm", "norm", "proj", "attn_drop", "proj_drop"}
    heads = getattr(attention, "num_kv_heads", None)
    return {name for name, _ in attention.named_children()} <= known and heads in (None, attention.num_heads)


__all__ = ["MatrixAttention", "OffsetBias", "TokenAttention", "use_matrix_attention"]
