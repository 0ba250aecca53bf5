# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Configuration of SegFormer's head over any backbone."""

from huggingface_hub.dataclasses import strict

from ...whole_numbers import check_whole_fields
from ..layers.config_arguments import LARGEST_WIDTH
from ..segmentation.configuration_segmentation import BackboneSegmentationConfig


@strict
class SegSegformerConfig(BackboneSegmentationConfig):
    r"""
    Configuration of [`SegSegformerForSemanticSegmentation`]. [`BackboneSegmentationConfig`] describes the other
    fields.

    Args:
        hidden_size (`int`, defaults to 256):
            Channels of the head.

    Raises:
        ValueError: if a number is out of range.

    Example:

    ```python
    >>> from segtransformers import InternImageConfig, SegSegformerConfig, SegSegformerForSemanticSegmentation

    >>> backbone_config = InternImageConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
    >>> model = SegSegformerForSemanticSegmentation(SegSegformerConfig(backbone_config=backbone_config, num_labels=7))
    ```
    """

    model_type = "seg_segformer"
    attribute_map = {**BackboneSegmentationConfig.attribute_map, "decoder_hidden_size": "hidden_size"}

    hidden_size: int = 256

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        check_whole_fields(self, ("hidden_size",), LARGEST_WIDTH)


__all__ = ["SegSegformerConfig"]
