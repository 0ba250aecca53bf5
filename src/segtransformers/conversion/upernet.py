# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""UperNet and its auxiliary head of MMSegmentation 0.x (`UPerHead`, `FCNHead`)."""

from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import logging

from ..escaping import short_repr
from ..models.upernet import SegUperNetConfig
from .heads import CONV_MODULE_RULES, IGNORE_INDEX, loss_fields, take_channels, take_common
from .mapping import MOST_CLASSES, MOST_LAYERS, ConversionError, Settings, prefixed

logger = logging.get_logger(__name__)

RULES = [*prefixed("decode_head.", CONV_MODULE_RULES), *prefixed("auxiliary_head.", CONV_MODULE_RULES)]


def read_config(
    decode_head: Settings, auxiliary_head: Settings | None, backbone_config: PreTrainedConfig, **protocol: Any
) -> SegUperNetConfig:
    """Convert the settings of an `EncoderDecoder` with a `UPerHead` and at most one auxiliary `FCNHead`.

    Args:
        protocol: fields of [`SegmentationConfig`].
    """
    take_channels(decode_head)
    num_labels = decode_head.count("num_classes", most=MOST_CLASSES)
    fields = {
        "hidden_size": decode_head.take("channels"),
        "pool_scales": decode_head.counts("pool_scales", (1, 2, 3, 6)),
        "classifier_dropout": decode_head.take("dropout_ratio", 0.1),
        "align_corners": decode_head.expect("align_corners", False, True),
        IGNORE_INDEX: decode_head.take("ignore_index", 255),
    }
    losses = take_common(decode_head, "decode_head")
    decode_head.finish()

    fields["use_auxiliary_head"] = auxiliary_head is not None
    if auxiliary_head is not None:
        if auxiliary_head.take("num_classes") != num_labels:
            raise ConversionError("auxiliary_head.num_classes differs from decode_head.num_classes")
        auxiliary_head.take("in_channels")
        auxiliary_head.expect("kernel_size", 3)
        auxiliary_head.expect("dilation", 1)
        auxiliary_head.expect("align_corners", fields["align_corners"], default=False)
        for name, field, default in (("dropout_ratio", "classifier_dropout", 0.1), ("ignore_index", IGNORE_INDEX, 255)):
            if (value := auxiliary_head.take(name, default)) != fields[field]:
                logger.warning(
                    f"auxiliary_head.{name} is {short_repr(value)}: the model trains with decode_head's "
                    f"{short_repr(fields[field])}"
                )
        fields["auxiliary_in_index"] = auxiliary_head.take("in_index")
        fields["auxiliary_channels"] = auxiliary_head.take("channels")
        fields["auxiliary_num_convs"] = auxiliary_head.count("num_convs", 2, MOST_LAYERS)
        fields["auxiliary_concat_input"] = auxiliary_head.take("concat_input", True)
        fields |= loss_fields(num_labels, losses, take_common(auxiliary_head, "auxiliary_head"))
        auxiliary_head.finish()
    else:
        fields |= loss_fields(num_labels, losses)
    return SegUperNetConfig(backbone_config=backbone_config, num_labels=num_labels, **fields, **protocol)
