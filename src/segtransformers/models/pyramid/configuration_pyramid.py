# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Config fields of a convolutional pyramid beside a plain ViT, for ViT-Adapter and ViT-CoMer."""

import itertools
import math

from huggingface_hub.dataclasses import strict
from transformers.backbone_utils import BackboneConfigMixin

from ...escaping import short_repr
from ...whole_numbers import check_whole_fields
from ..layers.config_arguments import LARGEST_WIDTH, MOST_ITEMS
from ..trunk.configuration_trunk import TrunkConfig


@strict
class PyramidConfig(BackboneConfigMixin, TrunkConfig):
    r"""
    Fields shared by the backbones that put a convolutional pyramid beside a plain ViT; the fields of [`TrunkConfig`]
    describe the ViT inside.

    Args:
        spatial_prior_channels (`int`, defaults to 64):
            Channels of the convolutional stem.
        interaction_indexes (`list` of pairs, *optional*):
            First and last block (both included) of each interaction. They run after the interaction has changed the
            trunk's tokens and before it changes the pyramid. Together the pairs must cover all blocks in order. None
            makes four interactions of equal length.
        deformable_num_heads (`int`, *optional*):
            Heads of the deformable attention. None takes the number of the trunk's heads.
        deformable_num_points (`int`, defaults to 4):
            Sampling points of each head on each level.
        deformable_value_ratio (`float`, defaults to 1.0):
            Width of the deformable attention's values over `hidden_size`.
        adapter_layer_norm_eps (`float`, *optional*):
            Epsilon of the layer norms around the trunk. None takes `layer_norm_eps`.
        adapter_drop_path_rate (`float`, *optional*):
            Stochastic depth rate of the convolutional feed-forward networks. None takes `drop_path_rate`.
        injector_init_value (`float`, defaults to 0.0):
            Initial value of the layer scale on the features that the pyramid adds to the trunk.
        use_conv_ffn (`bool`, defaults to `True`):
            Whether every extractor ends in a convolutional feed-forward network.
        conv_ffn_ratio (`float`, defaults to 0.25):
            Hidden width of that network over `hidden_size`.
        use_extra_extractors (`bool`, defaults to `True`):
            Whether the last interaction has additional extractors: two in ViT-Adapter, four in ViT-CoMer.
        add_trunk_features (`bool`, defaults to `True`):
            Whether the trunk's tokens after interaction i are added to feature map i. Needs four interactions.
        add_last_trunk_features (`bool`, defaults to `False`):
            Whether every feature map gets the tokens after the last interaction instead. Needs `add_trunk_features`.
        final_norm (`bool`, defaults to `False`):
            Whether extractors and feature maps read the trunk's tokens through its final norm, as in DINOv3. The next
            block takes them without it.
        out_features, out_indices:
            The feature maps to return, of `stem`, `stage1`, ..., `stage4`, by name or by index. None returns the last
            one, as in transformers. Layers that serve only the others get no gradient.

    Raises:
        ValueError: as [`TrunkConfig`], or if the interactions do not fit the trunk.
    """

    base_config_key = "backbone_config"

    spatial_prior_channels: int = 64
    interaction_indexes: list | tuple | None = None
    deformable_num_heads: int | None = None
    deformable_num_points: int = 4
    deformable_value_ratio: float | int = 1.0
    adapter_layer_norm_eps: float | int | None = None
    adapter_drop_path_rate: float | int | None = None
    injector_init_value: float | int = 0.0
    use_conv_ffn: bool = True
    conv_ffn_ratio: float | int = 0.25
    use_extra_extractors: bool = True
    add_trunk_features: bool = True
    add_last_trunk_features: bool = False
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        self._resolve_trunk(kwargs)
        if self.interaction_indexes is None:
            self.interaction_indexes = _equal_slices(self.num_hidden_layers)
        self.interaction_indexes = [
            list(pair) if isinstance(pair, list | tuple) else [pair] for pair in self.interaction_indexes
        ]
        if self.deformable_num_heads is None:
            self.deformable_num_heads = self.num_attention_heads
        if self.adapter_layer_norm_eps is None:
            self.adapter_layer_norm_eps = self.layer_norm_eps
        if self.adapter_drop_path_rate is None:
            self.adapter_drop_path_rate = self.drop_path_rate
        self._check_pyramid()
        self.stage_names = ["stem", "stage1", "stage2", "stage3", "stage4"]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)

    def _check_pyramid(self) -> None:
        last = -1  # block of the previous pair
        for pair in self.interaction_indexes:
            if len(pair) != 2 or not all(isinstance(end, int) for end in pair) or not last + 1 == pair[0] <= pair[1]:
                break
            last = pair[1]
        else:
            pair = None
        if pair is not None or last != self.num_hidden_layers - 1:
            raise ValueError(
                "interaction_indexes must be pairs (first block, last block) that together cover blocks 0 to "
                f"{self.num_hidden_layers - 1} in order, got {short_repr(self.interaction_indexes)}"
            )
        if self.add_trunk_features and len(self.interaction_indexes) != 4:
            raise ValueError(
                f"add_trunk_features needs four interactions, one for each feature map, but interaction_indexes has "
                f"{len(self.interaction_indexes)}: set add_trunk_features=False or give four pairs"
            )
        if self.add_last_trunk_features and not self.add_trunk_features:
            raise ValueError("add_last_trunk_features has no effect without add_trunk_features: set both, or neither")
        if not 0 < self.adapter_layer_norm_eps < math.inf or not 0 <= self.adapter_drop_path_rate < 1:
            raise ValueError(
                "adapter_layer_norm_eps must be positive and adapter_drop_path_rate a share in [0, 1), got "
                f"{self.adapter_layer_norm_eps} and {self.adapter_drop_path_rate}"
            )
        check_whole_fields(self, ("spatial_prior_channels", "deformable_num_heads"), LARGEST_WIDTH)
        check_whole_fields(self, ("deformable_num_points",), MOST_ITEMS)
        value_size = int(self.hidden_size * self.deformable_value_ratio)
        if value_size < 1 or value_size % self.deformable_num_heads:
            raise ValueError(
                f"hidden_size * deformable_value_ratio ({value_size}) must be a multiple of deformable_num_heads "
                f"({self.deformable_num_heads})"
            )
        if self.use_conv_ffn and int(self.hidden_size * self.conv_ffn_ratio) < 1:
            raise ValueError(f"conv_ffn_ratio ({self.conv_ffn_ratio}) leaves no channel of {self.hidden_size}")


def _equal_slices(depth: int, count: int = 4) -> list[list[int]]:
    if depth < count:
        raise ValueError(f"a trunk of {depth} blocks cannot be cut into {count} interactions: set interaction_indexes")
    bounds = [depth * index // count for index in range(count + 1)]
    return [[first, end - 1] for first, end in itertools.pairwise(bounds)]


__all__ = ["PyramidConfig"]
