# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""ViT-CoMer: Vision Transformer with Convolutional Multi-scale Feature Interaction for Dense Predictions
(https://arxiv.org/abs/2403.07392).

Behaviour follows `segmentation/mmseg_custom/models/backbones/vit_comer.py` of Traffic-X/ViT-CoMer, also where it
differs from the paper.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import initialization as init

from ..layers.deformable_attention import SamplingGeometry
from ..layers.drop_path import DropPath
from ..layers.resize import resize
from ..layers.token_grid import Grid, split_levels
from ..pyramid.modeling_pyramid import PyramidBackbone, PyramidInteraction
from ..pyramid.modules_pyramid import ConvFeedForward, DeformableCrossAttention, Extractor
from .configuration_vit_comer import ViTCoMerConfig

NUM_LEVELS = 3
NUM_EXTRA_EXTRACTORS = 4


class ViTCoMerReceptiveFields(nn.Module):
    """Depthwise convolutions of two sizes on one level of the pyramid: half of the channels each.

    Args:
        channels: in and out.
    """

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.narrow = nn.Conv2d(half, half, kernel_size=3, padding=1, groups=half)
        self.wide = nn.Conv2d(half, half, kernel_size=5, padding=2, groups=half)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, level: torch.Tensor) -> torch.Tensor:
        """Map `(B, channels, h, w)` to the same shape."""
        first, second = level.chunk(2, dim=1)
        return self.norm(torch.cat([self.narrow(first), self.wide(second)], dim=1))


class JoinLevels(nn.Module):
    """Join feature maps `(B, C, h, w)` to tokens `(B, sum(h * w), C)`.

    They are joined with channels first: torch's batch norm on a CPU has wrong gradients for a view into the tokens of
    one image (torch 2.14).
    """

    def forward(self, levels: Sequence[torch.Tensor]) -> torch.Tensor:
        """Map `(B, C, h, w)` of each level to `(B, sum(h * w), C)`."""
        return torch.cat([level.flatten(2) for level in levels], dim=2).transpose(1, 2)


class ViTCoMerFeaturePyramid(nn.Module):
    """Multi-receptive-field feature pyramid, which replaces the pyramid's tokens without a residual.

    Not a `GradientCheckpointingLayer`: the second forward pass would update its batch norms once more.
    """

    def __init__(self, config: ViTCoMerConfig):
        super().__init__()
        width = int(config.hidden_size * config.receptive_field_ratio)
        self.fc1 = nn.Linear(config.hidden_size, width)
        self.levels = nn.ModuleList(ViTCoMerReceptiveFields(width) for _ in range(NUM_LEVELS))
        self.act = nn.GELU()
        self.join = JoinLevels()
        self.fc2 = nn.Linear(width, config.hidden_size)

    def forward(self, pyramid: torch.Tensor, grids: list[Grid]) -> torch.Tensor:
        """Map `(B, 16n + 4n + n, C)` to the same shape."""
        levels = split_levels(self.fc1(pyramid), grids)
        levels = [self.act(fields(level)) for fields, level in zip(self.levels, levels, strict=True)]
        # the original applies its activation to every level and then once more to all of them
        return self.fc2(self.act(self.join(levels)))


class ViTCoMerToTrunk(DeformableCrossAttention):
    """Let the pyramid's levels attend to one another and add their sum, scaled by `gamma`, to the patch tokens."""

    def __init__(self, config: ViTCoMerConfig):
        super().__init__(config, NUM_LEVELS)
        # use_conv_ffn concerns the extractors only
        self.ffn = ConvFeedForward(config.hidden_size, config.conv_ffn_ratio)
        self.ffn_norm = nn.LayerNorm(config.hidden_size, eps=config.adapter_layer_norm_eps)
        self.drop_path = DropPath(config.adapter_drop_path_rate)
        self.gamma = nn.Parameter(torch.full((config.hidden_size,), float(config.injector_init_value)))

    def forward(
        self, tokens: torch.Tensor, pyramid: torch.Tensor, geometry: SamplingGeometry, grids: list[Grid]
    ) -> torch.Tensor:
        """Return new patch tokens from the old ones `(B, h * w, C)` and pyramid tokens `(B, 16n + 4n + n, C)`."""
        attended = self.attend(pyramid, pyramid, geometry)
        attended = attended + self.drop_path(self.ffn(self.ffn_norm(attended), grids))
        fine, middle, coarse = (resize(level, grids[1]) for level in split_levels(attended, grids))
        return tokens + self.gamma * (fine + middle + coarse).flatten(2).transpose(1, 2)


