# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Backbones that put a convolutional pyramid beside a plain ViT: ViT-Adapter and ViT-CoMer differ in the interactions.

Behaviour follows `segmentation/mmseg_custom/models/backbones/vit_adapter.py` of czczup/ViT-Adapter, and `vit_comer.py`
there of Traffic-X/ViT-CoMer.
"""

import functools
from collections.abc import Callable, Iterator

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BackboneOutput
from transformers.utils import can_return_tuple

from ..layers.backbones import STRIDES, check_images, chosen_hidden_states, padded_to_stride, wanted_hidden_states
from ..trunk import TrunkBackbone
from .assembly import assembled_maps
from .configuration_pyramid import PyramidConfig
from .modules_pyramid import (
    Grid,
    SamplingGeometry,
    SpatialPrior,
    cropped_to_input,
    init_pyramid_weights,
)

RunBlocks = Callable[[torch.Tensor, int, int], Iterator[torch.Tensor]]


class PyramidInteraction(nn.Module):
    """A slice of the trunk's blocks between what flows from the pyramid to the trunk and what flows back.

    Args:
        first, last: the slice, both ends included.
    """

    def __init__(self, first: int, last: int):
        super().__init__()
        self.first, self.last = first, last

    def inject(
        self, tokens: torch.Tensor, pyramid: torch.Tensor, geometries: list[SamplingGeometry], grids: list[Grid]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """New patch tokens `(B, h * w, C)` and pyramid tokens `(B, 16n + 4n + n, C)` from the old ones."""
        raise NotImplementedError

    def extract(
        self, pyramid: torch.Tensor, tokens: torch.Tensor, geometries: list[SamplingGeometry], grids: list[Grid]
    ) -> torch.Tensor:
        """New pyramid tokens from the old ones and the patch tokens after the slice."""
        raise NotImplementedError

    def forward(
        self,
        tokens: torch.Tensor,
        pyramid: torch.Tensor,
        run_blocks: RunBlocks,
        num_prefix_tokens: int,
        geometries: list[SamplingGeometry],
        grids: list[Grid],
        hidden_states: list[torch.Tensor] | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gives the tokens after the slice, `(B, prefix + h * w, C)`, and the new pyramid tokens.

        Args:
            run_blocks: the trunk's, with the layout of the tokens.
            num_prefix_tokens: how many stand in front of the patches.
            geometries: as the backbone's `sampling_geometries` gave them.
            grids: of the pyramid's three levels (strides 8, 16, 32); the second is the trunk's own token grid.
            hidden_states: takes the tokens after each block, where they are wanted.
        """
        prefix, patches = tokens[:, :num_prefix_tokens], tokens[:, num_prefix_tokens:]
        patches, pyramid = self.inject(patches, pyramid, geometries, grids)
        for tokens in run_blocks(torch.cat([prefix, patches], dim=1), self.first, self.last):
            if hidden_states is not None:
                hidden_states.append(tokens)
        return tokens, self.extract(pyramid, tokens[:, num_prefix_tokens:], geometries, grids)


class PyramidBackbone(TrunkBackbone):
    """A plain ViT with a convolutional pyramid beside it. Subclasses build the interactions.

    Feature maps: `stem` (stride 4, `config.spatial_prior_channels` wide) and `stage1` to `stage4` (strides 4, 8, 16
    and 32, `config.hidden_size` wide). Images need at least 32 pixels on each side. The originals accept only sides
    that are multiples of 32 and give the same maps there; other images are padded with zeros at the right and the
    bottom and the maps cropped to `ceil(side / stride)`.

    Args:
        config: a [`PyramidConfig`].
    """

    config: PyramidConfig
    _no_split_modules = [*TrunkBackbone._no_split_modules, "SpatialPrior", "Extractor"]

    def __init__(self, config: PyramidConfig):
        super().__init__(config)
        hidden_size = config.hidden_size
        self.num_features = [config.spatial_prior_channels] + [hidden_size] * 4
        self.spatial_prior = SpatialPrior(config.spatial_prior_channels, hidden_size)
        self.level_embed = nn.Parameter(torch.zeros(3, hidden_size))
        self.interactions = nn.ModuleList(
            self.build_interaction(index) for index in range(len(config.interaction_indexes))
        )
        self.upsample = nn.ConvTranspose2d(hidden_size, hidden_size, kernel_size=2, stride=2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(hidden_size) for _ in STRIDES)
        self.post_init()

    def build_interaction(self, index: int) -> PyramidInteraction:
        """The interaction for pair `index` of `config.interaction_indexes`."""
        raise NotImplementedError

    def sampling_geometries(self, grids: list[Grid], device: torch.device) -> list[SamplingGeometry]:
        """What the deformable attentions of the interactions need.

        Args:
            grids: of the pyramid's three levels; the second is the trunk's.
        """
        raise NotImplementedError

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_pyramid_weights(module)
        if isinstance(module, PyramidBackbone):
            init.normal_(module.level_embed)

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
        check_images(pixel_values)
        height, width = pixel_values.shape[2:]
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
        geometries = self.sampling_geometries(grids, pixel_values.device)

        output_hidden_states = wanted_hidden_states(self, output_hidden_states)
        hidden_states = [tokens] if output_hidden_states is not False else None
        trunk_features = []
        for interaction in self.interactions:
            tokens, pyramid = interaction(
                tokens, pyramid, run_blocks, num_prefix_tokens, geometries, grids, hidden_states
            )
            if self.config.add_trunk_features:
                patches = tokens[:, num_prefix_tokens:]
                trunk_features.append(patches.transpose(1, 2).unflatten(2, grid))

        feature_maps = assembled_maps(self.upsample, self.norms, maps[0], pyramid, grids, trunk_features)
        named = dict(zip(self.stage_names, (stem, *feature_maps), strict=True))
        strides = dict(zip(self.stage_names, (STRIDES[0], *STRIDES), strict=True))
        return BackboneOutput(
            feature_maps=tuple(
                cropped_to_input(named[name], strides[name], height, width) for name in self.out_features
            ),
            hidden_states=chosen_hidden_states(self, hidden_states, output_hidden_states),
        )


__all__ = ["PyramidBackbone", "PyramidInteraction"]
