# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Models to start training from, with the classes of the data."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING
from transformers.utils import logging

from ..conversion import load_pretrained_trunk
from ..conversion.convert import empty_model
from ..conversion.dinov3 import block_indices
from ..conversion.mmseg_zoo import set_padding
from ..image_processing import SegmentationImageProcessor
from ..model_loading import NO_REMOTE_CODE, load_trained_model, without_load_report
from ..models.losses import without_class_settings
from ..models.plain_vit import PlainViTBackbone, PlainViTConfig
from ..models.segmentation.configuration_segmentation import MULTI_LABEL
from ..models.trunk import describe_trunk, trunk_normalization
from ..models.trunk.configuration_trunk import RESOLVED_FIELDS
from ..models.upernet import SegUperNetConfig
from ..models.vit_adapter import ViTAdapterBackbone
from ..models.vit_simple_pyramid import ViTSimplePyramidBackbone, ViTSimplePyramidConfig
from ..published import FAMILIES, published_rows
from .recipes import Recipe

logger = logging.get_logger(__name__)

DESCRIBED_BACKBONES: dict[str, Any] = {
    "seg_plain_vit": PlainViTBackbone,
    "seg_vit_adapter": ViTAdapterBackbone,
    "seg_vit_simple_pyramid": ViTSimplePyramidBackbone,
}
STAGES = ["stage1", "stage2", "stage3", "stage4"]
# fields that describe how a trunk with its weights computes, in addition to `RESOLVED_FIELDS`
TRUNK_FIELDS = (
    "num_channels",
    "rotary_reference_grid",
    "use_prefix_tokens",
    "use_prefix_positions",
    "position_interpolation",
    "position_interpolation_offset",
    "position_interpolation_antialias",
    "keep_positions_of_same_count",
)


def starting_model(
    name: str | None,
    recipe: Recipe,
    id2label: Mapping[int, str],
    palette: Sequence[Sequence[int]] | None = None,
    *,
    crop_size: tuple[int, int] | None = None,
    trunk_weights: str | Path | None = None,
    binary: bool = False,
    multi_label: bool = False,
) -> tuple[PreTrainedModel, SegmentationImageProcessor | Any]:
    """Create a model for the given classes, and its image processor.

    Args:
        name: a folder or Hub id of a whole model; or of a backbone, which gets the recipe's head; or the name of a
            plain ViT in timm, whose weights are downloaded into the recipe's backbone with the recipe's head; the
            recipes of published models take a ViT-Adapter, or a simple feature pyramid if their model has one. The
            folder or Hub id of a plain ViT is taken like a name in timm if the recipe describes another backbone. None
            is the recipe's own model with random weights.
        recipe: its head, drop path and test protocol are used. A whole model keeps its own
            head, and its protocol unless the recipe sets it.
        id2label: the classes of the data. A whole model with other classes gets a new classifier.
        palette: the colours of the classes.
        crop_size: (height, width) of the training crops in place of the recipe's. The windows and image sizes of the
            test protocol are scaled along.
        trunk_weights: a file of pre-trained weights for the trunk, in the original format.
        binary: whether the model gets one class, the second of two, and the first is its background.
        multi_label: whether each class gets a sigmoid of its own.

    Returns:
        the model in training mode, and the image processor.

    Raises:
        ValueError: if no such model exists, `name` is None and the recipe describes no model or freezes a trunk that
            would be random, or the data or the model are not for a binary or multi-label model.
        OSError: from transformers, if files are missing.
    """
    if binary and len(id2label) != 2:
        raise ValueError(f"a binary model needs data of two classes, background and object, not {len(id2label)}")
    label2id = {label: index for index, label in id2label.items()}
    problem = MULTI_LABEL if multi_label else None
    classes = {"id2label": dict(id2label), "label2id": label2id, "binary": binary, "problem_type": problem}
    own = _own_config(recipe, name)
    if name is None:
        if recipe.freeze_trunk and trunk_weights is None:
            example = recipe.model["backbone"]["trunk"] if recipe.model is not None else "vit_base_patch16_dinov3"
            raise ValueError(
                f"the recipe {recipe.name!r} freezes the trunk, which would be random: choose one with pre-trained "
                f"weights, such as --model {example}, or pass its file with --trunk-weights"
            )
        if own is None:
            raise ValueError(f"the recipe {recipe.name!r} does not describe a model: choose a model to start from")
        config = _whole_config(own, own.backbone_config, recipe, classes, crop_size)
        model, processor = AutoModelForSemanticSegmentation.from_config(config), _processor(recipe, crop_size)
    elif is_timm_trunk(name):
        backbone = _backbone_of_trunk(name, recipe, own, crop_size, pretrained=trunk_weights is None)
        config = _whole_config(own, backbone.config, recipe, classes, crop_size)
        model = AutoModelForSemanticSegmentation.from_config(config)
        model.backbone.load_state_dict(backbone.state_dict())
        normalization = trunk_normalization(name) if trunk_weights is None else {}
        processor = _processor(recipe, crop_size, **normalization)
    else:
        config = AutoConfig.from_pretrained(name, **NO_REMOTE_CODE)
        _set_drop_path(config, recipe.drop_path_rate)
        if type(config) in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
            processor = AutoImageProcessor.from_pretrained(name, **NO_REMOTE_CODE)
            if recipe.sets_protocol:
                for field, value in _protocol_fields(recipe, crop_size).items():
                    setattr(config, field, value)
                normalization = {field: getattr(processor, field) for field in ("image_mean", "image_std")}
                processor = _processor(recipe, crop_size, **normalization)
            model = _with_classes(name, config, classes)
        elif _is_for_another_backbone(config, recipe):
            backbone_config = _config_around(config, recipe.model["backbone"])  # type: ignore[index]
            model = AutoModelForSemanticSegmentation.from_config(
                _whole_config(own, backbone_config, recipe, classes, crop_size)
            )
            _load_trunk(model.backbone, name)
            processor = _processor(recipe, crop_size)
        else:
            config = _whole_config(own, config, recipe, classes, crop_size)
            model_class: Any = MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING[type(config)]
            with without_load_report():
                model = model_class.from_pretrained(name, config=config, dtype=torch.float32, **NO_REMOTE_CODE)
            logger.warning(f"{name} is a backbone: its head starts at random")
            processor = _processor(recipe, crop_size)
    if trunk_weights is not None:
        load_pretrained_trunk(model, trunk_weights)
    model.config.palette = [list(colour) for colour in palette] if palette is not None else None
    if hasattr(model.config, "calibration_temperature"):
        model.config.calibration_temperature = 1.0  # it was measured with the weights before this training
    return model.train(), processor