class ViTCoMerToPyramid(nn.Module):
    """Add the patch tokens to the pyramid's level of the same size, then let the levels attend to one another.

    Args:
        interacts: whether the levels attend to one another.
        feeds_forward: whether a feed-forward network comes before that attention.
    """

    def __init__(self, config: ViTCoMerConfig, interacts: bool, feeds_forward: bool):
        super().__init__()
        self.ffn = None
        if feeds_forward:
            self.ffn = ConvFeedForward(config.hidden_size, config.conv_ffn_ratio)
            self.ffn_norm = nn.LayerNorm(config.hidden_size, eps=config.adapter_layer_norm_eps)
            self.drop_path = DropPath(config.adapter_drop_path_rate)
        self.extractor = None
        if interacts:
            self.query_norm = nn.LayerNorm(config.hidden_size, eps=config.adapter_layer_norm_eps)
            self.feat_norm = nn.LayerNorm(config.hidden_size, eps=config.adapter_layer_norm_eps)
            self.extractor = Extractor(config, NUM_LEVELS)

    def forward(
        self, pyramid: torch.Tensor, tokens: torch.Tensor, geometry: SamplingGeometry, grids: list[Grid]
    ) -> torch.Tensor:
        """Return new pyramid tokens from the old ones `(B, 16n + 4n + n, C)` and patch tokens `(B, h * w, C)`."""
        pyramid = add_to_middle(pyramid, tokens, grids)
        if self.ffn is not None:
            pyramid = pyramid + self.drop_path(self.ffn(self.ffn_norm(pyramid), grids))
        if self.extractor is not None:
            # as in the original: the extractor normalizes once more, and its residual is the normalized pyramid
            pyramid = self.extractor(self.query_norm(pyramid), self.feat_norm(pyramid), geometry, grids)
        return pyramid


def add_to_middle(pyramid: torch.Tensor, tokens: torch.Tensor, grids: list[Grid]) -> torch.Tensor:
    """Add patch tokens `(B, h * w, C)` to the second level of pyramid tokens `(B, 16n + 4n + n, C)`."""
    fine, middle, coarse = pyramid.split([height * width for height, width in grids], dim=1)
    return torch.cat([fine, middle + tokens, coarse], dim=1)


class ViTCoMerInteraction(PyramidInteraction):
    """Pyramid to trunk, a slice of the trunk's blocks, trunk to pyramid.

    Args:
        index: position of the interaction; the last one may have extra modules from the trunk to the pyramid.
    """

    def __init__(self, config: ViTCoMerConfig, index: int):
        super().__init__(*config.interaction_indexes[index])
        interacts = config.use_feature_interaction[index]
        self.feature_pyramid = self.to_trunk = self.to_pyramid = None
        if config.use_to_trunk[index]:
            self.feature_pyramid = ViTCoMerFeaturePyramid(config)
            self.to_trunk = ViTCoMerToTrunk(config)
        if config.use_to_pyramid[index]:
            self.to_pyramid = ViTCoMerToPyramid(config, interacts, feeds_forward=False)
        is_last = index == len(config.interaction_indexes) - 1
        self.extra_to_pyramid = nn.ModuleList(
            ViTCoMerToPyramid(config, interacts, feeds_forward=config.use_conv_ffn)
            for _ in range(NUM_EXTRA_EXTRACTORS if is_last and config.use_extra_extractors else 0)
        )

    def inject(
        self, tokens: torch.Tensor, pyramid: torch.Tensor, geometries: list[SamplingGeometry], grids: list[Grid]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.feature_pyramid is None or self.to_trunk is None:
            return tokens, pyramid
        pyramid = add_to_middle(self.feature_pyramid(pyramid, grids), tokens, grids)
        return self.to_trunk(tokens, pyramid, geometries[0], grids), pyramid

    def extract(
        self, pyramid: torch.Tensor, tokens: torch.Tensor, geometries: list[SamplingGeometry], grids: list[Grid]
    ) -> torch.Tensor:
        if self.to_pyramid is not None:
            pyramid = self.to_pyramid(pyramid, tokens, geometries[0], grids)
        for extra in self.extra_to_pyramid:
            pyramid = extra(pyramid, tokens, geometries[0], grids)
        return pyramid


class ViTCoMerBackbone(PyramidBackbone):
    """ViT-CoMer around a plain ViT. [`PyramidBackbone`] describes its feature maps.

    Args:
        config: a [`ViTCoMerConfig`].
    """

    config: ViTCoMerConfig
    _no_split_modules = [*PyramidBackbone._no_split_modules, "ViTCoMerToTrunk"]

    def build_interaction(self, index: int) -> ViTCoMerInteraction:
        return ViTCoMerInteraction(self.config, index)

    def sampling_geometries(self, grids: list[Grid], trunk_grid: Grid, device: torch.device) -> list[SamplingGeometry]:
        """Return the geometry of the pyramid's levels attending to one another."""
        return [SamplingGeometry.build(grids, grids, device)]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ViTCoMerToTrunk):
            init.constant_(module.gamma, self.config.injector_init_value)


__all__ = ["ViTCoMerBackbone"]
