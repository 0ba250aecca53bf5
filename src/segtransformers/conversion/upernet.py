# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""UperNet and its auxiliary head as MMSegmentation 0.x writes them (`UPerHead`, `FCNHead`)."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import logging

from ..models.upernet import SegUperNetConfig
from .mapping import ConversionError, Rule, Settings, prefixed

IGNORE = "semantic_loss_ignore_index"
logger = logging.get_logger(__name__)

_HEAD_RULES = [
    Rule(r"conv_seg\.(.+)", r"classifier.\1"),
    Rule(r"(.+)\.bn\.(.+)", r"\1.batch_norm.\2"),
    Rule(r"(.+)", r"\1"),
]
RULES = [*prefixed("decode_head.", _HEAD_RULES), *prefixed("auxiliary_head.", _HEAD_RULES)]


def read_config(
    decode_head: Settings, auxiliary_head: Settings | None, backbone_config: PreTrainedConfig, **protocol: Any
) -> SegUperNetConfig:
    """The config of an `EncoderDecoder` with a `UPerHead` and at most one auxiliary `FCNHead`.

    Args:
        protocol: fields of [`SegmentationConfig`].
    """
    channels = decode_head.take("in_channels")  # the tensors' shapes tell the same
    if not isinstance(channels, list | tuple):
        raise ConversionError(f"decode_head.in_channels is {channels!r}; one number for each feature map is needed")
    num_labels = decode_head.take("num_classes")
    decode_head.expect("in_index", list(range(len(channels))), tuple(range(len(channels))))
    fields = {
        "hidden_size": decode_head.take("channels"),
        "pool_scales": decode_head.take("pool_scales", (1, 2, 3, 6)),
        "classifier_dropout": decode_head.take("dropout_ratio", 0.1),
        IGNORE: decode_head.take("ignore_index", 255),
    }
    _take_common(decode_head, "decode_head")
    decode_head.finish()

    fields["use_auxiliary_head"] = auxiliary_head is not None
    if auxiliary_head is not None:
        if auxiliary_head.take("num_classes") != num_labels:
            raise ConversionError("auxiliary_head.num_classes differs from decode_head.num_classes")
        auxiliary_head.take("in_channels")
        auxiliary_head.expect("kernel_size", 3)
        auxiliary_head.expect("dilation", 1)
        for name, field, default in (("dropout_ratio", "classifier_dropout", 0.1), ("ignore_index", IGNORE, 255)):
            if (value := auxiliary_head.take(name, default)) != fields[field]:
                logger.warning(f"auxiliary_head.{name} is {value}: the model trains with decode_head's {fields[field]}")
        fields["auxiliary_in_index"] = auxiliary_head.take("in_index")
        fields["auxiliary_channels"] = auxiliary_head.take("channels")
        fields["auxiliary_num_convs"] = auxiliary_head.take("num_convs", 2)
        fields["auxiliary_concat_input"] = auxiliary_head.take("concat_input", True)
        fields["auxiliary_loss_weight"] = _take_common(auxiliary_head, "auxiliary_head")
        auxiliary_head.finish()
    return SegUperNetConfig(backbone_config=backbone_config, num_labels=num_labels, **fields, **protocol)


def _take_common(head: Settings, where: str) -> float:
    """Settings that both heads have; returns the weight of the head's loss."""
    head.expect("align_corners", False)
    head.expect("conv_cfg", None)
    head.expect("act_cfg", {"type": "ReLU"}, {"type": "ReLU", "inplace": True})
    head.expect("input_transform", None, "multiple_select")
    norm = Settings(head.take("norm_cfg", {"type": None}), f"{where}.norm_cfg")
    norm.expect("type", "BN", "SyncBN", "MMSyncBN", default=None)
    norm.expect("eps", 1e-5)
    norm.expect("momentum", 0.1)
    norm.drop("requires_grad")
    norm.finish()
    head.drop("type", "init_cfg", "sampler")
    return _loss_weight(head.take("loss_decode", {"type": "CrossEntropyLoss"}), where)


def _loss_weight(loss: Any, where: str) -> float:
    """The weight of a plain cross entropy. Any other loss matters for more training only: say so and go on."""
    if isinstance(loss, list | tuple) and len(loss) == 1:
        (loss,) = loss
    settings = dict(loss) if isinstance(loss, Mapping) else {}
    weight = settings.pop("loss_weight", 1.0)
    plain = settings.pop("type", None) == "CrossEntropyLoss" and not any(
        value for name, value in settings.items() if name != "loss_name"
    )
    if not plain or (where == "decode_head" and weight != 1.0):
        logger.warning(
            f"{where}.loss_decode is {loss!r}: the converted model predicts the same, but it trains with plain "
            "cross entropy"
        )
    return weight