def is_timm_trunk(name: str) -> bool:
    """Return whether a name is a trunk of timm, and no folder."""
    return not Path(name).exists() and timm.is_model(name.partition(".")[0])


def trunk_name(name: str | None, trunk_weights: str | Path | None) -> str | None:
    """Return a name by which a saved folder can load the trunk of a starting model from anywhere, or None.

    Args:
        name, trunk_weights: as of [`starting_model`].
    """
    if name is None or trunk_weights is not None or Path(name).exists():
        return None
    return name


def _backbone_of_trunk(name: str, recipe: Recipe, own: Any, crop_size: tuple[int, int] | None, pretrained: bool) -> Any:
    """Return the recipe's backbone around a trunk of timm: by default a ViT-Adapter whose positions fit the crops.

    Args:
        own: the config of the recipe's model, or None.
    """
    if recipe.model is None:
        has_pyramid = own is not None and isinstance(own.backbone_config, ViTSimplePyramidConfig)
        model_class: Any = ViTSimplePyramidBackbone if has_pyramid else ViTAdapterBackbone
        return model_class.from_trunk(
            name,
            pretrained=pretrained,
            pretrain_image_size=min(crop_size or recipe.crop_size),
            drop_path_rate=recipe.drop_path_rate,
            out_features=STAGES,
        )
    fields = _backbone_fields(recipe.model["backbone"], name.partition(".")[0])
    del fields["trunk"]
    model_class = DESCRIBED_BACKBONES[fields.pop("model_type")]
    return model_class.from_trunk(name, pretrained=pretrained, drop_path_rate=recipe.drop_path_rate, **fields)


def _is_for_another_backbone(config: PreTrainedConfig, recipe: Recipe) -> bool:
    """Return whether a backbone is a plain ViT, and the recipe describes a backbone that is more than that."""
    return (
        isinstance(config, PlainViTConfig)
        and recipe.model is not None
        and recipe.model["backbone"]["model_type"] != PlainViTConfig.model_type
    )


