# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Mask2Former configuration."""

from typing import Any

from huggingface_hub.dataclasses import strict

from ...whole_numbers import check_whole_fields
from ..layers.config_arguments import LARGEST_WIDTH, MOST_ITEMS, MOST_LAYERS
from ..losses import CrossEntropy
from ..segmentation.configuration_segmentation import SegmentationConfigWithBackbone

NUM_FEATURE_MAPS = 4  # strides 4, 8, 16 and 32
MOST_POINTS = 10**7


@strict
class SegMask2FormerConfig(SegmentationConfigWithBackbone):
    r"""
    Configuration of [`SegMask2FormerForSemanticSegmentation`]. Fields shared with transformers' `Mask2FormerConfig`
    have the same names. `from_dict` reads such a config. [`SegmentationConfig`] describes the other fields.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Any backbone that `AutoBackbone` knows, with feature maps at strides 4, 8, 16 and 32 as the last four of its
            `out_features`. None takes ViT-Adapter-T.
        hidden_dim (`int`, defaults to 256):
            Channels of the pixel decoder and of the queries, a multiple of 4.
        mask_feature_size (`int`, *optional*):
            Channels of the mask features and mask embeddings. None takes `hidden_dim`.
        encoder_layers (`int`, defaults to 6):
            Deformable attention layers of the pixel decoder.
        encoder_feedforward_dim (`int`, defaults to 1024):
            Feed-forward width of the pixel decoder's layers.
        encoder_attention_heads (`int`, *optional*):
            Heads of the pixel decoder's layers. None takes `num_attention_heads`.
        norm_groups (`int`, defaults to 32):
            Groups of the pixel decoder's group norms.
        decoder_layers (`int`, defaults to 10):
            Number of predictions of the queries: one before the first layer of the transformer decoder and one after
            each layer, so the decoder has one layer less.
        dim_feedforward (`int`, defaults to 2048):
            Feed-forward width of the transformer decoder's layers.
        num_attention_heads (`int`, defaults to 8):
            Heads of the transformer decoder's layers.
        num_queries (`int`, defaults to 100):
            Number of queries, which is the largest number of masks of an image.
        pad_to_stride (`bool`, defaults to `True`):
            Whether images are padded with zeros at the right and the bottom to multiples of 32, so that the feature
            maps of all strides cover the same area. Otherwise feature maps are stretched over each other, as the
            original does with backbones that take any size.
        resize_mask_logits (`bool`, defaults to `False`):
            Whether the mask logits are resized to the image and then become probabilities, as in transformers,
            DINOv3 and MMSegmentation 1.x. Otherwise the sums over the queries are resized, as in the originals of the
            families of MMSegmentation 0.x.
        class_weight (`float`, defaults to 2.0):
            Weight of the cross entropy of the classes, in the loss and in the cost of matching queries to masks.
        mask_weight (`float`, defaults to 5.0):
            Weight of the binary cross entropy of the masks, in both.
        dice_weight (`float`, defaults to 5.0):
            Weight of the dice loss of the masks, in both.
        no_object_weight (`float`, defaults to 0.1):
            Weight of unmatched queries in the cross entropy of the classes.
        label_weights (`list` of `float`, *optional*):
            A factor for each class in the cross entropy of the classes. None weights all classes alike.
        train_num_points (`int`, defaults to 12544):
            Number of points at which masks are compared.
        oversample_ratio (`float`, defaults to 3.0):
            Number of candidates, over `train_num_points`, that the most uncertain points are chosen from.
        importance_sample_ratio (`float`, defaults to 0.75):
            Share of the most uncertain points. The other points are random.

    Raises:
        ValueError: if the backbone gives too few feature maps or a number is out of range.

    Example:

    ```python
    >>> from transformers import SwinConfig
    >>> from segtransformers import SegMask2FormerConfig, SegMask2FormerForSemanticSegmentation

    >>> backbone_config = SwinConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
    >>> config = SegMask2FormerConfig(backbone_config=backbone_config, num_labels=7)
    >>> model = SegMask2FormerForSemanticSegmentation(config)
    ```
    """

    model_type = "seg_mask2former"
    stock_model_type = "mask2former"
    logits_are_query_sums = True
    # Trainer's evaluation does not gather these: a label map needs the logits only
    keys_to_ignore_at_inference = [
        "class_queries_logits",
        "masks_queries_logits",
        "pixel_decoder_hidden_states",
        "transformer_decoder_hidden_states",
    ]
    attribute_map = {**SegmentationConfigWithBackbone.attribute_map, "hidden_size": "hidden_dim"}

    hidden_dim: int = 256
    mask_feature_size: int | None = None
    encoder_layers: int = 6
    encoder_feedforward_dim: int = 1024
    encoder_attention_heads: int | None = None
    norm_groups: int = 32
    decoder_layers: int = 10
    dim_feedforward: int = 2048
    num_attention_heads: int = 8
    num_queries: int = 100
    pad_to_stride: bool = True
    resize_mask_logits: bool = False
    class_weight: float | int = 2.0
    mask_weight: float | int = 5.0
    dice_weight: float | int = 5.0
    no_object_weight: float | int = 0.1
    label_weights: list | tuple | None = None
    train_num_points: int = 12544
    oversample_ratio: float | int = 3.0
    importance_sample_ratio: float | int = 0.75

    @classmethod
    def from_stock_fields(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the fields for those of transformers' own Mask2Former.

        It pads no image, and its scores are those of the authors' code: mask logits are resized to the image.
        """
        unused = ("num_hidden_layers", "init_std", "init_xavier_std", "enforce_input_proj")
        kept = {name: value for name, value in super().from_stock_fields(fields).items() if name not in unused}
        return {"pad_to_stride": False, "resize_mask_logits": True, **kept}

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.mask_feature_size is None:
            self.mask_feature_size = self.hidden_dim
        if self.encoder_attention_heads is None:
            self.encoder_attention_heads = self.num_attention_heads
        self.validate_head()

    def fixed_fields(self) -> dict[str, Any]:
        return {
            **super().fixed_fields(),
            "feature_size": self.hidden_dim,
            "activation_function": "relu",
            "dropout": 0.0,
            "pre_norm": False,
            "enforce_input_projection": False,
            "common_stride": 4,
            "feature_strides": [4, 8, 16, 32],
            "use_auxiliary_loss": True,
            "output_auxiliary_logits": False,
        }

    def validate_head(self) -> None:
        """Check the fields of the head, also after changes.

        Raises:
            ValueError: naming the field that is not valid.
        """
        check_whole_fields(
            self,
            ("hidden_dim", "mask_feature_size", "encoder_feedforward_dim", "norm_groups", "dim_feedforward"),
            LARGEST_WIDTH,
        )
        check_whole_fields(self, ("encoder_attention_heads", "num_attention_heads"), LARGEST_WIDTH)
        check_whole_fields(self, ("encoder_layers", "decoder_layers"), MOST_LAYERS)
        check_whole_fields(self, ("num_queries",), MOST_ITEMS)
        check_whole_fields(self, ("train_num_points",), MOST_POINTS)
        if self.decoder_layers < 2:
            raise ValueError(
                f"decoder_layers must be at least 2 (the number of decoder layers plus one), got {self.decoder_layers}"
            )
        # sine and cosine of row and column take a quarter of the channels each
        for name, divisor in (
            ("the sine encodings", 4),
            ("num_attention_heads", self.num_attention_heads),
            ("encoder_attention_heads", self.encoder_attention_heads),
            ("norm_groups", self.norm_groups),
        ):
            if self.hidden_dim % divisor:
                raise ValueError(f"hidden_dim ({self.hidden_dim}) must be a multiple of {divisor} because of {name}")
        for name in ("class_weight", "mask_weight", "dice_weight", "no_object_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.label_weights is not None:
            loss = CrossEntropy(class_weights=self.label_weights)  # checks the numbers
            loss.check(self.num_labels)
            self.label_weights = list(loss.class_weights or ())
        if self.oversample_ratio < 1 or not 0 <= self.importance_sample_ratio <= 1:
            raise ValueError(
                "oversample_ratio must be at least 1 and importance_sample_ratio a share in [0, 1], got "
                f"{self.oversample_ratio} and {self.importance_sample_ratio}"
            )

    @property
    def num_feature_maps(self) -> int:
        return NUM_FEATURE_MAPS


__all__ = ["SegMask2FormerConfig"]
