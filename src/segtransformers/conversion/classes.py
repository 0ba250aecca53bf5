# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Classes of an original's heads: their number from the tensors, and heads with one output and a threshold."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from transformers.utils import logging

from ..escaping import short_repr
from ..published import declared_classes
from .mapping import ConversionError, shape_of

logger = logging.get_logger(__name__)

_MASK2FORMER_HEADS = ("Mask2FormerHead", "AdapterMask2FormerHead")
_CONVOLUTION_HEADS = ("UPerHead", "SegformerHead", "FCNHead")  # their last layer is `conv_seg`
_DEFAULT_THRESHOLD = 0.3  # of MMSegmentation


def with_actual_classes(config: Any, state_dict: Mapping[str, torch.Tensor]) -> Any:
    """Set the config's number of classes to the number that the checkpoint's classifier has.

    InternImage's configs for Cityscapes and Mapillary have 150, which is wrong for most of these checkpoints.
    """
    if not isinstance(config, Mapping):
        return config
    if isinstance(net := config.get("net_kwargs"), Mapping):
        actual = _size(state_dict, "decoder.cls_emb", 3, 1) or _size(state_dict, "decoder.head.weight", 2, 0)
        if actual is None or not isinstance(net.get("n_cls"), int):
            return config
        return {**config, "net_kwargs": {**net, "n_cls": _chosen(net["n_cls"], actual)}}
    head = config.get("decode_head")
    if not isinstance(head, Mapping):
        return config
    kind = head.get("type")
    if isinstance(kind, str) and kind in _MASK2FORMER_HEADS:
        actual = _size(state_dict, "decode_head.cls_embed.weight", 2, 0)
        declared = declared_classes(head)
        if actual is None or actual < 2 or not isinstance(declared, int):  # the last output means "no object"
            return config
        return {**config, "decode_head": {**head, "num_classes": _chosen(declared, actual - 1)}}
    if kind == "SegmenterMaskTransformerHead":
        actual = _size(state_dict, "decode_head.cls_emb", 3, 1)
    else:
        actual = _size(state_dict, "decode_head.conv_seg.weight", 4, 0)
    heads = {name: config[name] for name in ("decode_head", "auxiliary_head") if isinstance(config.get(name), Mapping)}
    counts = {part.get("num_classes") for part in heads.values() if isinstance(part.get("num_classes"), int)}
    if actual is None or len(counts) != 1 or any("num_classes" not in part for part in heads.values()):
        return config
    chosen = _chosen(counts.pop(), actual)
    return {**config, **{name: {**part, "num_classes": chosen} for name, part in heads.items()}}


def with_two_classes(
    config: Any, state_dict: Mapping[str, torch.Tensor]
) -> tuple[Any, dict[str, torch.Tensor], list[str]]:
    """Turn heads with one output and a threshold into heads with two classes that decide exactly alike.

    MMSegmentation from 0.29 on has `num_classes=2, out_channels=1, threshold=t` for two classes: class 1 where
    `sigmoid(z) > t`. With the logits 0 and `z - log(t / (1 - t))`, the second is larger in the same pixels.

    Returns:
        the config without these settings, the state dict, and the names of the tensors that were changed.

    Raises:
        ConversionError: naming a threshold outside of 0 to 1, or a tensor that has not one output.
    """
    changed: list[str] = []
    tensors = dict(state_dict)
    if not isinstance(config, Mapping):
        return config, tensors, changed
    for part in ("decode_head", "auxiliary_head"):
        head = config.get(part)
        if not isinstance(head, Mapping) or head.get("type") not in _CONVOLUTION_HEADS:
            continue
        settings = dict(head)
        outputs, threshold = settings.pop("out_channels", None), settings.pop("threshold", None)
        count = settings.get("num_classes")
        if outputs not in (None, 1, count):
            raise ConversionError(
                f"{part}.out_channels is {short_repr(outputs)}; expected num_classes, or 1 of 2 classes"
            )
        config = {**config, part: settings}
        if outputs != 1 or count != 2:
            continue
        threshold = _DEFAULT_THRESHOLD if threshold is None else threshold
        if not isinstance(threshold, float) or not 0 < threshold < 1:
            raise ConversionError(f"{part}.threshold is {short_repr(threshold)}; expected a number between 0 and 1")
        for kind, shift in (("weight", 0.0), ("bias", math.log(threshold / (1 - threshold)))):
            name = f"{part}.conv_seg.{kind}"
            tensor = tensors.get(name)
            if tensor is None:  # the conversion names missing tensors
                continue
            if tensor.dim() == 0 or len(tensor) != 1:
                raise ConversionError(f"{name} is {shape_of(tensor)}, but {part}.out_channels is 1")
            tensors[name] = torch.cat([torch.zeros_like(tensor), tensor - shift])
            changed.append(name)
        if "loss_decode" in settings:
            config[part]["loss_decode"] = _loss_of_two_classes(settings["loss_decode"])
    return config, tensors, changed


def _loss_of_two_classes(loss: Any) -> Any:
    """Turn a cross entropy over the sigmoid of one output into the equal one over two classes."""
    if isinstance(loss, list | tuple):
        return [_loss_of_two_classes(entry) for entry in loss]
    if not isinstance(loss, Mapping) or loss.get("type") != "CrossEntropyLoss" or not loss.get("use_sigmoid"):
        return loss
    weights = loss.get("class_weight")
    if isinstance(weights, list | tuple) and len(weights) == 1:
        weights = [1.0, *weights]
    return {**loss, "use_sigmoid": False, "class_weight": weights}


def _size(state_dict: Mapping[str, torch.Tensor], name: str, rank: int, axis: int) -> int | None:
    tensor = state_dict.get(name)
    return tensor.shape[axis] if isinstance(tensor, torch.Tensor) and tensor.dim() == rank else None


def _chosen(declared: int, actual: int) -> int:
    """Return the number of classes of the checkpoint, with a warning if the config declares another."""
    if declared == actual:
        return declared
    logger.warning(
        f"the config's num_classes is {short_repr(declared)}, but the checkpoint's classifier has {actual} outputs"
    )
    return actual