def _config_around(config: PlainViTConfig, described: Mapping[str, Any]) -> Any:
    """Return the config of a recipe's backbone around the trunk of a plain ViT."""
    facts = {name: getattr(config, name) for name in (*RESOLVED_FIELDS, *TRUNK_FIELDS)}
    fields = {**_backbone_fields(described, config.trunk, facts), **facts}
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def _load_trunk(backbone: Any, name: str) -> None:
    """Load the weights of a plain ViT, a folder or Hub repository, into the trunk of another backbone.

    Raises:
        ValueError: if the plain ViT lacks some.
    """
    with without_load_report():
        source = PlainViTBackbone.from_pretrained(name, dtype=torch.float32, **NO_REMOTE_CODE).trunk.state_dict()
    expected = backbone.trunk.state_dict()
    missing = [key for key in expected if key not in source]
    if missing:
        raise ValueError(f"its ViT has no {missing[0]}, which the recipe's backbone needs")
    backbone.trunk.load_state_dict({key: source[key] for key in expected})


def _backbone_fields(
    described: Mapping[str, Any], trunk: str, facts: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the fields of a recipe's backbone for a trunk of timm, with what its kind of trunk needs.

    Args:
        facts: fields of the trunk; None takes timm's.

    Raises:
        ValueError: naming a backbone that recipes cannot describe.
    """
    fields = {**described, "trunk": trunk}
    if fields["model_type"] not in DESCRIBED_BACKBONES:
        raise ValueError(
            f"the recipe's backbone has the model_type {fields['model_type']!r}; known are "
            f"{', '.join(DESCRIBED_BACKBONES)}"
        )
    is_adapter = fields["model_type"] == "seg_vit_adapter"
    facts = describe_trunk(trunk) if facts is None else facts
    if fields.get("token_stride") is not None:  # the trunk's own grid
        fields["token_stride"] = facts["patch_size"]
    if fields.get("use_injectors", True) is False and facts["num_hidden_layers"] % 4 == 0:
        blocks = block_indices("FOUR_EVEN_INTERVALS", facts["num_hidden_layers"])
        fields["interaction_indexes"] = [
            [start, end] for start, end in zip([0, *(i + 1 for i in blocks)], blocks, strict=False)
        ]
    if "dinov2" in trunk and not is_adapter:
        has_registers = "_reg" in trunk
        fields["position_interpolation_antialias"] = has_registers
        fields["position_interpolation_offset"] = 0.0 if has_registers else 0.1
    return fields


def _own_config(recipe: Recipe, name: str | None = None) -> Any:
    """Return the config of the model that a recipe trains, or None if the recipe describes none.

    Args:
        name: a trunk of timm in place of the recipe's, or anything else.
    """
    if recipe.model is not None:
        head, described = dict(recipe.model["head"]), recipe.model["backbone"]
        trunk = name.partition(".")[0] if name is not None and is_timm_trunk(name) else described["trunk"]
        fields = _backbone_fields(described, trunk)
        backbone_config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        return AutoConfig.for_model(head.pop("model_type"), backbone_config=backbone_config, **head)
    rows = published_rows(recipe.family) if recipe.family in FAMILIES else {}
    row = rows.get(recipe.name.removesuffix(" (changed)"))
    if row is None:
        return None
    config = empty_model(row["model"])[0].config
    set_padding(config, row["model"])
    return config


def _whole_config(
    own: Any, backbone: PreTrainedConfig, recipe: Recipe, classes: dict[str, Any], crop_size: tuple[int, int] | None
) -> PreTrainedConfig:
    """Return the config of the recipe's head around a backbone, with the test protocol. The default head is UperNet."""
    if own is None:
        logger.warning(f"the recipe {recipe.name!r} does not describe a head: the backbone gets UperNet")
        own = SegUperNetConfig(backbone_config=backbone)
    settings = {
        **own.to_dict(),
        **_fields_of_classes(classes, own),
        "palette": None,
        **_protocol_fields(recipe, crop_size),
    }
    _fit_losses(settings)
    backbone = type(backbone).from_dict({**backbone.to_dict(), "out_features": _features(backbone, own)})
    _set_drop_path(backbone, recipe.drop_path_rate)
    return type(own).from_dict({**settings, "backbone_config": backbone.to_dict()})


def _protocol_fields(recipe: Recipe, crop_size: tuple[int, int] | None) -> dict[str, Any]:
    """Return the fields of a model's config that follow the recipe's test protocol, scaled to the crops."""
    protocol, scale = recipe.test_protocol, _scale(recipe, crop_size)
    fields: dict[str, Any] = {"inference_mode": protocol.inference_mode}
    for field in ("window_size", "window_stride"):
        sides = getattr(protocol, field)
        fields[field] = None if sides is None else [max(round(scale * side), 1) for side in sides]
    if list(protocol.window_size or ()) == list(recipe.crop_size) and crop_size is not None:
        fields["window_size"] = list(crop_size)
    return fields


def _features(backbone: Any, head: Any) -> list[str]:
    """Return the feature maps that a backbone gives to a head: all four if its config has only one, too few for it.

    Raises:
        ValueError: if the backbone is a plain ViT with too few.
    """
    if isinstance(backbone, PlainViTConfig):
        if len(backbone.out_features) < head.num_feature_maps:
            raise ValueError(
                f"it is a plain ViT that gives {len(backbone.out_features)} of the {head.num_feature_maps} feature "
                "maps that the recipe's head reads: choose a recipe with a linear head, or one with a backbone around "
                "a plain ViT, such as dinov3-adapter-mask2former"
            )
        return list(backbone.out_features)
    if len(backbone.out_features) > 1 or not set(STAGES) <= set(backbone.stage_names):
        return list(backbone.out_features)
    return STAGES


def _scale(recipe: Recipe, crop_size: tuple[int, int] | None) -> float:
    return 1.0 if crop_size is None else min(crop_size) / min(recipe.crop_size)


def _processor(recipe: Recipe, crop_size: tuple[int, int] | None, **fields: Any) -> SegmentationImageProcessor:
    processor, scale = recipe.image_processor(), _scale(recipe, crop_size)
    processor.size = {side: round(scale * length) for side, length in dict(processor.size).items() if length}
    for field, value in fields.items():
        setattr(processor, field, value)
    return processor


def _set_drop_path(config: Any, rate: float) -> None:
    backbone = getattr(config, "backbone_config", None) or config
    if hasattr(backbone, "drop_path_rate"):
        backbone.drop_path_rate = rate


def _fields_of_classes(classes: dict[str, Any], config: Any) -> dict[str, Any]:
    """Return the fields of the classes that a config has.

    Raises:
        ValueError: if the model cannot be binary or multi-label.
    """
    if hasattr(config, "binary"):
        return classes
    for name, kind in (("binary", "binary"), ("problem_type", "multi-label")):
        if classes[name]:
            raise ValueError(f"a model of {config.model_type} cannot be {kind}: choose a head that classifies pixels")
    return {name: value for name, value in classes.items() if name not in ("binary", "problem_type")}


def _fit_losses(settings: dict[str, Any]) -> None:
    """Change the losses in the fields of a config to those for its new classes."""
    for name in ("losses", "auxiliary_losses"):
        if settings.get(name):
            sigmoids = bool(settings.get("binary")) or settings.get("problem_type") == MULTI_LABEL
            settings[name] = without_class_settings(settings[name], sigmoids)


def _with_classes(name: str, config: Any, classes: dict[str, Any]) -> PreTrainedModel:
    """Load a trained model; if its classes differ, its class parameters start at random."""
    before = [str(config.id2label[index]) for index in sorted(config.id2label)]
    wanted = [classes["id2label"][index] for index in sorted(classes["id2label"])]
    fields = _fields_of_classes(classes, config)
    is_same_kind = (fields.get("binary", False), fields.get("problem_type") == MULTI_LABEL) == (
        getattr(config, "binary", False),
        getattr(config, "is_multi_label", False),
    )
    if before == wanted and is_same_kind:
        return load_trained_model(name, config=config, dtype=torch.float32)
    settings = {**config.to_dict(), **fields}
    _fit_losses(settings)
    config = type(config).from_dict(settings)
    with without_load_report():
        model = AutoModelForSemanticSegmentation.from_pretrained(
            name, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, **NO_REMOTE_CODE
        )
    new = class_parameters(config)
    if len(before) == len(wanted):  # the old classifier was loaded, because its shape fits
        kept = {name: tensor for name, tensor in model.state_dict().items() if name not in new}
        with without_load_report():
            model = type(model).from_pretrained(None, config=config, state_dict=kept)
    listed = ", ".join(new[:4]) + (f" and {len(new) - 4} others" if len(new) > 4 else "")
    logger.warning(f"{name} has other classes than the data: these parameters start at random: {listed}")
    return model


def class_parameters(config: Any) -> list[str]:
    """Return the names of the parameters and buffers whose shape depends on the number of classes."""
    shapes = []
    for count in (config.num_labels, config.num_labels + 1):
        other = copy.deepcopy(config)
        other.num_labels = count
        with torch.device("meta"):
            model = AutoModelForSemanticSegmentation.from_config(other)
        shapes.append({name: tensor.shape for name, tensor in model.state_dict().items()})
    return [name for name, shape in shapes[0].items() if shapes[1][name] != shape]


__all__ = ["class_parameters", "is_timm_trunk", "starting_model", "trunk_name"]
