# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Configurations of Segmenter's ViT and of the model around it."""

import math

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import SubConfigSpec

from ...whole_numbers import check_whole_fields
from ..layers.config_arguments import LARGEST_WIDTH, MOST_ITEMS, MOST_LAYERS
from ..losses import PixelLoss, build_losses
from ..plain_vit.configuration_plain_vit import PlainViTConfig
from ..segmentation.configuration_segmentation import BackboneSegmentationConfig


@strict
class SegmenterViTConfig(PlainViTConfig):
    r"""
    Configuration of [`SegmenterViTBackbone`]. [`PlainViTConfig`] describes the fields.

    Args:
        normalize_feature_maps (`bool`, defaults to `False`):
            Whether the final norm applies to every returned feature map, or only to that of the last block.

    Example:

    ```python
    >>> from segtransformers import SegmenterViTBackbone, SegmenterViTConfig

    >>> backbone = SegmenterViTBackbone(SegmenterViTConfig(trunk="vit_tiny_patch16_384"))
    >>> backbone.channels
    [192]
    ```
    """

    model_type = "seg_segmenter_vit"

    normalize_feature_maps: bool = False


@strict
class SegmenterConfig(BackboneSegmentationConfig):
    r"""
    Configuration of [`SegmenterForSemanticSegmentation`]. The defaults are those of MMSegmentation; "official" are the
    values of the authors' repository. [`BackboneSegmentationConfig`] describes the other fields.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Any backbone. The decoder reads its last feature map. None takes a [`SegmenterViTConfig`].
        decoder_type (`str`, defaults to `"mask_transformer"`):
            `"mask_transformer"`, or `"linear"` for one linear layer on every token. Configs of older versions call it
            `decoder`, which still works as an argument.
        decoder_hidden_size (`int`, *optional*):
            Width of the mask transformer. None takes the channels of the feature map.
        decoder_num_hidden_layers (`int`, defaults to 2):
            Number of its blocks.
        decoder_num_attention_heads (`int`, *optional*):
            Number of its heads. None takes one for every 64 channels.
        decoder_mlp_ratio (`float`, defaults to 4.0):
            Hidden width of a block's MLP over the width of the mask transformer.
        decoder_dropout (`float`, defaults to 0.0):
            Dropout inside its blocks. Official: 0.1.
        decoder_drop_path_rate (`float`, defaults to 0.1):
            Stochastic depth rate of its last block. The rate grows linearly from 0 at the first. Official: 0.0.
        decoder_layer_norm_eps (`float`, defaults to 1e-5):
            Epsilon of its norms.
        padding_divisor (`int`, *optional*):
            Logits are resized to the size of the image padded to multiples of this, and then cropped. None resizes them
            to the size of the image itself, although they cover the padded one. Official: the side of a patch.
        enlarge_to_window (`bool`, defaults to `False`):
            Whether `inference_mode="slide"` enlarges an image that is smaller than the window. Official: True.
        count_ignored_pixels (`bool`, defaults to `True`):
            Whether pixels without a class count in the divisor of the loss, where `losses` is None. Official: False.

    Raises:
        ValueError: if a number is out of range.

    Example:

    ```python
    >>> from segtransformers import SegmenterConfig, SegmenterForSemanticSegmentation, SegmenterViTConfig

    >>> config = SegmenterConfig(backbone_config=SegmenterViTConfig(trunk="vit_tiny_patch16_384"), num_labels=7)
    >>> model = SegmenterForSemanticSegmentation(config)
    ```
    """

    model_type = "seg_segmenter"
    sub_configs_defaults = {
        "backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="seg_segmenter_vit", init_kwargs={}),
    }

    decoder_type: str = "mask_transformer"
    decoder_hidden_size: int | None = None
    decoder_num_hidden_layers: int = 2
    decoder_num_attention_heads: int | None = None
    decoder_mlp_ratio: float | int = 4.0
    decoder_dropout: float | int = 0.0
    decoder_drop_path_rate: float | int = 0.1
    decoder_layer_norm_eps: float | int = 1e-5
    padding_divisor: int | None = None
    enlarge_to_window: bool = False
    count_ignored_pixels: bool = True
    classifier_dropout: float | int = 0.0
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        # an attribute `decoder` would be a config of a text model to `PreTrainedConfig.get_text_config`
        self.decoder_type = kwargs.pop("decoder", self.decoder_type)
        super().__post_init__(**kwargs)
        if self.decoder_type not in ("mask_transformer", "linear"):
            raise ValueError(f"decoder_type must be 'mask_transformer' or 'linear', got {self.decoder_type!r}")
        if self.decoder_type == "mask_transformer" and (self.is_binary or self.is_multi_label):
            raise ValueError(
                "the mask transformer of Segmenter normalises the scores of a pixel over the classes, so its model can "
                "be neither binary nor multi-label: use decoder_type='linear', or another head"
            )
        check_whole_fields(self, ("decoder_hidden_size", "decoder_num_attention_heads"), LARGEST_WIDTH)
        check_whole_fields(self, ("padding_divisor",), MOST_ITEMS)
        check_whole_fields(self, ("decoder_num_hidden_layers",), MOST_LAYERS)
        for name in ("decoder_dropout", "decoder_drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be a share in [0, 1), got {getattr(self, name)}")
        for name in ("decoder_mlp_ratio", "decoder_layer_norm_eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    def pixel_losses(self) -> list[PixelLoss]:
        if self.losses or self.count_ignored_pixels:
            return super().pixel_losses()
        return build_losses(["binary_cross_entropy" if self.is_binary or self.is_multi_label else "cross_entropy"])


__all__ = ["SegmenterConfig", "SegmenterViTConfig"]
