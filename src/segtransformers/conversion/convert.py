# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Convert an original's state dict and config into a model of this package, in memory."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel
from transformers.backbone_utils import BackboneMixin
from transformers.utils import logging

from ..escaping import printable, short_repr
from ..models.internimage import InternImageBackbone
from ..models.linear import SegLinearForSemanticSegmentation
from ..models.mask2former import SegMask2FormerForSemanticSegmentation
from ..models.segformer import SegSegformerForSemanticSegmentation
from ..models.segmenter import SegmenterForSemanticSegmentation
from ..models.upernet import SegUperNetForSemanticSegmentation
from . import (
    dinov2,
    dinov2_adapter,
    dinov3,
    eva01,
    eva02,
    internimage,
    mask2former,
    mmseg_zoo,
    one_peace,
    segformer,
    segmenter,
    trunk_file,
    upernet,
    vit_adapter,
    vit_comer,
)
from .classes import with_actual_classes, with_two_classes
from .config_text import check_values
from .mapping import (
    LARGEST_NUMBER,
    ConversionError,
    Head,
    Rule,
    Settings,
    checked_tensors,
    load_converted,
    prefixed,
    separate_averages,
)
from .protocol import read_test_cfg
from .report import ConversionReport
from .scopes import without_scopes

logger = logging.get_logger(__name__)

# by type name of mmseg
BACKBONES = {
    **dinov2.BACKBONES,
    **eva01.BACKBONES,
    **one_peace.BACKBONES,
    **eva02.BACKBONES,
    **internimage.BACKBONES,
    **mmseg_zoo.BACKBONES,
    **segmenter.BACKBONES,
    **vit_adapter.BACKBONES,
    **vit_comer.BACKBONES,
}
HEADS = {
    "UPerHead": Head(SegUperNetForSemanticSegmentation, upernet.RULES, upernet.read_config),
    "BNHead": Head(SegLinearForSemanticSegmentation, dinov2.HEAD_RULES, dinov2.read_head),
    **dict.fromkeys(
        ("Mask2FormerHead", "AdapterMask2FormerHead"),  # the second is the name in ports to MMSegmentation 1.x
        Head(SegMask2FormerForSemanticSegmentation, mask2former.RULES, mask2former.read_config),
    ),
    "SegformerHead": Head(SegSegformerForSemanticSegmentation, segformer.RULES, segformer.read_config),
    "SegmenterMaskTransformerHead": Head(SegmenterForSemanticSegmentation, segmenter.RULES, segmenter.read_mask_head),
    "FCNHead": Head(SegmenterForSemanticSegmentation, segmenter.RULES, segmenter.read_linear_head),
}
AUXILIARY_HEADS = ("FCNHead",)
MASK2FORMER_SEGMENTORS = ("EncoderDecoderMask2Former", "EncoderDecoderMask2FormerAug")
SEGMENTORS = ("EncoderDecoder", *MASK2FORMER_SEGMENTORS)


