# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""SegFormer's head of MMSegmentation 0.x (`SegformerHead`)."""

from typing import Any

from transformers import PreTrainedConfig

from ..models.segformer import SegSegformerConfig
from .heads import CONV_MODULE_RULES, IGNORE_INDEX, loss_fields, take_channels, take_common
from .mapping import MOST_CLASSES, ConversionError, Rule, Settings, prefixed

_HEAD_RULES = [
    Rule(r"convs\.(\d)\.bn\.(.+)", r"levels.\1.batch_norm.\2"),
    Rule(r"convs\.(.+)", r"levels.\1"),
    Rule(r"fusion_conv\.bn\.(.+)", r"fusion.batch_norm.\1"),
    Rule(r"fusion_conv\.(.+)", r"fusion.\1"),
    *CONV_MODULE_RULES,
]
RULES = prefixed("decode_head.", _HEAD_RULES)


def read_config(
    decode_head: Settings, auxiliary_head: Settings | None, backbone_config: PreTrainedConfig, **protocol: Any
) -> SegSegformerConfig:
    """Convert the settings of an `EncoderDecoder` with a `SegformerHead`.

    Args:
        protocol: fields of [`SegmentationConfig`].
    """
    if auxiliary_head is not None:
        raise ConversionError("the model config has an auxiliary_head; SegFormer is converted without one")
    take_channels(decode_head)
    decode_head.expect("interpolate_mode", "bilinear")
    fields = {
        "num_labels": decode_head.count("num_classes", most=MOST_CLASSES),
        "hidden_size": decode_head.take("channels"),
        "classifier_dropout": decode_head.take("dropout_ratio", 0.1),
        IGNORE_INDEX: decode_head.take("ignore_index", 255),
    }
    fields |= loss_fields(fields["num_labels"], take_common(decode_head, "decode_head"))
    decode_head.finish()
    return SegSegformerConfig(backbone_config=backbone_config, **fields, **protocol)
