# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""UperNet configuration."""

from huggingface_hub.dataclasses import strict

from ...whole_numbers import check_whole_fields
from ..layers.config_arguments import LARGEST_WIDTH, MOST_LAYERS
from ..segmentation.configuration_segmentation import BackboneSegmentationConfig

MOST_POOL_SCALES, LARGEST_POOL_SCALE = 16, 256


@strict
class SegUperNetConfig(BackboneSegmentationConfig):
    r"""
    Configuration of [`SegUperNetForSemanticSegmentation`]. Fields shared with transformers' `UperNetConfig` have the
    same names. `from_dict` reads such a config. [`BackboneSegmentationConfig`] describes the other fields.

    Args:
        hidden_size (`int`, defaults to 512):
            Channels of the head.
        pool_scales (`list[int]`, defaults to `(1, 2, 3, 6)`):
            Sides of the grids that the coarsest feature map is pooled to.
        use_auxiliary_head (`bool`, defaults to `True`):
            Whether the model has a second, convolutional head for the loss.
        align_corners (`bool`, defaults to `False`):
            Whether all resizes of feature maps and logits keep the centres of the corner pixels at their places.
        auxiliary_loss_weight (`float`, defaults to 0.4):
            Weight of its loss.
        auxiliary_in_index (`int`, defaults to 2):
            Index of the feature map that it reads.
        auxiliary_in_channels (`int`, *optional*):
            Channels of that feature map. None takes them from the backbone; another number than the backbone's is
            refused.
        auxiliary_channels (`int`, defaults to 256):
            Channels of its convolutions.
        auxiliary_num_convs (`int`, defaults to 1):
            Number of its 3x3 convolutions.
        auxiliary_concat_input (`bool`, defaults to `False`):
            Whether its input is concatenated with their output.

    Raises:
        ValueError: if the backbone gives too few feature maps or a number is out of range.

    Example:

    ```python
    >>> from transformers import ConvNextConfig
    >>> from segtransformers import SegUperNetConfig, SegUperNetForSemanticSegmentation

    >>> backbone_config = ConvNextConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
    >>> model = SegUperNetForSemanticSegmentation(SegUperNetConfig(backbone_config=backbone_config, num_labels=7))
    ```
    """

    model_type = "seg_upernet"
    stock_model_type = "upernet"

    hidden_size: int = 512
    pool_scales: list[int] | tuple[int, ...] = (1, 2, 3, 6)
    use_auxiliary_head: bool = True
    align_corners: bool = False
    auxiliary_loss_weight: float | int = 0.4
    auxiliary_in_index: int = 2
    auxiliary_in_channels: int | None = None
    auxiliary_channels: int = 256
    auxiliary_num_convs: int = 1
    auxiliary_concat_input: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if not 0 < len(self.pool_scales) <= MOST_POOL_SCALES:
            raise ValueError(f"pool_scales must be 1 to {MOST_POOL_SCALES} sides, got {len(self.pool_scales)}")
        self.pool_scales = list(self.pool_scales)
        if self.use_auxiliary_head and self.auxiliary_in_index < 0:
            raise ValueError(f"auxiliary_in_index must be 0 or more, got {self.auxiliary_in_index}")
        check_whole_fields(self, ("hidden_size", "auxiliary_channels"), LARGEST_WIDTH)
        check_whole_fields(self, ("auxiliary_num_convs",), MOST_LAYERS)
        check_whole_fields(self, ("pool_scales",), LARGEST_POOL_SCALE)

    @property
    def num_feature_maps(self) -> int:
        return max(2, self.auxiliary_in_index + 1 if self.use_auxiliary_head else 0)

    def check_channels(self, channels: list[int]) -> None:
        super().check_channels(channels)
        expected = self.auxiliary_in_channels
        if self.use_auxiliary_head and expected not in (None, channels[self.auxiliary_in_index]):
            raise ValueError(
                f"auxiliary_in_channels is {expected}, but feature map {self.auxiliary_in_index} of the backbone has "
                f"{channels[self.auxiliary_in_index]} channels: leave it out"
            )


__all__ = ["SegUperNetConfig"]