def convert_checkpoint(state_dict: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> PreTrainedModel:
    """Convert an original checkpoint into a model in evaluation mode, with the dtype of the checkpoint.

    Args:
        state_dict: the original's tensors under their original names.
        config: the original's config: the resolved model dict of mmseg (`type="EncoderDecoder"`), or the content of an
            official Segmenter's `variant.yml` (`net_kwargs`). For an image classifier, the config.json of its Hub
            repository (`model_type="internimage"`), or mmseg's dict of the backbone alone (`type="InternImage"` or
            `"FlashInternImage"`).

    Returns:
        the model, or for a classifier its backbone. It shares memory with `state_dict`.

    Raises:
        ConversionError: naming the setting that cannot be converted, or the tensor that is missing, left over or of
            another shape.
    """
    model, report = convert_with_report(state_dict, config)
    for note in report.notes:
        logger.warning(note)
    return model


def convert_with_report(
    state_dict: Mapping[str, torch.Tensor], config: Mapping[str, Any], after_tensor: Callable[[], None] = lambda: None
) -> tuple[PreTrainedModel, ConversionReport]:
    """Convert as [`convert_checkpoint`] and also report the use of every tensor.

    Args:
        after_tensor: function that is called whenever a tensor was read.
    """
    config = _without_scopes(config)
    original, averages = separate_averages(checked_tensors(state_dict))
    config, weights, changed = with_two_classes(config, original)
    config = segmenter.with_patch_bias(with_actual_classes(config, weights), weights)
    config = dinov3.with_trunk_arguments(dinov2.with_trunk_arguments(config, weights), weights)
    model, rules, prepare = empty_model(config)
    prepared = prepare(weights)
    report = load_converted(model, prepared, rules, after_tensor)
    report.note_preparation(weights, prepared)
    report.changed |= set(changed)
    report.unused |= dict.fromkeys(averages.values(), "average of a weight, kept by mmcv's EMAHook; see --ema")
    if not isinstance(model, BackboneMixin) and model.config.num_labels == 1:
        report.notes.append(
            "the model has one class: where the sigmoid of its logit exceeds the config's threshold of 0.5, the label "
            "is 1, otherwise 0 for the background"
            if model.config.is_binary
            else "the model has one class, so it predicts class 0 everywhere"
        )
    return model.eval(), report


def empty_model(config: Mapping[str, Any]) -> tuple[PreTrainedModel, list[Rule], Callable]:
    """Build the model that an original's config describes, without weights.

    Args:
        config: as for [`convert_checkpoint`].

    Returns:
        the model on the meta device, the rules that rename the original's tensors, and a function that prepares the
        state dict for these rules.

    Raises:
        ConversionError: naming the setting that cannot be converted.
    """
    config = _without_scopes(config)
    segmentor = Settings(config, "the model config")
    if segmentor.take("net_kwargs", None) is not None:
        with _config_errors(), torch.device("meta"):
            official = SegmenterForSemanticSegmentation(segmenter.read_variant(config))
        return official, segmenter.OFFICIAL_RULES, dict
    kind = segmentor.take("model_type", None) or segmentor.take("type", None)
    if isinstance(kind, str) and kind in internimage.CLASSIFIERS:
        return _empty_backbone(segmentor, kind)
    if kind in trunk_file.KINDS.values():
        with _config_errors(), torch.device("meta"):
            return trunk_file.empty_model(segmentor, kind)
    if kind == dinov3.KIND:
        with _config_errors(), torch.device("meta"):
            return dinov3.empty_model(config)
    if kind not in SEGMENTORS:
        raise ConversionError(f"the model config's type is {short_repr(kind)}; known types are {', '.join(SEGMENTORS)}")
    if segmentor.take("neck", None) is not None:
        raise ConversionError("the model config has a neck; models with a neck cannot be converted")

    backbone, backbone_kind = _take_type(segmentor.take("backbone"), "backbone", BACKBONES)
    decode_head, train_cfg = segmentor.take("decode_head"), segmentor.take("train_cfg", None)
    if kind in MASK2FORMER_SEGMENTORS and isinstance(decode_head, Mapping) and train_cfg is not None:
        decode_head = {**decode_head, "train_cfg": train_cfg}  # these pass it to the head, whose losses read it
    head, head_kind = _take_type(decode_head, "decode_head", HEADS)
    fields: dict[str, Any] = {}
    if head_kind == "Mask2FormerHead" and kind not in MASK2FORMER_SEGMENTORS:
        fields["resize_mask_logits"] = True  # of MMSegmentation 1.x, whose head resizes masks before it sums them
    auxiliary = segmentor.take("auxiliary_head", None)
    if isinstance(auxiliary, list | tuple):
        if len(auxiliary) > 1:
            raise ConversionError(f"the model config has {len(auxiliary)} auxiliary heads; at most one is supported")
        auxiliary = auxiliary[0] if auxiliary else None
    if auxiliary is not None:
        auxiliary, _ = _take_type(auxiliary, "auxiliary_head", AUXILIARY_HEADS)
    is_dinov2 = dinov2_adapter.is_own(backbone_kind, backbone)
    if is_dinov2 and not segmentor.has("test_cfg"):  # no tensor shows it
        raise ConversionError(
            "the model config has no test_cfg: add the mode, crop_size and stride of the sliding windows from the "
            "config that is published beside the checkpoint"
        )
    fields |= read_test_cfg(segmentor.take("test_cfg", None))
    segmentor.drop("pretrained", "init_cfg", "data_preprocessor")
    segmentor.finish()

    known, known_head = BACKBONES[backbone_kind], HEADS[head_kind]
    # backbones of other repositories with the same type
    if is_dinov2:
        known = dinov2_adapter.BACKBONE
    elif eva01.is_own(backbone_kind, backbone):
        known = eva01.BACKBONE
    with _config_errors(), torch.device("meta"):
        backbone_config = known.read_config(backbone)
        model = known_head.model_class(known_head.read_config(head, auxiliary, backbone_config, **fields))
    rules = known.rules(backbone_config) if callable(known.rules) else known.rules
    return model, [*prefixed("backbone.", rules), *known_head.rules], known.prepare


def _without_scopes(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Check the numbers of a config, and remove the names of registries from it."""
    if not isinstance(config, Mapping):  # `Settings` refuses it by name
        return config
    _check_numbers(config)
    return without_scopes(dict(config))


def _check_numbers(config: Mapping[str, Any]) -> None:
    """Refuse a config with a number that no model has, before anything is built with it.

    Raises:
        ConversionError: naming the setting.
    """
    check_values(config, "the model config")
    stack: list[tuple[Any, Any]] = list(config.items())
    while stack:
        name, value = stack.pop()
        if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
            raise ConversionError(f"the model config's {printable(name)} has {short_repr(value)}, which is too large")
        if isinstance(value, Mapping):
            stack.extend(value.items())
        elif isinstance(value, list | tuple):
            stack.extend((name, item) for item in value)


def backbone_of_classifier(config: Mapping[str, Any], state_dict: Mapping[str, torch.Tensor]) -> Mapping[str, Any]:
    """Return the backbone's part of a segmentor's config if the tensors are an image classifier's, else the config.

    So the config of a segmentor also describes the classifier that its training starts from.
    """
    backbone = config.get("backbone")
    if not isinstance(backbone, Mapping):
        return config
    kind = backbone.get("type")
    if not isinstance(kind, str) or kind not in internimage.CLASSIFIERS:
        return config
    return config if any("decode_head." in str(name) for name in state_dict) else backbone


def _empty_backbone(settings: Settings, kind: str) -> tuple[PreTrainedModel, list[Rule], Callable]:
    """Build the backbone of an image classifier, as [`empty_model`] does."""
    with _config_errors():
        config = internimage.CLASSIFIERS[kind](settings)
    with torch.device("meta"):
        model = InternImageBackbone(config)
    return model, internimage.CLASSIFIER_RULES, functools.partial(internimage.with_layer_scale, config)


@contextlib.contextmanager
def _config_errors() -> Iterator[None]:
    """Turn errors of our configs and models into a [`ConversionError`] about the original's config."""
    try:
        yield
    except ConversionError:
        raise
    except (ValueError, TypeError, ArithmeticError, RuntimeError, MemoryError, StrictDataclassError) as error:
        reason = printable(" ".join(str(error).split()) or type(error).__name__, 400)
        raise ConversionError(f"the model config describes an impossible model: {reason}") from error


def _take_type(values: Any, where: str, known) -> tuple[Settings, str]:
    settings = Settings(values, where)
    kind = settings.take("type", None)
    if not isinstance(kind, str) or kind not in known:
        raise ConversionError(f"{where}.type is {short_repr(kind)}; known types are {', '.join(known)}")
    return settings, kind
