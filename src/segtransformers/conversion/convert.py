# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""From an original's state dict and description to one of our models, in memory."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel

from ..models.mask2former import SegMask2FormerForSemanticSegmentation
from ..models.upernet import SegUperNetForSemanticSegmentation
from . import mask2former, upernet, vit_adapter
from .mapping import ConversionError, Rule, Settings, load_converted, prefixed
from .protocol import read_test_cfg

# mmseg's type name -> what knows it
BACKBONES = {**vit_adapter.BACKBONES}
HEADS = {
    "UPerHead": (upernet, SegUperNetForSemanticSegmentation),
    "Mask2FormerHead": (mask2former, SegMask2FormerForSemanticSegmentation),
}
AUXILIARY_HEADS = ("FCNHead",)
MASK2FORMER_SEGMENTORS = ("EncoderDecoderMask2Former", "EncoderDecoderMask2FormerAug")
SEGMENTORS = ("EncoderDecoder", *MASK2FORMER_SEGMENTORS)


def convert_checkpoint(state_dict: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> PreTrainedModel:
    """Convert an original checkpoint into a model of ours, in evaluation mode, with the dtype of the checkpoint.

    Args:
        state_dict: the original's tensors under its own names.
        config: what the original ships beside its weights: mmseg's resolved model dict (`type="EncoderDecoder"`).

    Returns:
        the model. It shares memory with `state_dict`.

    Raises:
        ConversionError: naming what is not understood, missing, left over or of another shape.
    """
    model, rules, prepare = empty_model(config)
    load_converted(model, prepare(_without_wrapper(state_dict)), rules)
    return model.eval()


def empty_model(config: Mapping[str, Any]) -> tuple[PreTrainedModel, list[Rule], Callable]:
    """What an original's description says, without weights.

    Args:
        config: as for [`convert_checkpoint`].

    Returns:
        the model on the meta device, the rules that rename the original's tensors, and what must be done to its state
        dict before.

    Raises:
        ConversionError: naming what is not understood.
    """
    segmentor = Settings(config, "the model config")
    kind = segmentor.take("type", None)
    if kind not in SEGMENTORS:
        raise ConversionError(f"the model config's type is {kind!r}; known are {', '.join(SEGMENTORS)}")
    if segmentor.take("neck", None) is not None:
        raise ConversionError("the model config has a neck; none of the known models has one")

    backbone, backbone_kind = _part(segmentor.take("backbone"), "backbone", BACKBONES)
    decode_head, train_cfg = segmentor.take("decode_head"), segmentor.take("train_cfg", None)
    if kind in MASK2FORMER_SEGMENTORS and isinstance(decode_head, Mapping) and train_cfg is not None:
        decode_head = {**decode_head, "train_cfg": train_cfg}  # these hand it on; their losses read it
    head, head_kind = _part(decode_head, "decode_head", HEADS)
    auxiliary = segmentor.take("auxiliary_head", None)
    if isinstance(auxiliary, list | tuple):
        if len(auxiliary) > 1:
            raise ConversionError(f"the model config has {len(auxiliary)} auxiliary heads; at most one is supported")
        auxiliary = auxiliary[0] if auxiliary else None
    if auxiliary is not None:
        auxiliary, _ = _part(auxiliary, "auxiliary_head", AUXILIARY_HEADS)
    protocol = read_test_cfg(segmentor.take("test_cfg", None))
    segmentor.drop("pretrained", "init_cfg")
    segmentor.finish()

    known = BACKBONES[backbone_kind]
    head_module, model_class = HEADS[head_kind]
    try:
        model_config = head_module.read_config(head, auxiliary, known.read_config(backbone), **protocol)
    except ConversionError:
        raise
    except (ValueError, TypeError, StrictDataclassError) as error:  # what our own configs refuse
        reason = " ".join(str(error).split())
        raise ConversionError(f"the model config describes a model that cannot be: {reason}") from error
    with torch.device("meta"):
        model = model_class(model_config)
    return model, [*prefixed("backbone.", known.rules), *head_module.RULES], known.prepare


def _part(values: Any, where: str, known) -> tuple[Settings, str]:
    settings = Settings(values, where)
    kind = settings.take("type", None)
    if not isinstance(kind, str) or kind not in known:
        raise ConversionError(f"{where}.type is {kind!r}; known are {', '.join(known)}")
    return settings, kind


def _without_wrapper(state_dict: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Names without the `module.` that data parallelism puts in front of all of them."""
    if state_dict and all(name.startswith("module.") for name in state_dict):
        return {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    return state_dict
