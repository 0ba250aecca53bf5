# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""ViT-Adapter: Vision Transformer Adapter for Dense Predictions (https://arxiv.org/abs/2205.08534).

Behaviour follows `segmentation/mmseg_custom/models/backbones/vit_adapter.py` of czczup/ViT-Adapter.
"""

import torch
from torch import nn
from transformers import initialization as init

from ..layers.deformable_attention import SamplingGeometry
from ..layers.token_grid import Grid
from ..pyramid.modeling_pyramid import PyramidBackbone, PyramidInteraction
from ..pyramid.modules_pyramid import DeformableCrossAttention, Extractor
from .configuration_vit_adapter import ViTAdapterConfig


class ViTAdapterInjector(DeformableCrossAttention):
    """Add to the patch tokens their deformable attention to the pyramid, scaled by `gamma`."""

    def __init__(self, config: ViTAdapterConfig):
        super().__init__(config, num_levels=3)
        self.gamma = nn.Parameter(torch.full((config.hidden_size,), float(config.injector_init_value)))

    def forward(self, tokens: torch.Tensor, pyramid: torch.Tensor, geometry: SamplingGeometry) -> torch.Tensor:
        """Return new patch tokens from the old ones `(B, h * w, C)` and pyramid tokens `(B, 16n + 4n + n, C)`."""
        return tokens + self.gamma * self.attend(tokens, pyramid, geometry)


class ViTAdapterInteraction(PyramidInteraction):
    """Injector (unless `config.use_injectors` is False), a slice of the trunk's blocks and an extractor.

    Args:
        num_extra_extractors: number of extractors that follow on the same tokens; 2 in the last interaction.
    """

    def __init__(self, config: ViTAdapterConfig, first: int, last: int, num_extra_extractors: int):
        super().__init__(first, last)
        self.injector = ViTAdapterInjector(config) if config.use_injectors else None
        self.extractor = Extractor(config, num_levels=1)
        self.extra_extractors = nn.ModuleList(Extractor(config, num_levels=1) for _ in range(num_extra_extractors))

    def inject(
        self, tokens: torch.Tensor, pyramid: torch.Tensor, geometries: list[SamplingGeometry], grids: list[Grid]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.injector is not None:
            tokens = self.injector(tokens, pyramid, geometries[0])
        return tokens, pyramid

    def extract(
        self, pyramid: torch.Tensor, tokens: torch.Tensor, geometries: list[SamplingGeometry], grids: list[Grid]
    ) -> torch.Tensor:
        for extractor in (self.extractor, *self.extra_extractors):
            pyramid = extractor(pyramid, tokens, geometries[1], grids)
        return pyramid


class ViTAdapterBackbone(PyramidBackbone):
    """ViT-Adapter around a plain ViT. [`PyramidBackbone`] describes its feature maps.

    Args:
        config: a [`ViTAdapterConfig`].
    """

    config: ViTAdapterConfig
    _no_split_modules = [*PyramidBackbone._no_split_modules, "ViTAdapterInjector"]

    def build_interaction(self, index: int) -> ViTAdapterInteraction:
        config, slices = self.config, self.config.interaction_indexes
        first, last = slices[index]
        more = config.use_extra_extractors and index == len(slices) - 1
        return ViTAdapterInteraction(config, first, last, num_extra_extractors=2 if more else 0)

    def sampling_geometries(self, grids: list[Grid], trunk_grid: Grid, device: torch.device) -> list[SamplingGeometry]:
        """Return the geometry of the injectors and that of the extractors."""
        return [
            SamplingGeometry.build([trunk_grid], grids, device),
            SamplingGeometry.build(grids, [trunk_grid], device),
        ]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ViTAdapterInjector):
            init.constant_(module.gamma, self.config.injector_init_value)


__all__ = ["ViTAdapterBackbone"]
