# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""ViT-Adapter: Vision Transformer Adapter for Dense Predictions (https://arxiv.org/abs/2205.08534).

Behaviour follows `segmentation/mmseg_custom/models/backbones/vit_adapter.py` of czczup/ViT-Adapter.
"""

import functools
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BackboneOutput
from transformers.utils import can_return_tuple, logging

from ..backbones import STRIDES, chosen_hidden_states
from ..pyramid import (
    ConvFeedForward,
    DeformableAttention,
    DropPath,
    Grid,
    SamplingGeometry,
    SpatialPrior,
    cropped_to_input,
    init_pyramid_weights,
    padded_to_stride,
)
from ..trunk import UNSPLIT_MODULES, FromTrunkMixin, Trunk, init_trunk_weights
from .configuration_vit_adapter import ViTAdapterConfig

logger = logging.get_logger(__name__)
RunBlocks = Callable[[torch.Tensor, int, int], Iterator[torch.Tensor]]


class ViTAdapterCrossAttention(GradientCheckpointingLayer):
    """What injector and extractor share: deformable attention between normalised queries and values."""

    def __init__(self, config: ViTAdapterConfig, num_levels: int):
        super().__init__()
        self.query_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feat_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = DeformableAttention(
            config.hidden_size,
            num_heads=config.deformable_num_heads,
            num_levels=num_levels,
            num_points=config.deformable_num_points,
            value_ratio=config.deformable_value_ratio,
        )

    def attend(self, query: torch.Tensor, value: torch.Tensor, geometry: SamplingGeometry) -> torch.Tensor:
        """From `(B, queries, C)` and `(B, tokens, C)` to `(B, queries, C)`."""
        return self.attn(self.query_norm(query), self.feat_norm(value), geometry)


class ViTAdapterInjector(ViTAdapterCrossAttention):
    """Adds to the patch tokens what deformable attention reads from the pyramid, scaled by `gamma`."""

    def __init__(self, config: ViTAdapterConfig):
        super().__init__(config, num_levels=3)
        self.gamma = nn.Parameter(torch.full((config.hidden_size,), float(config.injector_init_value)))

    def forward(self, tokens: torch.Tensor, pyramid: torch.Tensor, geometry: SamplingGeometry) -> torch.Tensor:
        """From patch tokens `(B, h * w, C)` and pyramid tokens `(B, 16n + 4n + n, C)` to patch tokens."""
        return tokens + self.gamma * self.attend(tokens, pyramid, geometry)


class ViTAdapterExtractor(ViTAdapterCrossAttention):
    """Adds to the pyramid what deformable attention reads from the patch tokens."""

    def __init__(self, config: ViTAdapterConfig):
        super().__init__(config, num_levels=1)
        self.ffn = None
        if config.use_conv_ffn:
            self.ffn = ConvFeedForward(config.hidden_size, config.conv_ffn_ratio)
            self.ffn_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
            self.drop_path = DropPath(config.drop_path_rate)

    def forward(
        self, pyramid: torch.Tensor, tokens: torch.Tensor, geometry: SamplingGeometry, grids: list[Grid]
    ) -> torch.Tensor:
        """From pyramid tokens `(B, 16n + 4n + n, C)` and patch tokens `(B, h * w, C)` to pyramid tokens."""
        pyramid = pyramid + self.attend(pyramid, tokens, geometry)
        if self.ffn is not None:
            pyramid = pyramid + self.drop_path(self.ffn(self.ffn_norm(pyramid), grids))
        return pyramid


class ViTAdapterInteraction(nn.Module):
    """Injector, a slice of the trunk's blocks, extractor (and two more extractors in the last interaction).

    Args:
        first, last: the slice, both ends included.
        num_extra_extractors: extractors that follow on the same tokens.
    """

    def __init__(self, config: ViTAdapterConfig, first: int, last: int, num_extra_extractors: int):
        super().__init__()
        self.first, self.last = first, last
        self.injector = ViTAdapterInjector(config)
        self.extractor = ViTAdapterExtractor(config)
        self.extra_extractors = nn.ModuleList(ViTAdapterExtractor(config) for _ in range(num_extra_extractors))

    def forward(
        self,
        tokens: torch.Tensor,
        pyramid: torch.Tensor,
        run_blocks: RunBlocks,
        num_prefix_tokens: int,
        injection: SamplingGeometry,
        extraction: SamplingGeometry,
        grids: list[Grid],
        hidden_states: list[torch.Tensor] | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gives the tokens after the slice, `(B, prefix + h * w, C)`, and the new pyramid tokens.

        Args:
            run_blocks: the trunk's, with the layout of the tokens.
            num_prefix_tokens: how many stand in front of the patches.
            grids: of the pyramid's three levels (strides 8, 16, 32); the second is the trunk's own token grid.
            hidden_states: takes the tokens after each block, where they are wanted.
        """
        prefix, patches = tokens[:, :num_prefix_tokens], tokens[:, num_prefix_tokens:]
        patches = self.injector(patches, pyramid, injection)
        for tokens in run_blocks(torch.cat([prefix, patches], dim=1), self.first, self.last):
            if hidden_states is not None:
                hidden_states.append(tokens)
        patches = tokens[:, num_prefix_tokens:]
        for extractor in (self.extractor, *self.extra_extractors):
            pyramid = extractor(pyramid, patches, extraction, grids)
        return tokens, pyramid


