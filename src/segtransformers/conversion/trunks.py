# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Load pre-trained trunks from the files that the originals' training starts from.

These are DINOv2 (`dinov2_*_pretrain.pth`) and DINOv3 (`dinov3_*_pretrain_*.pth`), DeiT (`deit_*_patch16_224-*.pth`),
AugReg as published by its authors (`Ti_16-i21k-*.npz`), by ViT-Adapter (`.pth`) and by MMSegmentation for Segmenter
(`vit_*_p16_384_*.pth`), BEiT and BEiTv2 (`beit*_patch16_224_*.pth`), EVA-02 (`eva02_*_p14to16.pt`), and Uni-Perceiver
(`uni-perceiver-*_converted.pth`).
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..escaping import printable, short_repr
from ..models.trunk import Trunk
from ..models.trunk.configuration_trunk import TrunkConfig
from ..models.trunk.pretrained import load_trunk_weights
from . import eva02
from .checkpoint import read_checkpoint
from .dino_trunks import DINOV2_RULES, DINOV3_RULES, prepare_dinov2, prepare_dinov3
from .mapping import ConversionError, Rule, checked_tensors, find_rule, join_pieces, widest_dtype
from .segmenter import VIT_RULES as MMSEG_VIT_RULES
from .vit_adapter import UNIPERCEIVER_RULES, with_whole_positions

# The new names are timm's. Rules without a name are for tensors after the blocks, and those that follow from the grid.
_VIT_RULES = [
    Rule(r"(fc_norm|head|head_dist|pre_logits|lm_head|fc)\..+", None, why="part of the classifier"),
    Rule(r"mask_token", None, why="for pre-training only"),
    Rule(r"(.+\.)?relative_position_index", None, why="follows from the grid"),
    Rule(r"(.+)", r"\1"),
]


def _transposed(name: str, kernel: torch.Tensor) -> torch.Tensor:
    """Convert a kernel of JAX, which has inputs first, and a dimension for heads in attention, into a matrix."""
    if kernel.dim() < 2:
        raise ConversionError(
            f"{printable(name)} is {tuple(kernel.shape)}, expected a matrix, possibly with a dimension of heads"
        )
    return kernel.flatten(0, -2).t() if name.endswith("out/kernel") else kernel.flatten(1).t()


def _as_patches(name: str, kernel: torch.Tensor) -> torch.Tensor:
    if kernel.dim() != 4:
        raise ConversionError(f"{printable(name)} is {tuple(kernel.shape)}, expected (height, width, 3, channels)")
    return kernel.permute(3, 2, 0, 1)


def _flat(name: str, bias: torch.Tensor) -> torch.Tensor:
    return bias.flatten()


