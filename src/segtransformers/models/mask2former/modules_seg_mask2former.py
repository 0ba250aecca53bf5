# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Mask2Former's pixel decoder and transformer decoder.

Parameters have the names and shapes of transformers' `Mask2FormerPixelDecoder` and `Mask2FormerTransformerModule`, so
weights can be exchanged. Their code is not used: it fixes 32 groups and one number of heads, allows neither a compiled
operator nor gradient checkpointing in the pixel decoder, computes sine encodings in half precision, and stores the
masks of all layers and, for every head, an attention mask and attention weights.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from ..layers.deformable_attention import DeformableAttention, SamplingGeometry
from ..layers.resize import AddResized, resize
from ..layers.token_grid import Grid, flatten_levels, grid_of, split_levels
from .configuration_seg_mask2former import SegMask2FormerConfig

LEVELS = 3  # queries attend to the feature maps at strides 32, 16 and 8
POINTS = 4  # sampling points per head and level


def sine_encoding(grid: Grid, channels: int, device: torch.device) -> torch.Tensor:
    """Return sines and cosines of row and column, `(1, h * w, channels)`, float32 in every mode as in the original.

    The first half of the channels encodes the row. Positions run from 1 / side to 1, times 2 pi.
    """
    frequencies = torch.arange(channels // 4, dtype=torch.float32, device=device)
    periods = 10000 ** (4 * frequencies / channels)
    halves = []
    for side in grid:
        positions = torch.arange(1, side + 1, dtype=torch.float32, device=device) / (side + 1e-6) * (2 * math.pi)
        angles = positions[:, None] / periods
        halves.append(torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1))  # (side, channels / 2)
    rows, columns = halves
    height, width = grid
    return torch.cat([rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)], dim=2).flatten(0, 1)[
        None
    ]


class SegMask2FormerPixelDecoderLayer(GradientCheckpointingLayer):
    """Deformable self-attention among the pixels of three levels, then a feed-forward network."""

    def __init__(self, config: SegMask2FormerConfig):
        super().__init__()
        self.self_attn = DeformableAttention(
            config.hidden_dim,
            num_heads=config.encoder_attention_heads,
            num_levels=LEVELS,
            num_points=POINTS,
            value_ratio=1.0,
        )
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_dim)
        self.fc1 = nn.Linear(config.hidden_dim, config.encoder_feedforward_dim)
        self.activation = nn.ReLU()
        self.fc2 = nn.Linear(config.encoder_feedforward_dim, config.hidden_dim)
        self.final_layer_norm = nn.LayerNorm(config.hidden_dim)

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor, geometry: SamplingGeometry) -> torch.Tensor:
        """Map `(B, sum(h * w), C)` to the same shape; positions `(1, sum(h * w), C)` are added to the queries only."""
        tokens = self.self_attn_layer_norm(tokens + self.self_attn(tokens + positions, tokens, geometry))
        return self.final_layer_norm(tokens + self.fc2(self.activation(self.fc1(tokens))))


class SegMask2FormerPixelDecoderEncoder(nn.Module):
    """The layers of the pixel decoder; transformers has them in a module of this name."""

    def __init__(self, config: SegMask2FormerConfig):
        super().__init__()
        self.layers = nn.ModuleList(SegMask2FormerPixelDecoderLayer(config) for _ in range(config.encoder_layers))

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor, geometry: SamplingGeometry) -> torch.Tensor:
        """Run all layers; see [`SegMask2FormerPixelDecoderLayer`]."""
        for layer in self.layers:
            tokens = layer(tokens, positions, geometry)
        return tokens