class ViTAdapterPreTrainedModel(PreTrainedModel):
    """Weight initialisation, and what transformers asks of a family of models."""

    config: ViTAdapterConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _no_split_modules = [*UNSPLIT_MODULES, "SpatialPrior", "ViTAdapterInjector", "ViTAdapterExtractor"]
    _supports_sdpa = True  # timm's blocks call it themselves

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_pyramid_weights(module)
        init_trunk_weights(module, self.config)
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, ViTAdapterInjector):
            init.constant_(module.gamma, self.config.injector_init_value)
        elif isinstance(module, ViTAdapterBackbone):
            init.normal_(module.level_embed)


class ViTAdapterBackbone(FromTrunkMixin, BackboneMixin, ViTAdapterPreTrainedModel):
    """ViT-Adapter around a plain ViT.

    Feature maps: `stem` (stride 4, `config.spatial_prior_channels` wide) and `stage1` to `stage4` (strides 4, 8, 16
    and 32, `config.hidden_size` wide). Images need at least 32 pixels on each side. The original accepts only sides
    that are multiples of 32 and gives the same maps there; other images are padded with zeros at the right and the
    bottom and the maps cropped to `ceil(side / stride)`.

    Args:
        config: a [`ViTAdapterConfig`].
    """

    has_attentions = False

    def __init__(self, config: ViTAdapterConfig):
        super().__init__(config)
        hidden_size = config.hidden_size
        self.num_features = [config.spatial_prior_channels] + [hidden_size] * 4
        self.trunk = Trunk(config)
        self.spatial_prior = SpatialPrior(config.spatial_prior_channels, hidden_size)
        self.level_embed = nn.Parameter(torch.zeros(3, hidden_size))
        slices = config.interaction_indexes
        self.interactions = nn.ModuleList(
            ViTAdapterInteraction(
                config,
                first,
                last,
                num_extra_extractors=2 if config.use_extra_extractors and index == len(slices) - 1 else 0,
            )
            for index, (first, last) in enumerate(slices)
        )
        self.upsample = nn.ConvTranspose2d(hidden_size, hidden_size, kernel_size=2, stride=2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(hidden_size) for _ in STRIDES)
        self.post_init()
        if config._attn_implementation == "eager":
            logger.warning_once("attn_implementation='eager' has no effect: timm's blocks use their own attention.")

    def get_input_embeddings(self) -> nn.Module:
        return self.trunk.embeddings.patch_embed.proj

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, output_hidden_states: bool | int | list[int] | None = None
    ) -> BackboneOutput:
        """
        Args:
            pixel_values: `(B, 3, H, W)`, normalised, at least 32 pixels on each side.
            output_hidden_states: also return the trunk's tokens, `(B, prefix + h * w, C)`: embedded, and after each
                block. The grid (h, w) is that of the padded image. With indices, only those; the others are None.

        Returns:
            `BackboneOutput` with the `feature_maps` named by `config.out_features`,
            `(B, C, ceil(H / stride), ceil(W / stride))`.

        Raises:
            ValueError: if `pixel_values` is no batch of RGB images or an image is too small.
        """
        height, width = pixel_values.shape[-2:]
        pixel_values = padded_to_stride(pixel_values.to(self.get_input_embeddings().weight.dtype))

        stem, maps = self.spatial_prior(pixel_values)
        grids = [(map_.shape[2], map_.shape[3]) for map_ in maps[1:]]
        pyramid = torch.cat(
            [map_.flatten(2).transpose(1, 2) + embed for map_, embed in zip(maps[1:], self.level_embed, strict=True)],
            dim=1,
        )
        tokens, layout = self.trunk.embed(pixel_values)
        grid, num_prefix_tokens = layout.grid, self.trunk.num_prefix_tokens
        # not the trunk itself: hooks that move a module's arguments to its device would move all of the trunk
        run_blocks = functools.partial(self.trunk.run_blocks, layout=layout)
        injection = SamplingGeometry.build([grid], grids, pixel_values.device)
        extraction = SamplingGeometry.build(grids, [grid], pixel_values.device)

        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        # an index may be 0, so "is not False" and not truth
        hidden_states = [tokens] if output_hidden_states is not False else None
        trunk_features = []
        for interaction in self.interactions:
            tokens, pyramid = interaction(
                tokens, pyramid, run_blocks, num_prefix_tokens, injection, extraction, grids, hidden_states
            )
            if self.config.add_trunk_features:
                patches = tokens[:, num_prefix_tokens:]
                trunk_features.append(patches.transpose(1, 2).unflatten(2, grid))

        feature_maps = self._assemble(maps[0], pyramid, grids, trunk_features)
        named = dict(zip(self.stage_names, (stem, *feature_maps), strict=True))
        strides = dict(zip(self.stage_names, (STRIDES[0], *STRIDES), strict=True))
        return BackboneOutput(
            feature_maps=tuple(
                cropped_to_input(named[name], strides[name], height, width) for name in self.out_features
            ),
            hidden_states=chosen_hidden_states(self, hidden_states, output_hidden_states),
        )

    def _assemble(
        self, stride4: torch.Tensor, pyramid: torch.Tensor, grids: list[Grid], trunk_features: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """The four normalised maps from the stride-4 map, the pyramid tokens and, where wanted, the trunk's maps."""
        levels = pyramid.transpose(1, 2).split([rows * columns for rows, columns in grids], dim=2)
        maps = [level.unflatten(2, grid) for level, grid in zip(levels, grids, strict=True)]
        maps = [self.upsample(maps[0]) + stride4, *maps]
        for index, feature in enumerate(trunk_features):
            size = maps[index].shape[2:]
            if feature.shape[2:] != size:
                feature = F.interpolate(feature, size=size, mode="bilinear", align_corners=False)
            maps[index] = maps[index] + feature
        return [norm(map_) for norm, map_ in zip(self.norms, maps, strict=True)]


__all__ = ["ViTAdapterBackbone", "ViTAdapterPreTrainedModel"]