_JAX_BLOCK = r"(?:opt/target/)?Transformer/encoderblock_(\d+)/"
_JAX_ATTENTION = _JAX_BLOCK + r"MultiHeadDotProductAttention_1/"
_JAX_RULES = [
    Rule(r"(?:opt/target/)?(?:head|pre_logits)/.+", None, why="part of the classifier"),
    Rule(r"(?:opt/target/)?cls", r"cls_token"),
    Rule(r"(?:opt/target/)?Transformer/posembed_input/pos_embedding", r"pos_embed"),
    Rule(r"(?:opt/target/)?embedding/kernel", r"patch_embed.proj.weight", _as_patches),
    Rule(r"(?:opt/target/)?embedding/bias", r"patch_embed.proj.bias"),
    Rule(r"(?:opt/target/)?Transformer/encoder_norm/scale", r"norm.weight"),
    Rule(r"(?:opt/target/)?Transformer/encoder_norm/bias", r"norm.bias"),
    *(
        rule
        for theirs, ours in ((0, "norm1"), (2, "norm2"))
        for rule in (
            Rule(_JAX_BLOCK + rf"LayerNorm_{theirs}/scale", rf"blocks.\1.{ours}.weight"),
            Rule(_JAX_BLOCK + rf"LayerNorm_{theirs}/bias", rf"blocks.\1.{ours}.bias"),
        )
    ),
    *(
        rule
        for theirs, ours in ((0, "fc1"), (1, "fc2"))
        for rule in (
            Rule(_JAX_BLOCK + rf"MlpBlock_3/Dense_{theirs}/kernel", rf"blocks.\1.mlp.{ours}.weight", _transposed),
            Rule(_JAX_BLOCK + rf"MlpBlock_3/Dense_{theirs}/bias", rf"blocks.\1.mlp.{ours}.bias"),
        )
    ),
    Rule(_JAX_ATTENTION + r"(query|key|value)/kernel", r"blocks.\1.attn.\2.weight", _transposed),
    Rule(_JAX_ATTENTION + r"(query|key|value)/bias", r"blocks.\1.attn.\2.bias", _flat),
    Rule(_JAX_ATTENTION + r"out/kernel", r"blocks.\1.attn.proj.weight", _transposed),
    Rule(_JAX_ATTENTION + r"out/bias", r"blocks.\1.attn.proj.bias"),
]
_ROTARY_RULES = [Rule(r"(?:.+\.)?rope\.freqs_(?:cos|sin)", None, why="follows from the grid")]
_SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"
_TABLE = "blocks.{}.attn.relative_position_bias_table"


def load_pretrained_trunk(model: PreTrainedModel, path: str | Path) -> list[str]:
    """Load a pre-trained trunk into a backbone, in place. The rest of the model stays unchanged.

    Position embeddings are resized to the trunk's grid by the config's `position_interpolation`, BEiT's bias tables by
    cubic splines over a geometric progression of offsets, as in the originals. Tensors that the trunk does not use,
    such as class tokens or the final norm, are not loaded.

    Args:
        model: a backbone around a plain ViT, or a model whose `backbone` is one.
        path: the file, `.pth`, `.pth.tar`, `.zip` or `.npz`. No code from it is run.

    Returns:
        the names of the tensors in the file that were not loaded, such as those of a classifier.

    Raises:
        ConversionError: if the file cannot be read, or a tensor is missing, left over or of another shape. The model is
            unchanged then.
    """
    backbone: Any = getattr(model, "backbone", model)
    trunk = getattr(backbone, "trunk", None)
    if not isinstance(trunk, Trunk):
        raise ConversionError(f"{type(backbone).__name__} is not a backbone with a plain ViT as trunk")
    state_dict, unused = _renamed(checked_tensors(read_checkpoint(path).state_dict), backbone.config)
    widest_dtype(state_dict)  # raises an error for a tensor that is not a weight
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


