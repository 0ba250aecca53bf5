# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Models whose authors published the backbone and what was trained on it as two files."""

from collections.abc import Mapping
from typing import Any

import torch

from ..escaping import printable
from .dinov2 import TRUNK as DINOV2_TRUNK
from .dinov3 import trunk_prefix
from .mapping import ConversionError, checked_tensors

FAMILIES = ("dinov2", "dinov3")


def has_trunk(state_dict: Mapping[str, torch.Tensor], family: str) -> bool:
    """Return whether a checkpoint holds the tensors of its backbone."""
    tensors = checked_tensors(state_dict)
    return any(name.startswith(_prefix(tensors, family)) for name in tensors)


def with_trunk(
    state_dict: Mapping[str, torch.Tensor], trunk: Mapping[str, torch.Tensor], family: str, where: Any
) -> dict[str, torch.Tensor]:
    """Return the tensors of both files under the names that the original's whole model gives them.

    Args:
        state_dict: the tensors of the head, or of the adapter and the head.
        trunk: the tensors of the backbone's file.
        family: one of `FAMILIES`.
        where: the backbone's file in error messages.

    Raises:
        ConversionError: if the family has no second file, the first file holds the backbone already, or the second one
            is no backbone of the family.
    """
    if family not in FAMILIES:
        raise ConversionError(
            f"--trunk-weights is for the checkpoints of {' and '.join(FAMILIES)}; those of {family} hold their "
            "backbone: leave it out"
        )
    if has_trunk(state_dict, family):
        raise ConversionError("the checkpoint holds its backbone already: leave --trunk-weights out")
    tensors, trunk = checked_tensors(state_dict), checked_tensors(trunk)
    if "cls_token" not in trunk or not any(name.startswith("blocks.0.") for name in trunk):
        raise ConversionError(
            f"{printable(where, 200)} is no backbone of {family}, because it has no cls_token and no blocks: "
            "--checkpoint takes the head's file, --trunk-weights the backbone's"
        )
    kind = "dinov3" if "storage_tokens" in trunk else "dinov2"
    if kind != family:
        raise ConversionError(f"{printable(where, 200)} is a backbone of {kind}, expected one of {family}")
    prefix = _prefix(tensors, family)
    return {**tensors, **{f"{prefix}{name}": tensor for name, tensor in trunk.items()}}


def _prefix(state_dict: Mapping[str, torch.Tensor], family: str) -> str:
    return DINOV2_TRUNK if family == "dinov2" else trunk_prefix(state_dict)
