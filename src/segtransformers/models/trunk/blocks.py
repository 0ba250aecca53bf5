# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""timm's blocks behind one `forward`, as layers that transformers can checkpoint, wrap and place.

Sources: the windows follow `segmentation/mmseg_custom/models/backbones/base/{vit,uniperceiver}.py` of
czczup/ViT-Adapter.
"""

import contextlib
import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
from timm.layers import Attention as PlainAttention
from timm.models.beit import Block as BeitBlock
from timm.models.eva import EvaBlock
from timm.models.vision_transformer import Block as PlainBlock
from torch import nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_trunk import TrunkConfig
from .positions import Grid, num_relative_positions, relative_position_bias


class PlainTrunkBlock(GradientCheckpointingLayer, PlainBlock):
    """A ViT's block, which can also attend in windows.

    Attributes:
        window: side of the attention window in tokens; 0 is global attention.
        pad_before_projection: see [`windowed_attention`].
    """

    window = 0
    pad_before_projection = False

    def forward(  # type: ignore[override]
        self, tokens: torch.Tensor, grid: Grid, rotary: torch.Tensor | None = None, scratch: list | None = None
    ) -> torch.Tensor:
        """From tokens `(B, num_prefix_tokens + h * w, C)` on a grid `(h, w)` to the same."""
        if not self.window:
            return PlainBlock.forward(self, tokens)
        attended = windowed_attention(self.attn, self.norm1(tokens), grid, self.window, self.pad_before_projection)
        tokens = tokens + self.drop_path1(self.ls1(attended))
        return tokens + self.drop_path2(self.ls2(self.mlp(self.norm2(tokens))))


class BeitTrunkBlock(GradientCheckpointingLayer, BeitBlock):
    """BEiT's block with its own table of relative position biases, for any token grid.

    Attributes:
        relative_position_bias_table: see [`relative_position_bias`], made for `table_grid`; None without biases.
    """

    relative_position_bias_table: nn.Parameter | None
    table_grid: Grid
    num_prefix_tokens: int

    def forward(  # type: ignore[override]
        self, tokens: torch.Tensor, grid: Grid, rotary: torch.Tensor | None = None, scratch: list | None = None
    ) -> torch.Tensor:
        """From tokens `(B, num_prefix_tokens + h * w, C)` on a grid `(h, w)` to the same.

        Args:
            scratch: see [`relative_position_bias`].
        """
        table, bias = self.relative_position_bias_table, None
        if table is not None:
            bias = relative_position_bias(table, self.table_grid, grid, self.num_prefix_tokens, scratch)
        if torch.compiler.is_exporting():
            with _plain_attention(self.attn):
                return BeitBlock.forward(self, tokens, shared_rel_pos_bias=bias)
        return BeitBlock.forward(self, tokens, shared_rel_pos_bias=bias)


@contextlib.contextmanager
def _plain_attention(attention: Any) -> Iterator[None]:
    """Matrix products instead of PyTorch's fused attention, whose output for a bias has strides that ONNX export does
    not understand."""
    fused = attention.fused_attn
    try:
        attention.fused_attn = False
        yield
    finally:
        attention.fused_attn = fused


class EvaTrunkBlock(GradientCheckpointingLayer, EvaBlock):
    """The block of EVA-02 and DINOv3, whose queries and keys are rotated."""

    def forward(  # type: ignore[override]
        self, tokens: torch.Tensor, grid: Grid, rotary: torch.Tensor | None = None, scratch: list | None = None
    ) -> torch.Tensor:
        """From tokens `(B, num_prefix_tokens + h * w, C)` on a grid `(h, w)` to the same.

        Args:
            rotary: sines and cosines of timm's rotary embedding for the `h * w` patch tokens.
        """
        return EvaBlock.forward(self, tokens, rope=rotary)


TRUNK_BLOCKS = {PlainBlock: PlainTrunkBlock, BeitBlock: BeitTrunkBlock, EvaBlock: EvaTrunkBlock}


def plain_block(
    hidden_size: int, num_heads: int, mlp_ratio: float, dropout: float, drop_path: float, layer_norm_eps: float
) -> PlainTrunkBlock:
    """A new block of the ordinary kind, outside of any trunk. It is not initialised."""
    return PlainTrunkBlock(
        hidden_size,
        num_heads,
        mlp_ratio=mlp_ratio,
        qkv_bias=True,
        proj_drop=dropout,
        attn_drop=dropout,
        drop_path=drop_path,
        norm_layer=functools.partial(nn.LayerNorm, eps=layer_norm_eps),
    )


def as_trunk_block(block: Any, config: TrunkConfig, index: int, num_prefix_tokens: int) -> nn.Module:
    """Turn a block that timm made into ours, in place: only ViTs let the caller choose the class of the blocks.

    Raises:
        ValueError: if the block should attend in windows and cannot.
    """
    block.__class__ = TRUNK_BLOCKS[type(block)]
    if getattr(block.attn, "qkv_bias_separate", None) is False:
        # timm would read the projection's weight, while what brings weights on demand hooks the projection's forward
        block.attn.qkv_bias_separate = True
    window = (config.window_sizes or [0] * config.num_hidden_layers)[index]
    if isinstance(block, PlainTrunkBlock):
        block.window, block.pad_before_projection = window, config.pad_before_projection
        return block
    if window:
        raise ValueError(
            f"window_sizes: only trunks of timm's class VisionTransformer attend in windows, not {config.trunk!r}"
        )
    if isinstance(block, EvaTrunkBlock):
        block.attn.num_prefix_tokens = num_prefix_tokens
    else:
        block.num_prefix_tokens = num_prefix_tokens
        block.table_grid = config.pretrain_grid
        table = None
        if config.use_relative_position_bias:
            rows = num_relative_positions(block.table_grid) + (3 if num_prefix_tokens else 0)
            table = nn.Parameter(torch.zeros(rows, config.num_attention_heads))
        block.register_parameter("relative_position_bias_table", table)
    return block


def windowed_attention(
    attention: PlainAttention, tokens: torch.Tensor, grid: Grid, window: int, pad_before_projection: bool
) -> torch.Tensor:
    """timm's self-attention among the tokens of each window of `window x window`.

    The map is padded with zeros at the right and the bottom to full windows, and padded keys take part in the softmax:
    ViT-Adapter pads queries, keys and values, so padded keys are exactly zero; its Uni-Perceiver pads the tokens before
    the projection, so they equal the projection's bias.

    Args:
        tokens: normalised patch tokens `(B, h * w, C)`.
        grid: the token grid `(h, w)`.
        pad_before_projection: the second way.
    """
    height, width = grid
    rows, columns = math.ceil(height / window), math.ceil(width / window)
    padding = (0, 0, 0, columns * window - width, 0, rows * window - height)
    if pad_before_projection:
        qkv = attention.qkv(F.pad(tokens.unflatten(1, grid), padding))
    else:
        qkv = F.pad(attention.qkv(tokens).unflatten(1, grid), padding)
    qkv = qkv.unflatten(1, (rows, window)).unflatten(3, (columns, window)).transpose(2, 3)
    qkv = qkv.flatten(3, 4).unflatten(-1, (3, attention.num_heads, attention.head_dim))
    query, key, value = qkv.permute(4, 0, 1, 2, 5, 3, 6).unbind(0)  # each (B, rows, columns, heads, window^2, head_dim)
    query, key = attention.q_norm(query), attention.k_norm(key)
    # four dimensions are what ONNX knows
    attended = F.scaled_dot_product_attention(*(tokens.flatten(0, 2) for tokens in (query, key, value)))
    attended = (
        attended.unflatten(0, query.shape[:3]).transpose(3, 4).flatten(4).unflatten(3, (window, window)).transpose(2, 3)
    )
    attended = attended.flatten(3, 4).flatten(1, 2)[:, :height, :width].flatten(1, 2)
    return attention.proj_drop(attention.proj(attention.norm(attended)))
