# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The segmentors of DINOv3 (`FeatureDecoder`): a trunk in one file and what was trained on it in another.

Names and behaviour: `dinov3/eval/segmentation` of facebookresearch/dinov3. No config is published beside the weights;
[`describe_linear`] makes it from the tensors.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from ..escaping import short_repr
from ..image_processing import SegmentationImageProcessor
from ..models.linear import SegLinearConfig, SegLinearForSemanticSegmentation
from ..models.mask2former import SegMask2FormerForSemanticSegmentation
from ..models.plain_vit import PlainViTConfig
from . import dinov3_mask2former
from .dino_trunks import DINOV3_RULES, dinov3_arguments, prepare_dinov3, read_dinov3_trunk
from .mapping import MOST_CLASSES, ConversionError, Rule, Settings, checked_tensors, prefixed, shape_of
from .protocol import read_test_cfg

KIND = "FeatureDecoder"
LINEAR_TRUNK = "segmentation_model.0.feature_model."
MASK2FORMER_TRUNK = dinov3_mask2former.TRUNK
HEAD_ALONE = (
    "the checkpoint has a head without its backbone, because DINOv3 saves the head alone: add --trunk-weights with the "
    "backbone's file, such as dinov3_vits16_pretrain_lvd1689m-08c60483.pth, which its authors give on request"
)
_LINEAR_HEAD = "segmentation_model.1."
LINEAR_RULES = [
    *prefixed(LINEAR_TRUNK, DINOV3_RULES, "backbone."),
    Rule(r"segmentation_model\.1\.batchnorm_layer\.(.+)", r"decode_head.batch_norm.\1"),
    Rule(r"segmentation_model\.1\.conv\.(.+)", r"decode_head.classifier.\1"),
]


