# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The linear and multi-layer heads of DINOv2 over its frozen trunks (`BNHead` over `DinoVisionTransformer`).

Source: `dinov2/eval/segmentation` of facebookresearch/dinov2.
"""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig

from ..escaping import short_repr
from ..models.linear import SegLinearConfig
from ..models.plain_vit import PlainViTConfig
from .dino_trunks import DINOV2_RULES, dinov2_arguments, prepare_dinov2, read_dinov2_trunk
from .heads import IGNORE_INDEX, loss_fields, take_common
from .mapping import MOST_CLASSES, Backbone, ConversionError, Rule, Settings, prefixed

BACKBONE = "DinoVisionTransformer"
TRUNK = "backbone."  # prefix of the backbone's names in a whole model
HEAD_RULES = prefixed(
    "decode_head.",
    [Rule(r"bn\.(.+)", r"batch_norm.\1"), Rule(r"conv_seg\.(.+)", r"classifier.\1")],
)


def read_backbone(settings: Settings) -> PlainViTConfig:
    """Convert the settings of mmseg's `DinoVisionTransformer`, see [`with_trunk_arguments`]."""
    indices = settings.counts("out_indices")
    fields = read_dinov2_trunk(settings)
    depth = fields["num_hidden_layers"]
    if not indices or not all(0 <= index < depth for index in indices):
        raise ConversionError(
            f"backbone.out_indices is {short_repr(indices)}, but the backbone has {depth} blocks: pass the backbone "
            "that the head was trained on"
        )
    settings.drop("type", "pretrained", "init_cfg", "final_norm", "with_cls_token", "output_cls_token", "frozen_stages")
    settings.finish()
    fields |= {"padding": "center", "out_indices": [index + 1 for index in indices]}
    return PlainViTConfig(**fields)


def read_head(
    decode_head: Settings, auxiliary_head: Settings | None, backbone_config: PreTrainedConfig, **protocol: Any
) -> SegLinearConfig:
    """Convert the settings of an `EncoderDecoder` with a `BNHead`.

    Args:
        protocol: fields of [`SegmentationConfig`].
    """
    if auxiliary_head is not None:
        raise ConversionError("the model config has an auxiliary_head; a BNHead is converted without one")
    channels, in_index = decode_head.counts("in_channels", most=2**24), decode_head.counts("in_index")
    width = backbone_config.hidden_size
    if len(channels) != len(in_index) or any(count != width for count in channels):
        raise ConversionError(
            f"decode_head.in_channels is {short_repr(channels)} for in_index {short_repr(in_index)}, but the backbone "
            f"has {width} channels: pass the backbone file that the head was trained on"
        )
    decode_head.require("input_transform", "resize_concat")
    fields = {
        "num_labels": decode_head.count("num_classes", most=MOST_CLASSES),
        "in_index": None if list(in_index) == list(range(len(backbone_config.out_indices))) else in_index,
        "resize_factors": decode_head.take("resize_factors", None),
        "classifier_dropout": decode_head.take("dropout_ratio", 0.1),
        IGNORE_INDEX: decode_head.take("ignore_index", 255),
    }
    decode_head.drop("channels")  # the sum of in_channels
    fields |= loss_fields(fields["num_labels"], take_common(decode_head, "decode_head"))
    decode_head.finish()
    return SegLinearConfig(backbone_config=backbone_config, **fields, **protocol)


def with_trunk_arguments(config: Any, state_dict: Mapping[str, torch.Tensor]) -> Any:
    """Add to mmseg's config the arguments of the trunk, which the authors' configs lack, as the tensors show them.

    Raises:
        ConversionError: if the checkpoint has no trunk, or the trunk contradicts the config.
    """
    backbone = config.get("backbone") if isinstance(config, Mapping) else None
    if not isinstance(backbone, Mapping) or backbone.get("type") != BACKBONE:
        return config
    trunk = {name.removeprefix(TRUNK): tensor for name, tensor in state_dict.items() if name.startswith(TRUNK)}
    if not trunk:
        raise ConversionError(
            "the checkpoint has a head without its backbone, because DINOv2 publishes them as two files: add "
            "--trunk-weights with the backbone's file, such as dinov2_vits14_pretrain.pth"
        )
    found = dinov2_arguments(trunk)
    if found["num_register_tokens"] != backbone.get("num_register_tokens", 0):
        has = f"{found['num_register_tokens']} register tokens"
        raise ConversionError(
            f"the backbone has {has}, but the head was trained with {backbone.get('num_register_tokens', 0)}: pass the "
            "backbone's file without _reg4 in its name, or set num_register_tokens in the config's backbone if the "
            "head is your own"
        )
    return {**config, "backbone": {**found, **backbone}}


def prepare(state_dict: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    return prepare_dinov2(state_dict, TRUNK)


BACKBONES = {BACKBONE: Backbone(DINOV2_RULES, read_backbone, prepare)}
