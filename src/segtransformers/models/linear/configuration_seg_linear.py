# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Configuration of a linear classifier over any backbone."""

import math

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import SubConfigSpec

from ...escaping import short_repr
from ..segmentation.configuration_segmentation import BackboneSegmentationConfig


@strict
class SegLinearConfig(BackboneSegmentationConfig):
    r"""
    Configuration of [`SegLinearForSemanticSegmentation`]. [`BackboneSegmentationConfig`] describes the other fields.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Any backbone. None takes a [`PlainViTConfig`].
        in_index (`list[int]`, *optional*):
            Indices of the backbone's feature maps that the classifier reads. None reads all of them.
        resize_factors (`list[float]`, *optional*):
            A factor for each of these feature maps, by which it is resized before all of them are resized to the size
            of the first. None leaves them as they are.

    Raises:
        ValueError: if the backbone gives too few feature maps or a number is out of range.

    Example:

    ```python
    >>> from segtransformers import PlainViTConfig, SegLinearConfig, SegLinearForSemanticSegmentation

    >>> backbone_config = PlainViTConfig(trunk="vit_small_patch14_dinov2", out_indices=[9, 10, 11, 12])
    >>> model = SegLinearForSemanticSegmentation(SegLinearConfig(backbone_config=backbone_config, num_labels=7))
    ```
    """

    model_type = "seg_linear"
    sub_configs_defaults = {
        "backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="seg_plain_vit", init_kwargs={}),
    }

    in_index: list[int] | tuple[int, ...] | None = None
    resize_factors: list[float | int] | tuple[float | int, ...] | None = None

    def __post_init__(self, **kwargs):
        if self.in_index is not None:
            self.in_index = list(self.in_index)
            if not self.in_index or min(self.in_index) < 0:
                raise ValueError(f"in_index must be indices of feature maps from 0 on, got {short_repr(self.in_index)}")
        if self.resize_factors is not None:
            self.resize_factors = list(self.resize_factors)
            if not all(0 < factor < math.inf for factor in self.resize_factors):
                raise ValueError(f"resize_factors must be positive, got {short_repr(self.resize_factors)}")
            if self.in_index is not None and len(self.in_index) != len(self.resize_factors):
                raise ValueError(
                    f"resize_factors must have one factor for each of the {len(self.in_index)} feature maps of "
                    f"in_index, got {len(self.resize_factors)}"
                )
        super().__post_init__(**kwargs)

    @property
    def num_feature_maps(self) -> int:
        return 1 + max(self.in_index or [0])

    def check_channels(self, channels: list[int]) -> None:
        super().check_channels(channels)
        count = len(channels) if self.in_index is None else len(self.in_index)
        if self.resize_factors is not None and len(self.resize_factors) != count:
            raise ValueError(
                f"resize_factors must have one factor for each of the {count} feature maps of the backbone, got "
                f"{len(self.resize_factors)}"
            )


__all__ = ["SegLinearConfig"]
