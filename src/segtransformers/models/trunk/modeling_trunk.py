# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Plain vision transformers from timm behind one interface: embed, run a slice of blocks, token grid.

This folder is the only one that knows timm. The blocks are timm's own; the embedding is ours, because the originals
resize position embeddings in their own way and because only what takes part in the forward pass may own parameters.

Sources: An Image is Worth 16x16 Words (https://arxiv.org/abs/2010.11929); the behaviour around the blocks follows
`segmentation/mmseg_custom/models/backbones/base/{vit,beit,uniperceiver}.py` of czczup/ViT-Adapter.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.layers import LayerScale, RmsNorm
from timm.layers.pos_embed_sincos import (
    RotaryEmbeddingMixed,
    get_mixed_freqs,
    get_mixed_grid,
    init_random_2d_freqs,
)
from timm.models.beit import Attention as BeitAttention
from timm.models.eva import EvaAttention
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from .architectures import build_architecture
from .blocks import BeitTrunkBlock, EvaTrunkBlock, as_trunk_block
from .configuration_trunk import TrunkConfig
from .positions import Grid, resize_positions


@dataclass
class TokenLayout:
    """Where the patch tokens of a batch stand.

    Attributes:
        grid: `(h, w)` of the patch tokens.
        rotary: what rotates queries and keys, for one block after another or the same for all; None for most trunks.
        scratch: memory that one block leaves for the next.
    """

    grid: Grid
    rotary: torch.Tensor | None = None
    scratch: list[torch.Tensor] = field(default_factory=list)

    def rotary_of(self, index: int) -> torch.Tensor | None:
        """What block `index` gets: learned rotations `(blocks, heads, h * w, .)` differ from block to block."""
        return self.rotary[index] if self.rotary is not None and self.rotary.dim() == 4 else self.rotary


class TrunkEmbeddings(nn.Module):
    """Prefix and patch tokens with their positions.

    Args:
        model: timm's model, whose parts are taken over.
        config: a resolved [`TrunkConfig`].
    """

    def __init__(self, model: Any, config: TrunkConfig):
        super().__init__()
        self.grid = config.pretrain_grid
        self.patch_size, self.token_stride = config.patch_size, config.token_stride
        self.position_interpolation = config.position_interpolation
        self.keep_positions_of_same_count = config.keep_positions_of_same_count
        self.patch_embed = model.patch_embed
        projection = self.patch_embed.proj
        if config.patch_bias != (projection.bias is not None):  # timm drops the bias where a norm follows
            bias = nn.Parameter(torch.zeros(projection.out_channels)) if config.patch_bias else None
            projection.register_parameter("bias", bias)
        self.norm_pre = getattr(model, "norm_pre", nn.Identity())
        names = ("cls_token", "dist_token", "reg_token") if config.use_prefix_tokens else ()
        self.prefix_names = [name for name in names if getattr(model, name, None) is not None]
        for name in self.prefix_names:
            self.register_parameter(name, getattr(model, name))
        self.num_prefix_tokens = sum(getattr(self, name).shape[1] for name in self.prefix_names)
        positions = model.pos_embed
        if positions is not None and not config.use_prefix_tokens:
            positions = nn.Parameter(positions.detach()[:, -math.prod(self.grid) :].clone())
        self.register_parameter("pos_embed", positions)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, Grid]:
        """See [`Trunk.embed`]."""
        if self.patch_size != self.token_stride:
            size = [side * self.patch_size // self.token_stride for side in pixel_values.shape[2:]]
            pixel_values = F.interpolate(pixel_values, size=size, mode="bilinear", align_corners=False)
        patches = self.patch_embed.proj(pixel_values)
        grid = (patches.shape[2], patches.shape[3])
        patches = self.patch_embed.norm(patches.flatten(2).transpose(1, 2))
        prefix_positions = None
        if self.pos_embed is not None:
            count = math.prod(self.grid)
            prefix_positions = self.pos_embed[:, :-count]
            positions = self.pos_embed[:, -count:]
            if not self.keep_positions_of_same_count or patches.shape[1] != count:
                positions = resize_positions(positions, self.grid, grid, self.position_interpolation)
            patches = patches + positions.to(patches.dtype)
        if self.prefix_names:
            prefix = torch.cat([getattr(self, name) for name in self.prefix_names], dim=1)
            if prefix_positions is not None and prefix_positions.shape[1]:  # some give the prefix no positions
                prefix = prefix + prefix_positions
            patches = torch.cat([prefix.expand(patches.shape[0], -1, -1).to(patches.dtype), patches], dim=1)
        return self.norm_pre(patches), grid


class TrunkRotary(nn.Module):
    """Rotary position embeddings of timm, for any grid."""

    def __init__(self, rope: nn.Module):
        super().__init__()
        self.rope = rope

    def forward(self, grid: Grid) -> torch.Tensor:
        """Sines and cosines `(h * w, .)`."""
        return self.rope.get_embed(shape=list(grid))


class TrunkLearnedRotary(nn.Module):
    """Rotations whose frequencies are learned for every block and head."""

    def __init__(self, rope: RotaryEmbeddingMixed):
        super().__init__()
        self.temperature, self.grid_indexing = rope.temperature, rope.grid_indexing
        self.freqs = rope.freqs  # used in this forward, so that this module owns them

    def forward(self, grid: Grid) -> torch.Tensor:
        """Sines and cosines `(blocks, heads, h * w, .)`."""
        places = get_mixed_grid(list(grid), grid_indexing=self.grid_indexing, device=self.freqs.device)
        return get_mixed_freqs(self.freqs, *places)


class Trunk(nn.Module):
    """The patch embedding and blocks of a plain ViT, and the final norm where wanted. Heads, pooling and unused tokens
    are left out.

    There is one token for `token_stride` x `token_stride` pixels: where patches are of another size, the trunk's own
    input is resized.

    Args:
        config: a resolved [`TrunkConfig`].

    Raises:
        ValueError: if timm cannot build what the config says.
    """

    def __init__(self, config: TrunkConfig):
        super().__init__()
        model = build_architecture(config)
        self.embeddings = TrunkEmbeddings(model, config)
        self.num_prefix_tokens = self.embeddings.num_prefix_tokens
        rope = getattr(model, "rope", None)
        self.rotary: TrunkRotary | TrunkLearnedRotary | None = None
        if rope is not None:
            self.rotary = TrunkLearnedRotary(rope) if isinstance(rope, RotaryEmbeddingMixed) else TrunkRotary(rope)
        self.blocks = nn.ModuleList(
            as_trunk_block(block, config, index, self.num_prefix_tokens) for index, block in enumerate(model.blocks)
        )
        # timm has the final norm in one of several places, but always of the kind that its blocks have
        self.norm = copy.deepcopy(self.blocks[0].norm1) if config.final_norm else None

    def embed(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, TokenLayout]:
        """Prefix and patch tokens with their positions added.

        Args:
            pixel_values: `(B, 3, H, W)`, both sides multiples of the token stride.

        Returns:
            tokens `(B, num_prefix_tokens + h * w, C)` and their layout, for `run_blocks`.
        """
        tokens, grid = self.embeddings(pixel_values)
        return tokens, TokenLayout(grid, None if self.rotary is None else self.rotary(grid))

    def run_blocks(self, tokens: torch.Tensor, first: int, last: int, layout: TokenLayout) -> Iterator[torch.Tensor]:
        """Run blocks `first` to `last`, both included.

        Args:
            tokens: `(B, num_prefix_tokens + h * w, C)`.
            layout: as `embed` gave it.

        Yields:
            the tokens after each of these blocks, in the same layout.
        """
        for index in range(first, last + 1):
            tokens = self.blocks[index](tokens, layout.grid, layout.rotary_of(index), layout.scratch)
            yield tokens


def init_trunk_weights(module: nn.Module, config: TrunkConfig) -> None:
    """Initialise what the trunk adds to the usual linear, convolution and norm layers. For use in `_init_weights`."""
    if isinstance(module, TrunkEmbeddings):
        for name in ("pos_embed", *module.prefix_names):
            if getattr(module, name) is not None:
                init.trunc_normal_(getattr(module, name), std=config.initializer_range)
    elif isinstance(module, LayerScale):
        init.constant_(module.gamma, config.layer_scale_init_value)
    elif isinstance(module, RmsNorm):
        init.ones_(module.weight)
    elif isinstance(module, (BeitAttention, EvaAttention)):
        for bias in (module.q_bias, module.v_bias):
            if bias is not None:
                init.zeros_(bias)
    elif isinstance(module, (BeitTrunkBlock, EvaTrunkBlock)):
        for gamma in (module.gamma_1, module.gamma_2):
            if gamma is not None:
                init.constant_(gamma, config.layer_scale_init_value)
        if getattr(module, "relative_position_bias_table", None) is not None:
            init.zeros_(module.relative_position_bias_table)
    elif isinstance(module, TrunkLearnedRotary):
        _, depth, heads, half = module.freqs.shape
        frequencies = init_random_2d_freqs(2 * half, depth, heads, temperature=module.temperature, rotate=True)
        init.copy_(module.freqs, frequencies)
    if hasattr(module, "init_non_persistent_buffers"):  # timm's own hook: what is not saved must be made again
        module.init_non_persistent_buffers()
