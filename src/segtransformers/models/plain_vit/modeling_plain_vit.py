# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""A plain ViT as a backbone, with the feature maps that DINOv2, DINOv3 and Segmenter take from it.

Behaviour follows `dinov2/models/vision_transformer.py` (`get_intermediate_layers`) and the padding of the notebook
`semantic_segmentation.ipynb` of facebookresearch/dinov2, and `mmseg/models/backbones/vit.py` of MMSegmentation 0.30.
"""

import itertools
from typing import Any

import torch
from torch.nn import functional as F
from transformers.modeling_outputs import BackboneOutput
from transformers.utils import can_return_tuple

from ..layers.hidden_states import hidden_states_selection, select_hidden_states
from ..layers.input_checks import check_image_size
from ..layers.keywords import check_transformers_kwargs
from ..layers.resize import pad_to_multiple
from ..trunk import TrunkBackbone
from .configuration_plain_vit import PlainViTConfig


class PlainViTBackbone(TrunkBackbone):
    """A plain ViT that returns its patch tokens as feature maps.

    Feature maps: `stem`, and `stage1`, `stage2`, ... after each block, all with `config.hidden_size` channels at the
    stride `config.token_stride`. `config.padding` says how images whose sides are no multiples of it are padded.

    Args:
        config: a [`PlainViTConfig`].
    """

    config: PlainViTConfig

    def __init__(self, config: PlainViTConfig):
        super().__init__(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        self.post_init()

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
            output_hidden_states: also return the tokens `(B, prefix + h * w, C)`, embedded and after each block, before
                the final norm. A list of indices returns only those; the others are None.
            output_attentions: has no effect, because the blocks' attention does not return its weights.
            kwargs: other names of `TransformersKwargs`, which transformers' heads pass on. They have no effect.

        Returns:
            `BackboneOutput` with the `feature_maps` named by `config.out_features`,
            `(B, C, ceil(H / stride), ceil(W / stride))`; with `config.padding="none"` the quotients are rounded down.

        Raises:
            TypeError: for an unknown keyword argument.
            ValueError: if `pixel_values` is no batch of images with `num_channels` channels.

        Example, which downloads timm's weights:

        ```python
        >>> import torch
        >>> from segtransformers import PlainViTBackbone

        >>> backbone = PlainViTBackbone.from_trunk("vit_small_patch14_dinov2", padding="center")
        >>> tuple(backbone(torch.randn(1, 3, 512, 512)).feature_maps[-1].shape)
        (1, 384, 37, 37)
        ```
        """
        check_transformers_kwargs(kwargs)
        check_image_size(pixel_values, self.config.num_channels)
        trunk = self.trunk
        tokens, layout = trunk.embed(self._padded(pixel_values.to(self.get_input_embeddings().weight.dtype)))
        selection = hidden_states_selection(self, output_hidden_states)
        wanted = self.out_features if selection is False else self.stage_names
        last = max((self.stage_names.index(name) for name in wanted), default=0)
        states = itertools.chain([tokens], trunk.run_blocks(tokens, 0, last - 1, layout))
        named = {name: tokens for name, tokens in zip(self.stage_names, states, strict=False) if name in wanted}
        hidden_states = None if selection is False else list(named.values())
        return BackboneOutput(
            feature_maps=tuple(
                trunk.feature_map(named[name], layout, normalize=self._is_normalized(name))
                for name in self.out_features
            ),
            hidden_states=select_hidden_states(self, hidden_states, selection),
        )

    def _is_normalized(self, name: str) -> bool:
        """Return whether the final norm applies to the feature map `name`."""
        return self.trunk.norm is not None and (self.config.normalize_feature_maps or name == self.stage_names[-1])

    def _padded(self, pixel_values: torch.Tensor) -> torch.Tensor:
        stride, padding = self.config.token_stride, self.config.padding
        height, width = pixel_values.shape[2:]
        if padding != "none":
            return pad_to_multiple(pixel_values, stride, center=padding == "center")
        if height < stride or width < stride:  # no patch without padding
            return F.pad(pixel_values, (0, max(stride - width, 0), 0, max(stride - height, 0)))
        return pixel_values


__all__ = ["PlainViTBackbone"]
