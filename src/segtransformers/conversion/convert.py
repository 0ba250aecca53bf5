# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""From an original's state dict and description to one of our models, in memory."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel
from transformers.utils import logging

from ..models.internimage import InternImageBackbone
from ..models.mask2former import SegMask2FormerForSemanticSegmentation
from ..models.segformer import SegSegformerForSemanticSegmentation
from ..models.segmenter import SegmenterForSemanticSegmentation
from ..models.upernet import SegUperNetForSemanticSegmentation
from . import internimage, mask2former, segformer, segmenter, upernet, vit_adapter, vit_comer
from .mapping import ConversionError, Head, Rule, Settings, checked_tensors, load_converted, prefixed
from .protocol import read_test_cfg
from .report import ConversionReport

logger = logging.get_logger(__name__)

# mmseg's type name -> what knows it
BACKBONES = {
    **internimage.BACKBONES,
    **segmenter.BACKBONES,
    **vit_adapter.BACKBONES,
    **vit_comer.BACKBONES,
}
HEADS = {
    "UPerHead": Head(SegUperNetForSemanticSegmentation, upernet.RULES, upernet.read_config),
    **dict.fromkeys(
        ("Mask2FormerHead", "AdapterMask2FormerHead"),  # the second is what ports to MMSegmentation 1.x call it
        Head(SegMask2FormerForSemanticSegmentation, mask2former.RULES, mask2former.read_config),
    ),
    "SegformerHead": Head(SegSegformerForSemanticSegmentation, segformer.RULES, segformer.read_config),
    "SegmenterMaskTransformerHead": Head(SegmenterForSemanticSegmentation, segmenter.RULES, segmenter.read_mask_head),
    "FCNHead": Head(SegmenterForSemanticSegmentation, segmenter.RULES, segmenter.read_linear_head),
}
AUXILIARY_HEADS = ("FCNHead",)
MASK2FORMER_SEGMENTORS = ("EncoderDecoderMask2Former", "EncoderDecoderMask2FormerAug")
SEGMENTORS = ("EncoderDecoder", *MASK2FORMER_SEGMENTORS)
# image classifiers that become backbones: by mmseg's type name, or by the Hub's model type
CLASSIFIERS = {"InternImage": (internimage, InternImageBackbone), "internimage": (internimage, InternImageBackbone)}


def convert_checkpoint(state_dict: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> PreTrainedModel:
    """Convert an original checkpoint into a model of ours, in evaluation mode, with the dtype of the checkpoint.

    Args:
        state_dict: the original's tensors under its own names.
        config: what the original ships beside its weights: mmseg's resolved model dict (`type="EncoderDecoder"`), or
            what stands in the `variant.yml` of an official Segmenter (`net_kwargs`). For an image classifier it is the
            config.json of its Hub repository (`model_type="internimage"`), or mmseg's dict of the backbone alone
            (`type="InternImage"`).

    Returns:
        the model; from a classifier its backbone. It shares memory with `state_dict`.

    Raises:
        ConversionError: naming what is not understood, missing, left over or of another shape.
    """
    return convert_with_report(state_dict, config)[0]


def convert_with_report(
    state_dict: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> tuple[PreTrainedModel, ConversionReport]:
    """As [`convert_checkpoint`], and what became of every tensor."""
    state_dict = checked_tensors(state_dict)
    config = segmenter.with_patch_bias(_with_counted_classes(config, state_dict), state_dict)
    model, rules, prepare = empty_model(config)
    prepared = prepare(state_dict)
    report = load_converted(model, prepared, rules)
    report.note_preparation(state_dict, prepared)
    return model.eval(), report


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
    if segmentor.take("net_kwargs", None) is not None:
        with _possible(), torch.device("meta"):
            official = SegmenterForSemanticSegmentation(segmenter.read_variant(config))
        return official, segmenter.OFFICIAL_RULES, dict
    kind = segmentor.take("model_type", None) or segmentor.take("type", None)
    if isinstance(kind, str) and kind in CLASSIFIERS:
        return _empty_backbone(segmentor, kind)
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
    segmentor.drop("pretrained", "init_cfg", "data_preprocessor")
    segmentor.finish()

    known, known_head = BACKBONES[backbone_kind], HEADS[head_kind]
    with _possible(), torch.device("meta"):
        model = known_head.model_class(known_head.read_config(head, auxiliary, known.read_config(backbone), **protocol))
    return model, [*prefixed("backbone.", known.rules), *known_head.rules], known.prepare


def backbone_of_classifier(config: Mapping[str, Any], state_dict: Mapping[str, torch.Tensor]) -> Mapping[str, Any]:
    """The part of a segmentor's config that describes an image classifier, where the tensors are one's; else all of it.

    So classifiers that segmentors start from can be named by the segmentor's config.
    """
    backbone = config.get("backbone")
    if not isinstance(backbone, Mapping):
        return config
    kind = backbone.get("type")
    if not isinstance(kind, str) or kind not in CLASSIFIERS:
        return config
    return config if any("decode_head." in str(name) for name in state_dict) else backbone


def _empty_backbone(settings: Settings, kind: str) -> tuple[PreTrainedModel, list[Rule], Callable]:
    """[`empty_model`] for an image classifier."""
    module, model_class = CLASSIFIERS[kind]
    with _possible():
        config = module.read_config(settings)
    with torch.device("meta"):
        model = model_class(config)
    return model, module.CLASSIFIER_RULES, functools.partial(module.with_layer_scale, config)


@contextlib.contextmanager
def _possible() -> Iterator[None]:
    """Says that it is the original's config where our own configs refuse what stands in it."""
    try:
        yield
    except ConversionError:
        raise
    except (ValueError, TypeError, ArithmeticError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise ConversionError(f"the model config describes a model that cannot be: {reason}") from error


def _with_counted_classes(config: Any, state_dict: Mapping[str, torch.Tensor]) -> Any:
    """The config with the number of classes that the classifier really has.

    InternImage's configs for Cityscapes and Mapillary say 150, whatever was trained.
    """
    weight = state_dict.get("decode_head.conv_seg.weight")
    if not isinstance(weight, torch.Tensor) or weight.dim() != 4 or not isinstance(config, Mapping):
        return config
    if "decode_head.cls_embed.weight" in state_dict:  # Mask2Former's classifier; a conv_seg beside it means nothing
        return config
    heads = {name: config[name] for name in ("decode_head", "auxiliary_head") if isinstance(config.get(name), Mapping)}
    told = {head.get("num_classes") for head in heads.values() if isinstance(head.get("num_classes"), int)}
    if len(told) != 1 or told == {len(weight)} or any("num_classes" not in head for head in heads.values()):
        return config
    logger.warning(
        f"the config's num_classes is {told.pop()}, but the checkpoint's classifier has {len(weight)} outputs"
    )
    return {**config, **{name: {**head, "num_classes": len(weight)} for name, head in heads.items()}}


def _part(values: Any, where: str, known) -> tuple[Settings, str]:
    settings = Settings(values, where)
    kind = settings.take("type", None)
    if not isinstance(kind, str) or kind not in known:
        raise ConversionError(f"{where}.type is {kind!r}; known are {', '.join(known)}")
    return settings, kind