class SegMask2FormerPixelDecoder(nn.Module):
    """Turn the backbone's feature maps into mask features at stride 4 and feature maps for the queries.

    Args:
        in_channels: channels of the backbone's feature maps at strides 4, 8, 16 and 32.
    """

    def __init__(self, config: SegMask2FormerConfig, in_channels: list[int]):
        super().__init__()
        width, groups = config.hidden_dim, config.norm_groups
        self.input_projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, width, kernel_size=1), nn.GroupNorm(groups, width))
            for channels in in_channels[:0:-1]
        )
        self.level_embed = nn.Parameter(torch.zeros(LEVELS, width))
        self.encoder = SegMask2FormerPixelDecoderEncoder(config)
        self.adapter_1 = nn.Sequential(
            nn.Conv2d(in_channels[0], width, kernel_size=1, bias=False), nn.GroupNorm(groups, width)
        )
        self.add_resized = AddResized()
        self.layer_1 = nn.Sequential(
            nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False),
            nn.GroupNorm(groups, width),
            nn.ReLU(),
        )
        self.mask_projection = nn.Conv2d(width, config.mask_feature_size, kernel_size=1)

    def forward(
        self, feature_maps: Sequence[torch.Tensor], encodings: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """
        Args:
            feature_maps: `(B, C_i, h, w)` at strides 4, 8, 16 and 32.
            encodings: [`sine_encoding`] at strides 32, 16 and 8.

        Returns:
            mask features `(B, mask_feature_size, h, w)` at stride 4, and feature maps `(B, hidden_dim, h, w)` at
            strides 32, 16 and 8.
        """
        finest, *coarser = feature_maps
        grids = [grid_of(feature_map) for feature_map in coarser[::-1]]
        geometry = SamplingGeometry.build(grids, grids, finest.device)
        tokens = flatten_levels(
            [project(feature_map) for project, feature_map in zip(self.input_projections, coarser[::-1], strict=True)]
        )
        positions = torch.cat(
            [encoding + level for encoding, level in zip(encodings, self.level_embed, strict=True)], dim=1
        ).to(tokens.dtype)
        levels = split_levels(self.encoder(tokens, positions, geometry), grids)
        # one name for all of these: they are the head's largest tensors, and only one has to stay in memory
        features = self.adapter_1(finest)
        features = self.add_resized(features, levels[-1])
        features = self.layer_1(features)
        return self.mask_projection(features), levels


class SegMask2FormerCrossAttention(nn.Module):
    """Attention from each query to the pixels that its mask covers. Parameters are those of `nn.MultiheadAttention`."""

    def __init__(self, config: SegMask2FormerConfig):
        super().__init__()
        width = config.hidden_dim
        self.num_heads = config.num_attention_heads
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, allowed: torch.Tensor
    ) -> torch.Tensor:
        """Attend from queries `(B, queries, C)` to keys and values `(B, pixels, C)` where `allowed` is True.

        Args:
            allowed: `(B, queries, pixels)`, bool.

        Returns:
            `(B, queries, C)`.
        """
        projected = [
            F.linear(tokens, weight, bias)
            for tokens, weight, bias in zip(
                (queries, keys, values), self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True
            )
        ]
        return self.out_proj(_attend(*projected, self.num_heads, allowed[:, None]))


