# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Pre-trained trunks from the files that the originals start their training from.

DeiT (`deit_*_patch16_224-*.pth`), the AugReg models that ViT-Adapter releases as `.pth`, BEiT and BEiTv2
(`beit*_patch16_224_*.pth`), and Uni-Perceiver (`uni-perceiver-*_converted.pth`).
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..models.trunk import Trunk
from ..models.trunk.pretrained import load_trunk_weights
from .checkpoint import read_checkpoint
from .mapping import ConversionError, Rule, checked_tensors, find_rule, widest_dtype
from .vit_adapter import UNIPERCEIVER_RULES, with_whole_positions

# New names are timm's. What a trunk has no place for, because it stands behind the blocks or follows from the grid:
_VIT_RULES = [
    Rule(r"(norm|fc_norm|head|head_dist|pre_logits|lm_head|fc)\..+", None),
    Rule(r"mask_token", None),
    Rule(r"(.+\.)?relative_position_index", None),
    Rule(r"(.+)", r"\1"),
]
_SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"
_TABLE = "blocks.{}.attn.relative_position_bias_table"


def load_pretrained_trunk(model: PreTrainedModel, path: str | Path) -> list[str]:
    """Load a pre-trained trunk into a backbone, in place. Nothing else of the model changes.

    Positions are resized to the grid of the trunk as the originals resize them: learned positions bicubically, BEiT's
    tables by cubic splines over a geometric progression of offsets. Tokens that the trunk does not use are left out.

    Args:
        model: a backbone around a plain ViT, or a model whose `backbone` is one.
        path: the file, `.pth`, `.pth.tar` or `.zip`. No code in it is run.

    Returns:
        the names of the tensors in the file that were not needed, such as those of a classifier.

    Raises:
        ConversionError: if the file cannot be read or does not fit the trunk, naming what is missing, left over or of
            another shape. The model is then as it was.
    """
    backbone: Any = getattr(model, "backbone", model)
    trunk = getattr(backbone, "trunk", None)
    if not isinstance(trunk, Trunk):
        raise ConversionError(f"a {type(backbone).__name__} has no plain ViT as its trunk")
    state_dict, unused = _renamed(checked_tensors(read_checkpoint(path).state_dict), len(trunk.blocks))
    widest_dtype(state_dict)  # refuses what is no weight
    if not backbone.config.use_prefix_tokens:
        unused += [name for name in ("cls_token", "dist_token", "reg_token") if name in state_dict]
    dtype = trunk.embeddings.patch_embed.proj.weight.dtype
    try:
        load_trunk_weights(
            trunk,
            backbone.config,
            {name: tensor.to(dtype) for name, tensor in state_dict.items()},
            _grid(state_dict, backbone.config.pretrain_grid),
            f"the weights in {path}",
        )
    except ValueError as error:
        raise ConversionError(str(error)) from error
    return unused


def _renamed(state_dict: Mapping[str, torch.Tensor], depth: int) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Tensors under timm's names, and the names of those that are not needed."""
    if "layers.0.self_attn.in_proj.weight" in state_dict:
        renamed, unused = {}, []
        for name, tensor in with_whole_positions(state_dict).items():
            _, new_name = find_rule(name, UNIPERCEIVER_RULES)
            if new_name is None or not new_name.startswith("trunk."):
                unused.append(name)  # other tasks and modalities
            else:
                renamed[new_name.removeprefix("trunk.").removeprefix("embeddings.")] = tensor
        return renamed, unused
    renamed, unused = {}, []
    for name, tensor in state_dict.items():
        _, new_name = find_rule(name, _VIT_RULES)
        if new_name is None:
            unused.append(name)
        else:
            renamed[new_name] = tensor
    shared = renamed.pop(_SHARED_TABLE, None)
    if shared is not None:
        renamed |= {_TABLE.format(index): shared for index in range(depth)}
    return renamed, unused


def _grid(state_dict: Mapping[str, torch.Tensor], grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of patches that the positions in a file were made for: all of these files are for squares."""
    positions, table = state_dict.get("pos_embed"), state_dict.get(_TABLE.format(0))
    if positions is not None:
        count = positions.shape[1] if positions.dim() == 3 else 0
        side = math.isqrt(count)
        if not count or count - side**2 > 2:  # tokens in front have entries, too
            raise ConversionError(
                f"pos_embed is {tuple(positions.shape)}, expected (1, positions, channels) for a square of patches and "
                "at most two tokens in front"
            )
        return (side, side)
    if table is not None and table.dim() == 2:
        side = (math.isqrt(table.shape[0]) + 1) // 2
        return (side, side)
    return grid


__all__ = ["load_pretrained_trunk"]
