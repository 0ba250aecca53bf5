# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Rules and settings that several heads of MMSegmentation 0.x share."""

from collections.abc import Mapping
from typing import Any

from transformers.utils import logging

from ..escaping import short_repr
from .mapping import ConversionError, Rule, Settings

IGNORE_INDEX = "semantic_loss_ignore_index"  # the field in our configs
logger = logging.get_logger(__name__)

CONV_MODULE_RULES = [
    Rule(r"conv_seg\.(.+)", r"classifier.\1"),
    Rule(r"(.+)\.bn\.(.+)", r"\1.batch_norm.\2"),
    Rule(r"(.+)", r"\1"),
]


def take_channels(head: Settings) -> None:
    """Check that a head reads all feature maps of the backbone in order. Their channels follow from the tensors."""
    channels = head.take("in_channels")
    if not isinstance(channels, list | tuple):
        raise ConversionError(
            f"decode_head.in_channels is {short_repr(channels)}; expected one number for each feature map"
        )
    head.expect("in_index", list(range(len(channels))), tuple(range(len(channels))))


def take_common(head: Settings, where: str, has_convolutions: bool = True) -> float:
    """Take the settings that all heads have, and return the weight of the head's loss."""
    head.expect("align_corners", False)
    head.expect("conv_cfg", None)
    head.expect("input_transform", None, "multiple_select")
    if has_convolutions:
        head.expect("act_cfg", {"type": "ReLU"}, {"type": "ReLU", "inplace": True})
        norm = Settings(head.take("norm_cfg", {"type": None}), f"{where}.norm_cfg")
        norm.expect("type", "BN", "SyncBN", "MMSyncBN", default=None)
        norm.expect("eps", 1e-5)
        norm.expect("momentum", 0.1)
        norm.drop("requires_grad")
        norm.finish()
    head.drop("type", "init_cfg", "sampler")
    return _loss_weight(head.take("loss_decode", {"type": "CrossEntropyLoss"}), where)


def _loss_weight(loss: Any, where: str) -> float:
    """Return the weight of the loss. Warn if it is not a plain cross entropy, which matters for training only."""
    if isinstance(loss, list | tuple) and len(loss) == 1:
        (loss,) = loss
    settings = dict(loss) if isinstance(loss, Mapping) else {}
    weight = settings.pop("loss_weight", 1.0)
    plain = settings.pop("type", None) == "CrossEntropyLoss" and not any(
        value for name, value in settings.items() if name != "loss_name"
    )
    if not plain or (where == "decode_head" and weight != 1.0):
        logger.warning(
            f"{where}.loss_decode is {short_repr(loss, 200)}: the converted model predicts the same, but it trains "
            "with plain cross entropy"
        )
    return weight
