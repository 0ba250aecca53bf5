# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Plain vision transformers from timm behind one interface: embed an image, run a slice of blocks.

This folder is the only one that knows timm. The layers are timm's own; the embedding is ours, because the originals
resize position embeddings in their own way and because only modules of the forward pass may own parameters.

Sources: An Image is Worth 16x16 Words (https://arxiv.org/abs/2010.11929); the behaviour around the blocks follows
`segmentation/mmseg_custom/models/backbones/base/{vit,beit,uniperceiver}.py` of czczup/ViT-Adapter.
"""

import contextlib
import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import LayerScale, PatchEmbed, RmsNorm
from timm.layers.pos_embed_sincos import (
    RotaryEmbeddingDinoV3,
    RotaryEmbeddingMixed,
    get_mixed_freqs,
    get_mixed_grid,
    init_random_2d_freqs,
)
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from ..layers.token_grid import Grid, has_variable_size
from .architectures import build_architecture
from .attention import BeitTrunkAttention, EvaTrunkAttention
from .blocks import BeitTrunkBlock, EvaTrunkBlock, trunk_block
from .configuration_trunk import TrunkConfig
from .positions import offset_interpolation, positions_of_same_count, resize_positions


@dataclass(frozen=True)
class TokenLayout:
    """Positions of the patch tokens of a batch.

    Attributes:
        grid: `(h, w)` of the patch tokens.
        positions: where queries and keys are rotated, sines and cosines `(h * w, .)` for all blocks or
            `(blocks, heads, h * w, .)`; for blocks with tables of relative positions, see [`offset_interpolation`];
            where blocks have both, a pair of them; None for other trunks.
    """

    grid: Grid
    positions: Any = None

    def positions_of(self, index: int) -> Any:
        """Return the positions for block `index`."""
        each_block_has_its_own = isinstance(self.positions, torch.Tensor) and self.positions.dim() == 4
        return self.positions[index] if each_block_has_its_own else self.positions


class TrunkPatchEmbedding(nn.Module):
    """Convolution of an image to one token for each patch.

    Args:
        patch_embed: timm's patch embedding, whose layers are taken over.
        bias: whether the convolution has a bias. timm drops it where a norm follows.
    """

    def __init__(self, patch_embed: PatchEmbed, bias: bool):
        super().__init__()
        self.stem = getattr(patch_embed, "stem", None)  # convolutions of ONE-PEACE
        self.proj = patch_embed.proj
        if bias != (self.proj.bias is not None):
            parameter = nn.Parameter(torch.zeros(self.proj.out_channels)) if bias else None
            self.proj.register_parameter("bias", parameter)
        self.norm = patch_embed.norm

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """From images `(B, num_channels, H, W)` to tokens `(B, h, w, C)`."""
        features = pixel_values if self.stem is None else self.stem(pixel_values)
        return self.norm(self.proj(features).permute(0, 2, 3, 1))


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
        self.position_interpolation_offset = float(config.position_interpolation_offset)
        self.position_interpolation_antialias = config.position_interpolation_antialias
        self.keep_positions_of_same_count = config.keep_positions_of_same_count
        self.patch_embed = TrunkPatchEmbedding(model.patch_embed, config.patch_bias)
        self.norm_pre = getattr(model, "norm_pre", nn.Identity())
        names = ("cls_token", "dist_token", "reg_token") if config.use_prefix_tokens else ()
        self.prefix_names = [name for name in names if getattr(model, name, None) is not None]
        for name in self.prefix_names:
            self.register_parameter(name, getattr(model, name))
        self.num_prefix_tokens = sum(getattr(self, name).shape[1] for name in self.prefix_names)
        positions = model.pos_embed
        if positions is not None and not (config.use_prefix_tokens and config.use_prefix_positions):
            positions = nn.Parameter(positions.detach()[:, -math.prod(self.grid) :].clone())
        self.register_parameter("pos_embed", positions)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, Grid]:
        """Return the embedded tokens and their grid, see [`Trunk.embed`]."""
        if self.patch_size != self.token_stride:
            size = [side * self.patch_size // self.token_stride for side in pixel_values.shape[2:]]
            pixel_values = F.interpolate(pixel_values, size=size, mode="bilinear", align_corners=False)
        patches = self.patch_embed(pixel_values)
        grid = (patches.shape[1], patches.shape[2])
        patches = patches.flatten(1, 2)
        prefix_positions = None
        if self.pos_embed is not None:
            count = math.prod(self.grid)
            prefix_positions = self.pos_embed[:, :-count]
            own = positions = self.pos_embed[:, -count:]
            is_variable = has_variable_size(grid)
            if is_variable or not self.keep_positions_of_same_count or patches.shape[1] != count:
                positions = resize_positions(
                    own,
                    self.grid,
                    grid,
                    self.position_interpolation,
                    self.position_interpolation_offset,
                    self.position_interpolation_antialias,
                )
            if is_variable and self.keep_positions_of_same_count:
                positions = positions_of_same_count(own, positions)
            patches = patches + positions.to(patches.dtype)
        if self.prefix_names:
            prefix = torch.cat([getattr(self, name) for name in self.prefix_names], dim=1)
            if prefix_positions is not None and prefix_positions.shape[1]:  # empty in some architectures
                prefix = prefix + prefix_positions
            patches = torch.cat([prefix.expand(patches.shape[0], -1, -1).to(patches.dtype), patches], dim=1)
        return self.norm_pre(patches), grid


def _has_centered_grid(rope: nn.Module) -> bool:
    """Return whether timm's rotary embedding is DINOv3's with the settings of the published models."""
    settings = (getattr(rope, name, None) for name in ("grid_indexing", "normalize_coords", "grid_offset"))
    return isinstance(rope, RotaryEmbeddingDinoV3) and tuple(settings) == ("ij", "separate", 0.0)


class TrunkRotary(nn.Module):
    """Rotary position embeddings for any token grid.

    Args:
        rope: timm's rotary embedding.
    """

    def __init__(self, rope: nn.Module):
        super().__init__()
        self.rope = rope

    def forward(self, grid: Grid) -> torch.Tensor:
        """Return sines and cosines `(h * w, .)`."""
        if torch.compiler.is_exporting() and _has_centered_grid(self.rope):
            return self._centered(grid)
        return self.rope.get_embed(shape=list(grid))

    def _centered(self, grid: Grid) -> torch.Tensor:
        """Compute DINOv3's embedding like timm, which divides by `float(side)`: programs take this as a constant."""
        periods: Any = self.rope.periods
        sides = [(torch.arange(side, dtype=torch.float32, device=periods.device) + 0.5) / side for side in grid]
        points = 2 * torch.stack(torch.meshgrid(sides, indexing="ij"), dim=-1).flatten(0, 1) - 1
        angles = (2 * math.pi * points[..., None].to(periods.dtype) / periods).flatten(1)
        parts = [angles.sin(), angles.cos()]
        if self.rope.rotate_half:
            return torch.cat([part for part in parts for _ in range(2)], dim=1)
        return torch.cat([part.repeat_interleave(2, dim=1) for part in parts], dim=1)


class TrunkLearnedRotary(nn.Module):
    """Rotary position embeddings whose frequencies are learned for every block and head.

    Args:
        rope: timm's rotary embedding, whose frequencies are taken over.
    """

    def __init__(self, rope: RotaryEmbeddingMixed):
        super().__init__()
        self.temperature, self.grid_indexing = rope.temperature, rope.grid_indexing
        self.freqs = rope.freqs  # owned by the module whose forward uses them

    def forward(self, grid: Grid) -> torch.Tensor:
        """Return sines and cosines `(blocks, heads, h * w, .)`."""
        positions = get_mixed_grid(list(grid), grid_indexing=self.grid_indexing, device=self.freqs.device)
        return get_mixed_freqs(self.freqs, *positions)


class Trunk(nn.Module):
    """Patch embedding and blocks of a plain ViT, with the final norm where `config.final_norm` asks for it.

    Heads, pooling and unused tokens of timm's model are left out. One token stands for `token_stride` x `token_stride`
    pixels: where patches have another size, the trunk resizes its input.

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
        self.table_grid = config.pretrain_grid if config.use_relative_position_bias else None
        rope = getattr(model, "rope", None)
        self.rotary: TrunkRotary | TrunkLearnedRotary | None = None
        if rope is not None:
            self.rotary = TrunkLearnedRotary(rope) if isinstance(rope, RotaryEmbeddingMixed) else TrunkRotary(rope)
        self.blocks = nn.ModuleList(
            trunk_block(block, config, index, self.num_prefix_tokens) for index, block in enumerate(model.blocks)
        )
        # timm keeps the final norm under several names, but always of the kind of its blocks' norms
        self.norm = copy.deepcopy(self.blocks[0].norm1) if config.final_norm else None
        # precision of the matrix products under autocast, set by `freeze_trunk`; the tokens keep theirs
        self.frozen_dtype: torch.dtype | None = None

    def embed(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, TokenLayout]:
        """Embed images as prefix and patch tokens with their positions.

        Args:
            pixel_values: `(B, num_channels, H, W)`, both sides multiples of the token stride.

        Returns:
            tokens `(B, num_prefix_tokens + h * w, C)`, and their layout for `run_blocks`.
        """
        with self._precision(pixel_values):
            tokens, grid = self.embeddings(pixel_values)
        if self.frozen_dtype is not None:
            tokens = tokens.to(pixel_values.dtype)
        rotary = None if self.rotary is None else self.rotary(grid)
        if self.table_grid is None:
            return tokens, TokenLayout(grid, rotary)
        interpolation = offset_interpolation(self.table_grid, grid, tokens.dtype, tokens.device)
        is_beit = isinstance(self.blocks[0], BeitTrunkBlock)
        return tokens, TokenLayout(grid, interpolation if is_beit else (rotary, interpolation))

    def run_blocks(self, tokens: torch.Tensor, first: int, last: int, layout: TokenLayout) -> Iterator[torch.Tensor]:
        """Run blocks `first` to `last`, both included.

        Args:
            tokens: `(B, num_prefix_tokens + h * w, C)`.
            layout: as returned by `embed`.

        Yields:
            the tokens after each of these blocks, of the same shape.
        """
        for index in range(first, last + 1):
            dtype = tokens.dtype
            with self._precision(tokens):  # without the `yield`, which would carry it to the caller
                tokens = self.blocks[index](tokens, layout.grid, layout.positions_of(index))
            if self.frozen_dtype is not None:
                tokens = tokens.to(dtype)
            yield tokens

    def _precision(self, tensor: torch.Tensor) -> contextlib.AbstractContextManager:
        if self.frozen_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(tensor.device.type, dtype=self.frozen_dtype)

    def patch_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the patch tokens `(B, h * w, C)` after any block, through the final norm where the trunk has one."""
        patches = tokens[:, self.num_prefix_tokens :]
        return patches if self.norm is None else self.norm(patches)

    def feature_map(self, tokens: torch.Tensor, layout: TokenLayout, normalize: bool = False) -> torch.Tensor:
        """Return the patch tokens as a feature map `(B, C, h, w)`.

        Args:
            tokens: `(B, num_prefix_tokens + h * w, C)`, after any block.
            layout: as returned by `embed`.
            normalize: whether to apply the final norm, as DINOv2 and DINOv3 do after every block that they read. Needs
                `config.final_norm`.
        """
        if normalize:
            assert self.norm is not None, "the trunk was built without a final norm"
            tokens = self.norm(tokens)
        return tokens[:, self.num_prefix_tokens :].transpose(1, 2).unflatten(2, layout.grid)


def init_trunk_weights(module: nn.Module, config: TrunkConfig) -> None:
    """Initialize the parameters of a trunk that do not belong to linear, convolution and layer norm layers.

    For use in `_init_weights`.
    """
    if isinstance(module, TrunkEmbeddings):
        for name in ("pos_embed", *module.prefix_names):
            if getattr(module, name) is not None:
                init.trunc_normal_(getattr(module, name), std=config.initializer_range)
    elif isinstance(module, LayerScale):
        init.constant_(module.gamma, config.layer_scale_init_value)
    elif isinstance(module, RmsNorm):
        init.ones_(module.weight)
    elif isinstance(module, (BeitTrunkAttention, EvaTrunkAttention)):
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
    if hasattr(module, "init_non_persistent_buffers"):  # timm's hook for buffers that checkpoints lack
        module.init_non_persistent_buffers()
