# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""A plain ViT whose patch tokens become a pyramid of four feature maps without a top-down path.

Sources: the name and the idea are ViTDet's (https://arxiv.org/abs/2203.16527). Behaviour follows
`EVA-02/seg/backbone/eva2.py` of baaivision/EVA, which has the pyramid of `semantic_segmentation/backbone/beit.py` of
microsoft/unilm.
"""

import math
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BackboneOutput
from transformers.utils import can_return_tuple

from ..layers.hidden_states import hidden_states_selection, select_hidden_states
from ..layers.input_checks import check_image_size
from ..layers.keywords import check_transformers_kwargs
from ..layers.resize import STRIDES, crop_to_image, pad_to_multiple
from ..trunk import TrunkBackbone
from .configuration_vit_simple_pyramid import ViTSimplePyramidConfig


def pyramid_level(channels: int, token_stride: int, stride: int) -> nn.Sequential:
    """Return the layers that change the stride of a feature map with `channels` channels.

    Transposed convolutions make it finer and max pooling coarser. Pooling keeps incomplete windows at the border, so
    that a feature map has `ceil(side / stride)` rows or columns.
    """
    if token_stride == 4 * stride:
        return nn.Sequential(
            nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2),
            nn.BatchNorm2d(channels),
            nn.GELU(),
            nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2),
        )
    if token_stride == 2 * stride:
        return nn.Sequential(nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2))
    if token_stride == stride:
        return nn.Sequential()
    factor = stride // token_stride
    return nn.Sequential(nn.MaxPool2d(kernel_size=factor, stride=factor, ceil_mode=True))


class ViTSimplePyramidBackbone(TrunkBackbone):
    """A plain ViT with a simple feature pyramid.

    Feature maps: `stage1` to `stage4` at strides 4, 8, 16 and 32, all with `config.hidden_size` channels. Each is made
    of the tokens after one block, see `config.tapped_blocks`; the trunk's final norm, if any, is applied to them.
    Images may have any size. They are padded with zeros at the right and the bottom to multiples of
    `config.token_stride`, and positions are resized to their token grid.

    Args:
        config: a [`ViTSimplePyramidConfig`].
    """

    config: ViTSimplePyramidConfig

    def __init__(self, config: ViTSimplePyramidConfig):
        super().__init__(config)
        self.num_features = [config.hidden_size] * len(STRIDES)
        self.pyramid = nn.ModuleList(
            pyramid_level(config.hidden_size, config.token_stride, stride) for stride in STRIDES
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.ConvTranspose2d):  # torch's own way, as in the original
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            bound = 1 / math.sqrt(module.weight[0].numel())
            init.uniform_(module.bias, -bound, bound)

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
            output_hidden_states: also return the tokens `(B, prefix + h * w, C)`, embedded and after each block. A list
                of indices returns only those; the others are None.
            output_attentions: has no effect, because the blocks' attention does not return its weights.
            kwargs: other names of `TransformersKwargs`, which transformers' heads pass on. They have no effect.

        Returns:
            `BackboneOutput` with the `feature_maps` named by `config.out_features`,
            `(B, C, ceil(H / stride), ceil(W / stride))`.

        Raises:
            TypeError: for an unknown keyword argument.
            ValueError: if `pixel_values` is no batch of images with `num_channels` channels.

        Example, with a folder written by `convert_eva02.py`:

        ```python
        >>> import torch
        >>> from segtransformers import ViTSimplePyramidBackbone

        >>> backbone = ViTSimplePyramidBackbone.from_pretrained("eva02_B_ade_seg_upernet_sz512")
        >>> feature_maps = backbone(torch.randn(1, 3, 512, 512)).feature_maps
        >>> [tuple(feature_map.shape) for feature_map in feature_maps]
        [(1, 768, 128, 128), (1, 768, 64, 64), (1, 768, 32, 32), (1, 768, 16, 16)]
        ```
        """
        check_transformers_kwargs(kwargs)
        check_image_size(pixel_values, self.config.num_channels)
        size = pixel_values.shape[2:]
        pixel_values = pad_to_multiple(pixel_values, self.config.token_stride)
        trunk, taps = self.trunk, self.config.tap_of_stage
        embedded, layout = trunk.embed(pixel_values.to(self.get_input_embeddings().weight.dtype))
        selection = hidden_states_selection(self, output_hidden_states)
        needed = {taps[name] for name in self.out_features}
        last = max(needed, default=-1) if selection is False else self.config.num_hidden_layers - 1
        tapped, hidden_states = {}, [embedded]
        for block, tokens in enumerate(trunk.run_blocks(embedded, 0, last, layout)):
            if block in needed:
                tapped[block] = trunk.feature_map(tokens, layout, normalize=trunk.norm is not None)
            if selection is not False:
                hidden_states.append(tokens)
        feature_maps = []
        for name in self.out_features:
            level = self.stage_names.index(name)
            feature_map = self.pyramid[level](tapped[taps[name]])
            feature_maps.append(crop_to_image(feature_map, STRIDES[level], *size))
        return BackboneOutput(
            feature_maps=tuple(feature_maps),
            hidden_states=select_hidden_states(self, None if selection is False else hidden_states, selection),
        )


__all__ = ["ViTSimplePyramidBackbone"]