def block_indices(layers: Any, depth: int) -> list[int]:
    """Return the blocks whose outputs a decoder reads, by the original's name for a choice of them."""
    if layers == "LAST":
        return [depth - 1]
    if layers == "FOUR_LAST":
        return list(range(depth - 4, depth))
    if layers == "FOUR_EVEN_INTERVALS":
        return [4, 11, 17, 23] if depth == 24 else [step * (depth // 4) - 1 for step in range(1, 5)]
    raise ConversionError(
        f"backbone_out_layers is {short_repr(layers)}; known are LAST, FOUR_LAST and FOUR_EVEN_INTERVALS"
    )


def read_linear(config: Mapping[str, Any]) -> SegLinearConfig:
    """Convert the settings of a `FeatureDecoder` with the linear decoder."""
    settings = Settings(config, "the model config")
    trunk = settings.part("backbone")
    fields = read_dinov3_trunk(trunk)
    trunk.finish()
    depth = fields["num_hidden_layers"]
    indices = block_indices(settings.take("backbone_out_layers", "LAST"), depth)
    if min(indices) < 0:
        raise ConversionError(f"backbone_out_layers needs four blocks or more, but the backbone has {depth}")
    fields |= {"padding": "none", "out_indices": [index + 1 for index in indices]}
    head = {
        "num_labels": settings.count("num_classes", most=MOST_CLASSES),
        "classifier_dropout": settings.take("dropout", 0.1),
        **read_test_cfg(settings.take("test_cfg", None)),
        "square_window_if_smaller": True,
    }
    settings.drop("type", "hub", "decoder_type")
    settings.finish()
    return SegLinearConfig(backbone_config=PlainViTConfig(**fields), **head)


def empty_model(config: Mapping[str, Any]) -> tuple[PreTrainedModel, list[Rule], Callable]:
    """Build the model of a `FeatureDecoder`, as [`convert.empty_model`] does. Call it under the meta device."""
    kind = config.get("decoder_type")
    if kind == "linear":
        linear = SegLinearForSemanticSegmentation(read_linear(config))
        return linear, LINEAR_RULES, lambda state_dict: prepare_dinov3(state_dict, LINEAR_TRUNK)
    if kind == "m2f":
        depth = read_dinov3_trunk(Settings(config.get("backbone", {}), "backbone"))["num_hidden_layers"]
        if depth < 4:
            raise ConversionError(f"the adapter reads four blocks of the backbone, which has {depth}")
        indices = block_indices(config.get("backbone_out_layers", "FOUR_EVEN_INTERVALS"), depth)
        model = SegMask2FormerForSemanticSegmentation(dinov3_mask2former.read_config(config, indices))
        return model, dinov3_mask2former.RULES, lambda state_dict: prepare_dinov3(state_dict, MASK2FORMER_TRUNK)
    raise ConversionError(f"the model config's decoder_type is {short_repr(kind)}; known types are linear and m2f")


def with_trunk_arguments(config: Any, state_dict: Mapping[str, torch.Tensor]) -> Any:
    """Add to the config of a `FeatureDecoder` the arguments of the trunk, as the tensors show them.

    Raises:
        ConversionError: if the checkpoint has no trunk.
    """
    if not isinstance(config, Mapping) or config.get("type") != KIND:
        return config
    for prefix in (LINEAR_TRUNK, MASK2FORMER_TRUNK):
        trunk = {name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)}
        if trunk:
            if prefix == MASK2FORMER_TRUNK:
                dinov3_mask2former.check_width(state_dict, trunk)
            given = config.get("backbone", {})
            if not isinstance(given, Mapping):
                raise ConversionError(
                    f"the model config's backbone is {short_repr(given)}; expected a dict of settings"
                )
            return {**config, "backbone": {**dinov3_arguments(trunk), **given}}
    raise ConversionError(HEAD_ALONE)


def read_processor(config: Mapping[str, Any], reduce_labels: bool) -> SegmentationImageProcessor:
    """Return the image processor of the repository's test protocol for a kind of decoder."""
    is_linear = config.get("decoder_type") == "linear"
    return SegmentationImageProcessor(
        size={"shortest_edge": 512 if is_linear else 896},
        size_divisor=0,
        resize_method="pillow",
        do_reduce_labels=reduce_labels,
        multi_scale={
            "scales": [1.0] if is_linear else [0.9, 0.95, 1.0, 1.05, 1.1],
            "flip": not is_linear,
            "size_divisor": 0,
            "shortest_edge_at_least": None,
            "pad_shortest_edge": None,
            "shrunk_edge_divisor": 32,
        },
    )


def trunk_prefix(state_dict: Mapping[str, torch.Tensor]) -> str:
    """Return the prefix of the backbone's names in the whole model that a head's file belongs to."""
    return LINEAR_TRUNK if f"{_LINEAR_HEAD}conv.weight" in state_dict else MASK2FORMER_TRUNK


def described(state_dict: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return the config of a whole model as its tensors show it, under `model`; {} if they show none."""
    tensors = checked_tensors(state_dict)
    mask2former = dinov3_mask2former.described(tensors)
    if mask2former is not None:
        if f"{MASK2FORMER_TRUNK}cls_token" not in tensors:
            raise ConversionError(HEAD_ALONE)
        return {"model": mask2former}
    width = tensors.get(f"{LINEAR_TRUNK}cls_token")
    if width is None and f"{_LINEAR_HEAD}conv.weight" in tensors:
        raise ConversionError(HEAD_ALONE)
    model = None if width is None or not width.dim() else describe_linear(tensors, width.shape[-1])
    return {} if model is None else {"model": model}


def describe_linear(state_dict: Mapping[str, torch.Tensor], width: int) -> dict[str, Any] | None:
    """Return the config of a linear probe from the tensors of its file; None for the tensors of another model.

    Args:
        width: channels of the trunk that belongs to it.

    Raises:
        ConversionError: if the probe reads another number of layers than one, of this width.
    """
    weight = state_dict.get(f"{_LINEAR_HEAD}conv.weight")
    if weight is None or f"{_LINEAR_HEAD}batchnorm_layer.weight" not in state_dict:
        return None
    if weight.dim() == 4 and weight.shape[1] == 4 * width:
        raise ConversionError(
            f'the head reads four layers of the backbone: add --config with a JSON file such as {{"type": "{KIND}", '
            '"decoder_type": "linear", "backbone_out_layers": "FOUR_LAST", "num_classes": 150}, or FOUR_EVEN_INTERVALS'
        )
    if weight.dim() != 4 or weight.shape[1] != width:
        raise ConversionError(
            f"the head's conv.weight is {shape_of(weight)}, but the backbone has {width} channels: pass the backbone's "
            "file that the head was trained on"
        )
    return {
        "type": KIND,
        "decoder_type": "linear",
        "backbone_out_layers": "LAST",
        "num_classes": weight.shape[0],
        "test_cfg": {"mode": "slide", "crop_size": [512, 512], "stride": [341, 341]},
    }
