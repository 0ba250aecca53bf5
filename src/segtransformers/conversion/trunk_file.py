# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""A backbone file of DINOv2 or DINOv3 alone, as a plain ViT.

Its folder is a starting point for training, and other folders can name it as their trunk (`separate_trunk`).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from ..models.plain_vit import PlainViTBackbone, PlainViTConfig
from .dino_trunks import (
    DINOV2_RULES,
    DINOV3_RULES,
    dinov2_arguments,
    dinov3_arguments,
    prepare_dinov2,
    prepare_dinov3,
    read_dinov2_trunk,
    read_dinov3_trunk,
)
from .mapping import Rule, Settings, checked_tensors

KINDS = {"dinov2": "DINOv2 backbone", "dinov3": "DINOv3 backbone"}  # by family; the originals have one class name


def described(state_dict: Mapping[str, torch.Tensor], family: str) -> dict[str, Any]:
    """Return the config of a backbone file as its tensors show it, under `model`; {} for another file.

    Args:
        family: of the command that reads the file, such as `dinov2`.
    """
    tensors = checked_tensors(state_dict)
    is_dinov3 = "storage_tokens" in tensors
    if (
        family != ("dinov3" if is_dinov3 else "dinov2")
        or "cls_token" not in tensors
        or not any(name.startswith("blocks.0.") for name in tensors)
    ):
        return {}
    arguments = dinov3_arguments(tensors) if is_dinov3 else dinov2_arguments(tensors)
    return {"model": {"type": KINDS[family], **arguments}}


def empty_model(settings: Settings, kind: str) -> tuple[PreTrainedModel, list[Rule], Callable]:
    """Build the plain ViT of a backbone file, as [`convert.empty_model`] does. Call it under the meta device."""
    if kind == KINDS["dinov3"]:
        fields, rules, prepare = read_dinov3_trunk(settings), DINOV3_RULES, prepare_dinov3
    else:
        fields, rules, prepare = {**read_dinov2_trunk(settings), "padding": "center"}, DINOV2_RULES, prepare_dinov2
    settings.finish()
    model = PlainViTBackbone(PlainViTConfig(**{"padding": "none", **fields}))
    return model, rules, lambda state_dict: prepare(state_dict, "")
