# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Base of the backbones with a convolutional pyramid beside a plain ViT: ViT-Adapter and ViT-CoMer.

Behaviour follows `segmentation/mmseg_custom/models/backbones/vit_adapter.py` of czczup/ViT-Adapter, and `vit_comer.py`
there of Traffic-X/ViT-CoMer.
"""

import abc
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BackboneOutput
from transformers.utils import can_return_tuple

from ..layers.deformable_attention import SamplingGeometry
from ..layers.hidden_states import hidden_states_selection, select_hidden_states
from ..layers.input_checks import check_image_size
from ..layers.keywords import check_transformers_kwargs
from ..layers.resize import STRIDES, AddResized, AddUpsampled, crop_to_image, pad_to_multiple
from ..layers.token_grid import Grid, grid_of, split_levels
from ..trunk import TrunkBackbone
from .configuration_pyramid import PyramidConfig
from .modules_pyramid import SpatialPrior, init_pyramid_weights

RunBlocks = Callable[[torch.Tensor, int, int], Iterator[torch.Tensor]]
ReadTokens = Callable[[torch.Tensor], torch.Tensor]


class PyramidInteraction(nn.Module, abc.ABC):
    """One exchange between trunk and pyramid: injection, a slice of the trunk's blocks, extraction.

    Args:
        first, last: indices of the slice's first and last block.
    """

    def __init__(self, first: int, last: int):
        super().__init__()
        self.first, self.last = first, last

    @abc.abstractmethod
    def inject(
        self, tokens: torch.Tensor, pyramid: torch.Tensor, geometries: list[SamplingGeometry], grids: list[Grid]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return new patch tokens `(B, h * w, C)` and pyramid tokens `(B, 16n + 4n + n, C)` before the slice."""

    @abc.abstractmethod
    def extract(
        self, pyramid: torch.Tensor, tokens: torch.Tensor, geometries: list[SamplingGeometry], grids: list[Grid]
    ) -> torch.Tensor:
        """Return new pyramid tokens from the old ones and the patch tokens after the slice."""

    def forward(
        self,
        tokens: torch.Tensor,
        pyramid: torch.Tensor,
        run_blocks: RunBlocks,
        patch_tokens: ReadTokens,
        num_prefix_tokens: int,
        geometries: list[SamplingGeometry],
        grids: list[Grid],
        hidden_states: list[torch.Tensor] | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the tokens after the slice, `(B, prefix + h * w, C)`, their patch tokens and the new pyramid tokens.

        Args:
            run_blocks: the trunk's method, with the layout of the tokens.
            patch_tokens: the trunk's method, which returns the patch tokens, through its final norm where it has one.
            num_prefix_tokens: number of tokens before the patch tokens.
            geometries: result of the backbone's `sampling_geometries`.
            grids: token grids of the pyramid's levels at strides 8, 16 and 32.
            hidden_states: list to which the tokens after each block are appended; None if they are not requested.
        """
        prefix, patches = tokens[:, :num_prefix_tokens], tokens[:, num_prefix_tokens:]
        patches, pyramid = self.inject(patches, pyramid, geometries, grids)
        for tokens in run_blocks(torch.cat([prefix, patches], dim=1), self.first, self.last):
            if hidden_states is not None:
                hidden_states.append(tokens)
        patches = patch_tokens(tokens)
        return tokens, patches, self.extract(pyramid, patches, geometries, grids)


class PyramidBackbone(TrunkBackbone, abc.ABC):
    """A plain ViT with a convolutional pyramid beside it. Subclasses build the interactions.

    Feature maps: `stem` (stride 4, `config.spatial_prior_channels` channels) and `stage1` to `stage4` (strides 4, 8, 16
    and 32, `config.hidden_size` channels). Where a side is not a multiple of 32, which the originals refuse, the image
    is padded with zeros at the right and the bottom and the feature maps are cropped to `ceil(side / stride)`.

    Args:
        config: a [`PyramidConfig`].
    """

    config: PyramidConfig
    _no_split_modules = [*TrunkBackbone._no_split_modules, "SpatialPrior", "Extractor"]

    def __init__(self, config: PyramidConfig):
        super().__init__(config)
        hidden_size = config.hidden_size
        self.num_features = [config.spatial_prior_channels] + [hidden_size] * 4
        self.spatial_prior = SpatialPrior(config.spatial_prior_channels, hidden_size, config.num_channels)
        self.level_embed = nn.Parameter(torch.zeros(3, hidden_size))
        self.interactions = nn.ModuleList(
            self.build_interaction(index) for index in range(len(config.interaction_indexes))
        )
        self.upsample = nn.ConvTranspose2d(hidden_size, hidden_size, kernel_size=2, stride=2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(hidden_size) for _ in STRIDES)
        self.add_upsampled, self.add_resized = AddUpsampled(), AddResized()
        self.channels_last = False  # memory format of the feature maps
        self.post_init()

    @abc.abstractmethod
    def build_interaction(self, index: int) -> PyramidInteraction:
        """Build the interaction for pair `index` of `config.interaction_indexes`."""

    @abc.abstractmethod
    def sampling_geometries(self, grids: list[Grid], trunk_grid: Grid, device: torch.device) -> list[SamplingGeometry]:
        """Return the sampling geometries of the interactions' deformable attentions.

        Args:
            grids: token grids of the pyramid's levels at strides 8, 16 and 32.
            trunk_grid: the grid of the trunk's patch tokens, which is `grids[1]` where `config.token_stride` is 16.
        """

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_pyramid_weights(module)
        if isinstance(module, PyramidBackbone):
            init.normal_(module.level_embed)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | int | list[int] | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> BackboneOutput:
        """
        Args:
            pixel_values: `(B, num_channels, H, W)`, normalized.
            output_hidden_states: also return the trunk's tokens, `(B, prefix + h * w, C)`, after the embedding and
                after each block. The grid (h, w) is that of the padded image. With indices, the others are None.
            output_attentions: accepted like by every backbone; timm's fused attention returns no weights.
            kwargs: other names of `TransformersKwargs`, which transformers' heads pass on. They have no effect.

        Returns:
            `BackboneOutput` with the `feature_maps` named by `config.out_features`,
            `(B, C, ceil(H / stride), ceil(W / stride))`.

        Raises:
            TypeError: for an unknown keyword argument.
            ValueError: if `pixel_values` is not a batch of images with `num_channels` channels.
        """
        check_transformers_kwargs(kwargs)
        check_image_size(pixel_values, self.config.num_channels)
        height, width = pixel_values.shape[2:]
        pixel_values = pad_to_multiple(pixel_values.to(self.get_input_embeddings().weight.dtype))

        stem, prior_maps = self.spatial_prior(pixel_values)
        finest, *coarser = prior_maps
        grids = [grid_of(feature_map) for feature_map in coarser]
        pyramid = torch.cat(
            [
                feature_map.flatten(2).transpose(1, 2) + embedding
                for feature_map, embedding in zip(coarser, self.level_embed, strict=True)
            ],
            dim=1,
        )
        tokens, layout = self.trunk.embed(pixel_values)
        num_prefix_tokens = self.trunk.num_prefix_tokens
        # passed without the trunk itself: hooks that move a module's arguments to its device would move all of it
        run_blocks = functools.partial(self.trunk.run_blocks, layout=layout)
        geometries = self.sampling_geometries(grids, layout.grid, pixel_values.device)

        selection = hidden_states_selection(self, output_hidden_states)
        hidden_states = [tokens] if selection is not False else None
        trunk_maps = []
        for interaction in self.interactions:
            tokens, patches, pyramid = interaction(
                tokens,
                pyramid,
                run_blocks,
                self.trunk.patch_tokens,
                num_prefix_tokens,
                geometries,
                grids,
                hidden_states,
            )
            if self.config.add_trunk_features:
                trunk_maps.append(patches.transpose(1, 2).unflatten(2, layout.grid))

        if self.config.add_last_trunk_features:
            trunk_maps = trunk_maps[-1:] * len(trunk_maps)
        named = dict(zip(self.stage_names, [stem, *self._assemble(finest, pyramid, grids, trunk_maps)], strict=True))
        strides = dict(zip(self.stage_names, (STRIDES[0], *STRIDES), strict=True))
        return BackboneOutput(
            feature_maps=tuple(crop_to_image(named[name], strides[name], height, width) for name in self.out_features),
            hidden_states=select_hidden_states(self, hidden_states, selection),
        )

    def _assemble(
        self, finest: torch.Tensor, pyramid: torch.Tensor, grids: list[Grid], trunk_maps: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Return the four normalized feature maps `(B, C, h, w)` at strides 4, 8, 16 and 32.

        Args:
            finest: the spatial prior's feature map at stride 4.
            pyramid: tokens `(B, sum(h * w), C)` of `grids`.
            trunk_maps: empty, or for each feature map the trunk's tokens `(B, C, h, w)` that are resized and added.
        """
        # torch's batch norm on a CPU has wrong gradients for a view into the tokens of one image (torch 2.14), so each
        # level becomes a tensor of its own
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        levels = [level.contiguous(memory_format=memory_format) for level in split_levels(pyramid, grids)]
        feature_maps = [self.add_upsampled(finest, self.upsample(levels[0])), *levels]
        for index, trunk_map in enumerate(trunk_maps):
            feature_maps[index] = self.add_resized(feature_maps[index], trunk_map)
        return [norm(feature_map) for norm, feature_map in zip(self.norms, feature_maps, strict=True)]


__all__ = ["PyramidBackbone", "PyramidInteraction"]