class SegMask2FormerSelfAttention(nn.Module):
    """Attention among the queries."""

    def __init__(self, config: SegMask2FormerConfig):
        super().__init__()
        width = config.hidden_dim
        self.num_heads = config.num_attention_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Map queries `(B, queries, C)` with positions, and without them as values, to the same shape."""
        return self.out_proj(_attend(self.q_proj(tokens), self.k_proj(tokens), self.v_proj(values), self.num_heads))


def _attend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    num_heads: int,
    allowed: torch.Tensor | None = None,
) -> torch.Tensor:
    queries, keys, values = (tokens.unflatten(2, (num_heads, -1)).transpose(1, 2) for tokens in (queries, keys, values))
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=allowed).transpose(1, 2).flatten(2)


class SegMask2FormerDecoderLayer(GradientCheckpointingLayer):
    """Masked cross-attention to one level, self-attention, and a feed-forward network, each followed by a norm."""

    def __init__(self, config: SegMask2FormerConfig):
        super().__init__()
        width = config.hidden_dim
        self.cross_attn = SegMask2FormerCrossAttention(config)
        self.cross_attn_layer_norm = nn.LayerNorm(width)
        self.self_attn = SegMask2FormerSelfAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, config.dim_feedforward)
        self.activation = nn.ReLU()
        self.fc2 = nn.Linear(config.dim_feedforward, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(
        self,
        queries: torch.Tensor,
        query_positions: torch.Tensor,
        pixels: torch.Tensor,
        pixel_positions: torch.Tensor,
        allowed: torch.Tensor,
    ) -> torch.Tensor:
        """Map queries `(B, queries, C)` to the same shape.

        Positions `(1, ., C)` are added to queries and keys, never to values.

        Args:
            pixels: the level's tokens `(B, h * w, C)`.
            allowed: `(B, queries, h * w)`, bool: the pixels that each query may attend to.
        """
        attended = self.cross_attn(queries + query_positions, pixels + pixel_positions, pixels, allowed)
        queries = self.cross_attn_layer_norm(queries + attended)
        queries = self.self_attn_layer_norm(queries + self.self_attn(queries + query_positions, queries))
        return self.final_layer_norm(queries + self.fc2(self.activation(self.fc1(queries))))


class SegMask2FormerMaskPredictor(nn.Module):
    """Predict mask embeddings from queries; their products with the mask features are mask logits."""

    def __init__(self, config: SegMask2FormerConfig):
        super().__init__()
        width = config.hidden_dim
        self.mask_embedder = nn.Sequential(
            nn.Sequential(nn.Linear(width, width), nn.ReLU()),
            nn.Sequential(nn.Linear(width, width), nn.ReLU()),
            nn.Sequential(nn.Linear(width, config.mask_feature_size)),
        )

    def forward(self, queries: torch.Tensor) -> torch.Tensor:
        """Map `(B, queries, C)` to `(B, queries, mask_feature_size)`."""
        return self.mask_embedder(queries)


class SegMask2FormerDecoder(nn.Module):
    """The decoder's layers, with predictions before the first and after each of them."""

    def __init__(self, config: SegMask2FormerConfig):
        super().__init__()
        self.layers = nn.ModuleList(SegMask2FormerDecoderLayer(config) for _ in range(config.decoder_layers - 1))
        self.layernorm = nn.LayerNorm(config.hidden_dim)
        self.mask_predictor = SegMask2FormerMaskPredictor(config)

    def forward(
        self,
        queries: torch.Tensor,
        query_positions: torch.Tensor,
        levels: list[torch.Tensor],
        level_positions: list[torch.Tensor],
        level_features: list[torch.Tensor],
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
        """
        Args:
            queries: `(B, queries, C)`.
            levels, level_positions: `(B, h * w, C)` and `(1, h * w, C)` at strides 32, 16 and 8.
            level_features: the mask features at the sizes of the levels, `(B, mask_feature_size, h * w)`.

        Returns:
            three lists with `decoder_layers` entries: the queries, the queries after the final norm, and their mask
            embeddings.
        """
        states, normalised, embeddings = [queries], [self.layernorm(queries)], []
        embeddings.append(self.mask_predictor(normalised[0]))
        for index, layer in enumerate(self.layers):
            level = index % LEVELS
            allowed = _attention_mask(embeddings[-1], level_features[level])
            queries = layer(queries, query_positions, levels[level], level_positions[level], allowed)
            states.append(queries)
            normalised.append(self.layernorm(queries))
            embeddings.append(self.mask_predictor(normalised[-1]))
        return states, normalised, embeddings


@torch.no_grad()
def _attention_mask(embeddings: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Return the pixels that the masks cover, `(B, queries, h * w)`, bool. An empty mask becomes a full one.

    The original resizes mask logits to the level. Here the mask features are resized first, which gives the same
    because both steps are linear, and needs no masks at stride 4.
    """
    covered = torch.bmm(embeddings, features).sigmoid() >= 0.5
    return covered | ~covered.any(dim=-1, keepdim=True)


class SegMask2FormerTransformerModule(nn.Module):
    """The queries, their positions and their decoder."""

    def __init__(self, config: SegMask2FormerConfig):
        super().__init__()
        self.queries_embedder = nn.Embedding(config.num_queries, config.hidden_dim)
        self.queries_features = nn.Embedding(config.num_queries, config.hidden_dim)
        self.decoder = SegMask2FormerDecoder(config)
        self.level_embed = nn.Embedding(LEVELS, config.hidden_dim)

    def forward(
        self, feature_maps: Sequence[torch.Tensor], mask_features: torch.Tensor, encodings: Sequence[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
        """
        Args:
            feature_maps, encodings: `(B, C, h, w)` and [`sine_encoding`] at strides 32, 16 and 8.
            mask_features: `(B, mask_feature_size, h, w)` at stride 4.

        Returns:
            see [`SegMask2FormerDecoder`].
        """
        dtype, device = mask_features.dtype, mask_features.device
        # embeddings are called instead of read, because offloading hooks bring the weights at the call
        level_embeddings = self.level_embed(torch.arange(LEVELS, device=device))
        indices = torch.arange(self.queries_embedder.num_embeddings, device=device)
        levels = [
            feature_map.flatten(2).transpose(1, 2) + embedding
            for feature_map, embedding in zip(feature_maps, level_embeddings, strict=True)
        ]
        with torch.no_grad():
            level_features = [resize(mask_features, feature_map.shape[2:]).flatten(2) for feature_map in feature_maps]
        return self.decoder(
            self.queries_features(indices).expand(mask_features.shape[0], -1, -1),
            self.queries_embedder(indices)[None],
            levels,
            [encoding.to(dtype) for encoding in encodings],
            level_features,
        )


__all__ = [
    "LEVELS",
    "SegMask2FormerCrossAttention",
    "SegMask2FormerDecoderLayer",
    "SegMask2FormerMaskPredictor",
    "SegMask2FormerPixelDecoder",
    "SegMask2FormerPixelDecoderLayer",
    "SegMask2FormerTransformerModule",
    "sine_encoding",
]
