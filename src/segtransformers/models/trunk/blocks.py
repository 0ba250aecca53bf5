# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Blocks of a trunk, made of the layers of timm's blocks.

All take `(tokens, grid, positions)`, so that transformers can checkpoint, wrap and place them alike.
"""

import functools
from typing import Any

import torch
from timm.models.beit import Block as TimmBeitBlock
from timm.models.eva import EvaBlock as TimmEvaBlock
from timm.models.vision_transformer import Block as TimmPlainBlock
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..layers.token_grid import Grid
from .attention import BeitTrunkAttention, EvaTrunkAttention, WindowAttention, join_windows, split_windows
from .configuration_trunk import TrunkConfig
from .positions import RelativePositionBias, num_relative_positions


class PlainTrunkBlock(GradientCheckpointingLayer):
    """A ViT's block with global or windowed attention.

    Args:
        block: timm's block, whose layers are taken over.
        window: side of the attention window in tokens; 0 is global attention.
        pad_before_projection: see [`WindowAttention`].
    """

    def __init__(self, block: TimmPlainBlock, window: int = 0, pad_before_projection: bool = False):
        super().__init__()
        self.window = window
        self.norm1 = block.norm1
        self.attn = WindowAttention(block.attn, window, pad_before_projection) if window else block.attn
        self.ls1, self.drop_path1 = block.ls1, block.drop_path1
        self.norm2, self.mlp = block.norm2, block.mlp
        self.ls2, self.drop_path2 = block.ls2, block.drop_path2

    def forward(self, tokens: torch.Tensor, grid: Grid, positions: None = None) -> torch.Tensor:
        """From tokens `(B, num_prefix_tokens + h * w, C)` on a grid `(h, w)` to the same."""
        normalized = self.norm1(tokens)
        attended = self.attn(normalized, grid) if self.window else self.attn(normalized)
        tokens = tokens + self.drop_path1(self.ls1(attended))
        return tokens + self.drop_path2(self.ls2(self.mlp(self.norm2(tokens))))


class BeitTrunkBlock(GradientCheckpointingLayer):
    """BEiT's block with a table of relative position biases for any token grid.

    In windows, the tokens are padded with zeros after the norm, at the right and the bottom. Padded keys take part in
    the softmax: they are zero, and their values equal the bias (`BEiTWINAdapter` of EVA-01).

    Args:
        block: timm's block, whose layers are taken over.
        num_prefix_tokens: 0 or 1, the class token.
        table_grid: token grid `(h, w)` that the table is made for; None leaves the table out.
        window: side of the attention window in tokens, which is also the grid of its table; 0 is global attention.
    """

    def __init__(self, block: TimmBeitBlock, num_prefix_tokens: int, table_grid: Grid | None, window: int = 0):
        super().__init__()
        self.window = window
        self.norm1 = block.norm1
        self.attn = BeitTrunkAttention(block.attn)
        self.drop_path1 = block.drop_path1
        self.norm2, self.mlp = block.norm2, block.mlp
        self.drop_path2 = block.drop_path2
        self.gamma_1, self.gamma_2 = block.gamma_1, block.gamma_2
        self.position_bias: nn.Module | None = None
        self.relative_position_bias_table: nn.Parameter | None = None
        if table_grid is not None:
            self.position_bias, self.relative_position_bias_table = _table_of_biases(
                table_grid, num_prefix_tokens, block.attn.num_heads
            )

    def forward(
        self, tokens: torch.Tensor, grid: Grid, positions: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """From tokens `(B, num_prefix_tokens + h * w, C)` on a grid `(h, w)` to the same.

        Args:
            positions: see [`offset_interpolation`].
        """
        bias, normalized = None, self.norm1(tokens)
        if self.window:
            if self.position_bias is not None:
                bias = self.position_bias(self.relative_position_bias_table, (self.window, self.window), None)
            windows = split_windows(normalized, grid, self.window)
            attended = join_windows(self.attn(windows, bias), grid, self.window)
        else:
            if self.position_bias is not None:
                bias = self.position_bias(self.relative_position_bias_table, grid, positions)
            attended = self.attn(normalized, bias)
        tokens = tokens + self.drop_path1(_scaled(attended, self.gamma_1))
        return tokens + self.drop_path2(_scaled(self.mlp(self.norm2(tokens)), self.gamma_2))


class EvaTrunkBlock(GradientCheckpointingLayer):
    """The block of EVA-02 and DINOv3, whose queries and keys are rotated.

    Args:
        block: timm's block, whose layers are taken over.
        num_prefix_tokens: tokens in front of the patches, which are not rotated.
        table_grid: token grid `(h, w)` that a table of relative position biases is made for; None leaves it out.
    """

    def __init__(self, block: TimmEvaBlock, num_prefix_tokens: int, table_grid: Grid | None = None):
        super().__init__()
        self.norm1 = block.norm1
        self.position_bias: nn.Module | None = None
        self.relative_position_bias_table: nn.Parameter | None = None
        if table_grid is not None:
            self.position_bias, self.relative_position_bias_table = _table_of_biases(
                table_grid, num_prefix_tokens, block.attn.num_heads
            )
        if getattr(block.attn, "q_bias", None) is not None or table_grid is not None:
            self.attn: nn.Module = EvaTrunkAttention(block.attn, num_prefix_tokens)
        else:
            self.attn = block.attn
            self.attn.num_prefix_tokens = num_prefix_tokens
        self.drop_path1 = block.drop_path1
        self.norm2, self.mlp = block.norm2, block.mlp
        self.drop_path2 = block.drop_path2
        self.gamma_1, self.gamma_2 = block.gamma_1, block.gamma_2

    def forward(self, tokens: torch.Tensor, grid: Grid, positions: Any = None) -> torch.Tensor:
        """From tokens `(B, num_prefix_tokens + h * w, C)` on a grid `(h, w)` to the same.

        Args:
            positions: sines and cosines of timm's rotary embedding for the `h * w` patch tokens. With a table, a pair
                of these and the matrices of [`offset_interpolation`].
        """
        if self.position_bias is None:
            attended = self.attn(self.norm1(tokens), rope=positions)
        else:
            rope, interpolation = positions
            bias = self.position_bias(self.relative_position_bias_table, grid, interpolation)
            attended = self.attn(self.norm1(tokens), rope=rope, logit_bias=bias)
        tokens = tokens + self.drop_path1(_scaled(attended, self.gamma_1))
        return tokens + self.drop_path2(_scaled(self.mlp(self.norm2(tokens)), self.gamma_2))


def _table_of_biases(grid: Grid, num_prefix_tokens: int, heads: int) -> tuple[RelativePositionBias, nn.Parameter]:
    rows = num_relative_positions(grid) + (3 if num_prefix_tokens else 0)
    return RelativePositionBias(grid, num_prefix_tokens), nn.Parameter(torch.zeros(rows, heads))


def _scaled(branch: torch.Tensor, gamma: torch.Tensor | None) -> torch.Tensor:
    return branch if gamma is None else gamma * branch


TrunkBlock = PlainTrunkBlock | BeitTrunkBlock | EvaTrunkBlock


def plain_block(
    hidden_size: int, num_heads: int, mlp_ratio: float, dropout: float, drop_path: float, layer_norm_eps: float
) -> PlainTrunkBlock:
    """Build a [`PlainTrunkBlock`] outside of any trunk. Its weights are not initialized."""
    return PlainTrunkBlock(
        TimmPlainBlock(
            hidden_size,
            num_heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=True,
            proj_drop=dropout,
            attn_drop=dropout,
            drop_path=drop_path,
            norm_layer=functools.partial(nn.LayerNorm, eps=layer_norm_eps),
        )
    )


def trunk_block(block: nn.Module, config: TrunkConfig, index: int, num_prefix_tokens: int) -> TrunkBlock:
    """Build the trunk's block `index` of the layers of timm's.

    Raises:
        ValueError: if the block should attend in windows and cannot.
    """
    window = config.window_sizes[index] if config.window_sizes else 0
    if type(block) is TimmPlainBlock:
        return PlainTrunkBlock(block, window, config.pad_before_projection)
    if type(block) is TimmEvaBlock:
        if window:
            raise ValueError(
                "window_sizes: only trunks of timm's classes VisionTransformer and Beit attend in windows, not "
                f"{config.trunk!r}"
            )
        return EvaTrunkBlock(
            block, num_prefix_tokens, config.pretrain_grid if config.use_relative_position_bias else None
        )
    table_grid = None
    if config.use_relative_position_bias:
        table_grid = (window, window) if window else config.pretrain_grid
    return BeitTrunkBlock(block, num_prefix_tokens, table_grid, window)
