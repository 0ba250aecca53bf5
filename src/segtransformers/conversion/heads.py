# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Rules and settings that several heads of MMSegmentation 0.x share."""

from typing import Any

from transformers.utils import logging

from ..escaping import one_line, short_repr
from ..models.losses import for_sigmoids
from .losses import PLAIN_LOSSES, read_losses
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


def take_common(head: Settings, where: str, has_convolutions: bool = True) -> list[dict[str, Any]]:
    """Take the settings that all heads have, and return the head's losses."""
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
    head.drop("type", "init_cfg")
    losses, sampler = head.take("loss_decode", {"type": "CrossEntropyLoss"}), head.take("sampler", None)
    try:
        return read_losses(losses, sampler)
    except ConversionError as error:
        logger.warning(
            f"{where}.loss_decode: {one_line(error, 300)}. The converted model predicts the same, but trains with "
            "plain cross entropy"
        )
        return PLAIN_LOSSES


def loss_fields(
    num_labels: int, losses: list[dict[str, Any]], auxiliary: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Return the fields of [`BackboneSegmentationConfig`] for the losses of the head and of the auxiliary head."""
    plain = PLAIN_LOSSES
    if num_labels == 1:  # a softmax over one class is constant
        plain, losses = for_sigmoids(plain), for_sigmoids(losses)
        auxiliary = None if auxiliary is None else for_sigmoids(auxiliary)
    fields: dict[str, Any] = {} if losses == plain else {"losses": losses}
    if auxiliary is None:
        return fields
    if len(auxiliary) == 1:
        fields["auxiliary_loss_weight"] = auxiliary[0].get("weight", 1.0)
        auxiliary = [{name: value for name, value in auxiliary[0].items() if name != "weight"}]
    else:
        fields["auxiliary_loss_weight"] = 1.0
    return fields if auxiliary == losses else fields | {"auxiliary_losses": auxiliary}