def _renamed(state_dict: Mapping[str, torch.Tensor], config: TrunkConfig) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return the tensors under timm's names, and the original names of those that are not needed."""
    renamed: dict[str, torch.Tensor] = {}
    original_names: dict[str, str] = {}
    unused = []

    def add(new_name: str, name: str, tensor: torch.Tensor) -> None:
        if new_name in renamed:
            raise ConversionError(
                f"{short_repr(original_names[new_name])} and {short_repr(name)} become the same tensor of the trunk"
            )
        renamed[new_name], original_names[new_name] = tensor, name

    if "layers.0.self_attn.in_proj.weight" in state_dict:
        for name, tensor in with_whole_positions(state_dict).items():
            _, new_name = find_rule(name, UNIPERCEIVER_RULES)
            if new_name is None or not new_name.startswith("trunk."):
                unused.append(name)  # other tasks and modalities
            else:
                add(new_name.removeprefix("trunk.").removeprefix("embeddings."), name, tensor)
        return renamed, unused
    if "layers.0.ln1.weight" in state_dict:
        rules = MMSEG_VIT_RULES
    elif "storage_tokens" in state_dict:
        rules, state_dict = DINOV3_RULES, _dinov3(state_dict, config)
    elif "register_tokens" in state_dict or "blocks.0.mlp.w12.weight" in state_dict:
        rules, state_dict = DINOV2_RULES, prepare_dinov2(state_dict, "")
    elif "blocks.0.mlp.w1.weight" in state_dict:
        rules = [*_ROTARY_RULES, *eva02.block_rules(config.trunk), *_VIT_RULES]
    else:
        rules = _JAX_RULES if any(name.endswith("embedding/kernel") for name in state_dict) else _VIT_RULES
    waiting: dict[str, dict[int, torch.Tensor]] = {}
    for name, tensor in state_dict.items():
        rule, new_name = find_rule(name, rules)
        new_name = new_name and new_name.removeprefix("trunk.").removeprefix("embeddings.")
        if rule is not None and (new_name is None or (new_name.startswith("norm.") and not config.final_norm)):
            unused.append(name)
        elif rule is None or new_name is None:
            add(name, name, tensor)  # `load_trunk_weights` reports it as left over
        elif rule.piece is not None:
            for joined_name, joined in join_pieces(name, rule.piece, [(new_name, tensor)], waiting):
                add(joined_name, name, joined)
        else:
            add(new_name, name, tensor if rule.change is None else rule.change(name, tensor))
    if any(waiting.values()):
        incomplete = next(name for name, pieces in waiting.items() if pieces)
        raise ConversionError(f"a part of {incomplete} is missing: it is joined from several tensors")
    shared, blocks = renamed.pop(_SHARED_TABLE, None), range(config.num_hidden_layers or 0)
    if shared is not None:
        renamed |= {_TABLE.format(index): shared for index in blocks}
    for index in blocks:
        for kind in ("weight", "bias"):
            parts = [f"blocks.{index}.attn.{part}.{kind}" for part in ("query", "key", "value")]
            if all(part in renamed for part in parts):
                tensors, names = [renamed.pop(part) for part in parts], [original_names[part] for part in parts]
                if len({tensor.shape for tensor in tensors}) > 1 or not tensors[0].dim():
                    shapes = (f"{name} ({tuple(tensor.shape)})" for name, tensor in zip(names, tensors, strict=True))
                    raise ConversionError(f"{', '.join(shapes)} must have equal shapes: they become one tensor")
                add(f"blocks.{index}.attn.qkv.{kind}", names[0], torch.cat(tensors))
    return renamed, unused


def _dinov3(state_dict: Mapping[str, torch.Tensor], config: TrunkConfig) -> Mapping[str, torch.Tensor]:
    """Return the tensors of a DINOv3 file for a trunk with biases of queries and values or without.

    Raises:
        ConversionError: if the trunk has none and those of the file are not zero.
    """
    state_dict = prepare_dinov3(state_dict, "")
    if config.qkv_bias:
        return state_dict
    biases = {name for name in state_dict if re.fullmatch(r"blocks\.\d+\.attn\.[qv]_bias", name)}
    if any(state_dict[name].any() for name in biases):
        raise ConversionError(
            f"the file has biases of queries and values, which the trunk {config.trunk!r} lacks: choose timm's "
            f"architecture with them, {config.trunk}_qkvb"
        )
    return {name: tensor for name, tensor in state_dict.items() if name not in biases}


def _grid(state_dict: Mapping[str, torch.Tensor], grid: tuple[int, int]) -> tuple[int, int]:
    """Return the token grid of the position embeddings in a file. All of these files have square grids."""
    positions, table = state_dict.get("pos_embed"), state_dict.get(_TABLE.format(0))
    if positions is not None:
        count = positions.shape[1] if positions.dim() == 3 else 0
        side = math.isqrt(count)
        if not count or count - side**2 > 2:  # prefix tokens may have position embeddings too
            raise ConversionError(
                f"pos_embed is {tuple(positions.shape)}, expected (1, positions, channels) for a square token grid and "
                "at most two prefix tokens"
            )
        return (side, side)
    if table is not None and table.dim() == 2:
        side = (math.isqrt(table.shape[0]) + 1) // 2
        return (side, side)
    return grid
