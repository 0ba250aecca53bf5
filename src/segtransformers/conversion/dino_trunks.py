# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The ViTs of DINOv2 and DINOv3 under the names of their own files, for every model that is built on them.

Names and sizes: the backbone files of facebookresearch/dinov2 and facebookresearch/dinov3.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch

from ..escaping import short_repr
from .mapping import MOST_LAYERS, ConversionError, Rule, Settings, shape_of

HEAD_WIDTH = 64  # channels of each attention head in all released trunks
# The config overrides every number of these architectures; their class, MLP and registers stay.
DINOV2_NAMES = {384: "vit_small", 768: "vit_base", 1024: "vit_large"}
DINOV3_NAMES = {384: "vit_small", 768: "vit_base", 1024: "vit_large"}
NUM_REGISTERS = 4
# constants of the released DINOv3 trunks, with the values that timm's architectures have
_DINOV3_CONSTANTS = {
    "img_size": 224,
    "in_chans": 3,
    "pos_embed_rope_base": 100,
    "pos_embed_rope_normalize_coords": "separate",
    "pos_embed_rope_rescale_coords": 2,
    "pos_embed_rope_dtype": "fp32",
    "norm_layer": "layernormbf16",
    "ffn_bias": True,
    "proj_bias": True,
    "n_storage_tokens": NUM_REGISTERS,
    "mask_k_bias": True,
}

DINOV2_RULES = [
    Rule(r"mask_token", None, why="for pre-training only"),
    Rule(r"register_tokens", r"trunk.embeddings.reg_token"),
    Rule(r"(cls_token|pos_embed|patch_embed\..+)", r"trunk.embeddings.\1"),
    Rule(r"blocks\.(\d+)\.mlp\.w12\.(.+)", r"trunk.blocks.\1.mlp.fc1.\2"),
    Rule(r"blocks\.(\d+)\.mlp\.w3\.(.+)", r"trunk.blocks.\1.mlp.fc2.\2"),
    Rule(r"blocks\.(.+)", r"trunk.blocks.\1"),
    Rule(r"norm\.(.+)", r"trunk.norm.\1"),
]
DINOV3_RULES = [
    Rule(r"mask_token", None, why="for pre-training only"),
    Rule(r"local_cls_norm\..+", None, why="for pre-training only"),
    Rule(r"rope_embed\.periods", None, why="follows from the architecture"),
    Rule(r"blocks\.\d+\.attn\.qkv\.bias_mask", None, why="a constant: the keys have no bias"),
    Rule(r"storage_tokens", r"trunk.embeddings.reg_token"),
    Rule(r"(cls_token|patch_embed\..+)", r"trunk.embeddings.\1"),
    Rule(r"blocks\.(\d+)\.ls([12])\.gamma", r"trunk.blocks.\1.gamma_\2"),
    Rule(r"blocks\.(\d+)\.mlp\.w1\.(.+)", r"trunk.blocks.\1.mlp.fc1_g.\2"),
    Rule(r"blocks\.(\d+)\.mlp\.w2\.(.+)", r"trunk.blocks.\1.mlp.fc1_x.\2"),
    Rule(r"blocks\.(\d+)\.mlp\.w3\.(.+)", r"trunk.blocks.\1.mlp.fc2.\2"),
    Rule(r"blocks\.(.+)", r"trunk.blocks.\1"),
    Rule(r"norm\.(.+)", r"trunk.norm.\1"),
]


def read_dinov2_trunk(settings: Settings) -> dict[str, Any]:
    """Convert the arguments of DINOv2's `DinoVisionTransformer` into fields of [`TrunkConfig`].

    They are not in the released configs, see [`dinov2_arguments`].
    """
    width, depth = settings.count("embed_dim"), settings.count("depth", most=MOST_LAYERS)
    swiglu = settings.require("ffn_layer", "mlp", "swiglu", "swiglufused") != "mlp"
    registers = settings.expect("num_register_tokens", 0, NUM_REGISTERS)
    patch = settings.expect("patch_size", 14)
    settings.expect("in_chans", 3)
    for name in ("qkv_bias", "ffn_bias", "proj_bias"):
        settings.expect(name, True)
    antialias = settings.take("interpolate_antialias", False)
    offset = settings.take("interpolate_offset", 0.1)
    ratio = settings.take("mlp_ratio", 4)
    if swiglu:  # one matrix makes both halves
        ratio = 2 * aligned(width * ratio * 2 / 3, 8) / width
    size = "vit_giant" if swiglu else DINOV2_NAMES.get(width, "vit_base")
    settings.drop("init_values", "block_chunks", "drop_path_uniform")
    return {
        "trunk": f"{size}_patch14{'_reg4' if registers else ''}_dinov2",
        "patch_size": patch,
        "pretrain_image_size": settings.sides("img_size"),
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": settings.count("num_heads"),
        "mlp_ratio": ratio,
        "drop_path_rate": settings.take("drop_path_rate", 0.0),
        "qkv_bias": True,
        "patch_bias": True,
        "layer_scale_init_value": 1e-5,
        "layer_norm_eps": 1e-6,
        "final_norm": True,
        "position_interpolation_offset": 0.0 if antialias else offset,
        "position_interpolation_antialias": antialias,
    }


def read_dinov3_trunk(settings: Settings) -> dict[str, Any]:
    """Convert the arguments of DINOv3's `DinoVisionTransformer` into fields of [`TrunkConfig`]."""
    width, depth = settings.count("embed_dim"), settings.count("depth", most=MOST_LAYERS)
    for name, value in _DINOV3_CONSTANTS.items():
        settings.expect(name, value)
    patch = settings.expect("patch_size", 16)
    ratio, has_bias = settings.take("ffn_ratio", 4), settings.take("qkv_bias", True)
    kind = settings.require("ffn_layer", "mlp", "swiglu", "swiglu32", "swiglu64", "swiglu128")
    if kind == "mlp":
        trunk = f"{DINOV3_NAMES.get(width, 'vit_base')}_patch16_dinov3{'_qkvb' if has_bias else ''}"
    else:
        ratio = aligned(width * ratio * 2 / 3, int(kind.removeprefix("swiglu") or 8)) / width
        if kind == "swiglu64" or not has_bias:
            trunk = "vit_7b_patch16_dinov3"
        else:
            trunk = f"{'vit_small_plus' if width == 384 else 'vit_huge_plus'}_patch16_dinov3_qkvb"
    settings.drop("untie_cls_and_patch_norms", "untie_global_and_local_cls_norm")
    return {
        "trunk": trunk,
        "patch_size": patch,
        "pretrain_image_size": 224,
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": settings.count("num_heads"),
        "mlp_ratio": ratio,
        "drop_path_rate": settings.take("drop_path_rate", 0.0),
        "qkv_bias": has_bias,
        "patch_bias": True,
        "layer_scale_init_value": settings.take("layerscale_init", 1e-5),
        "layer_norm_eps": 1e-5,
        "final_norm": True,
    }


def dinov2_arguments(state_dict: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return the constructor's arguments that a DINOv2 backbone file shows.

    Args:
        state_dict: the trunk's tensors under the names of their own file.

    Raises:
        ConversionError: naming a tensor that is missing or of another rank.
    """
    width, patch = _patches(state_dict)
    positions = _tensor(state_dict, "pos_embed", 3).shape[1]
    side = math.isqrt(max(positions - 1, 0))
    if side < 1 or side**2 != positions - 1:
        raise ConversionError(
            f"the backbone's pos_embed is {shape_of(state_dict['pos_embed'])}, expected one position for the class "
            "token and a square of others"
        )
    registers = _tensor(state_dict, "register_tokens", 3).shape[1] if "register_tokens" in state_dict else 0
    return {
        "img_size": side * patch,
        "patch_size": patch,
        "embed_dim": width,
        "depth": _depth(state_dict),
        "num_heads": max(width // HEAD_WIDTH, 1),
        "mlp_ratio": 4,
        "ffn_layer": "swiglufused" if "blocks.0.mlp.w12.weight" in state_dict else "mlp",
        "num_register_tokens": registers,
        "interpolate_antialias": registers > 0,
        "interpolate_offset": 0.0 if registers else 0.1,
    }


def dinov3_arguments(state_dict: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return the constructor's arguments that a DINOv3 backbone file shows, see [`dinov2_arguments`]."""
    width, patch = _patches(state_dict)
    if "blocks.0.mlp.w1.weight" in state_dict:
        hidden = _tensor(state_dict, "blocks.0.mlp.w1.weight", 2).shape[0]
        # the plus sizes align to 8; a width that is a multiple of 64 is the same for both
        kind, ratio = "swiglu" if "blocks.0.attn.qkv.bias" in state_dict else "swiglu64", 1.5 * hidden / width
    else:
        hidden = _tensor(state_dict, "blocks.0.mlp.fc1.weight", 2).shape[0]
        kind, ratio = "mlp", hidden / width
    return {
        "patch_size": patch,
        "embed_dim": width,
        "depth": _depth(state_dict),
        "num_heads": max(width // (2 * HEAD_WIDTH if width == 4096 else HEAD_WIDTH), 1),
        "qkv_bias": "blocks.0.attn.qkv.bias" in state_dict,
        "ffn_layer": kind,
        "ffn_ratio": ratio,
    }


def prepare_dinov2(state_dict: Mapping[str, torch.Tensor], prefix: str) -> Mapping[str, torch.Tensor]:
    """Add the class token's position to the token where a trunk has registers, as timm keeps it.

    Args:
        prefix: in front of the trunk's names, such as `backbone.`.
    """
    token, positions = (state_dict.get(f"{prefix}{name}") for name in ("cls_token", "pos_embed"))
    if f"{prefix}register_tokens" not in state_dict or token is None or positions is None:
        return state_dict
    if positions.dim() != 3 or token.dim() != 3 or positions.shape[2] != token.shape[2]:
        raise ConversionError(f"{prefix}pos_embed is {shape_of(positions)}, {prefix}cls_token {shape_of(token)}")
    return {
        **state_dict,
        f"{prefix}cls_token": token + positions[:, :1],
        f"{prefix}pos_embed": positions[:, 1:].clone(),
    }


def prepare_dinov3(state_dict: Mapping[str, torch.Tensor], prefix: str) -> Mapping[str, torch.Tensor]:
    """Split the biases of queries, keys and values, and drop those of the keys, which DINOv3 masks."""
    prepared: dict[str, torch.Tensor] = {}
    pattern = re.compile(re.escape(prefix) + r"(blocks\.\d+\.attn)\.qkv\.bias")
    for name, tensor in state_dict.items():
        match = pattern.fullmatch(name)
        if match is None:
            prepared[name] = tensor
            continue
        if tensor.dim() != 1 or len(tensor) % 3:
            raise ConversionError(f"{name} is {shape_of(tensor)}: expected one bias for each query, key and value")
        query, _, value = tensor.chunk(3)
        prepared[f"{prefix}{match[1]}.q_bias"] = query.clone()
        prepared[f"{prefix}{match[1]}.v_bias"] = value.clone()
    return prepared


def aligned(width: float, multiple: int) -> int:
    """Return the hidden width of a SwiGLU: `width` truncated and then rounded up to a multiple."""
    return (int(width) + multiple - 1) // multiple * multiple


def _patches(state_dict: Mapping[str, torch.Tensor]) -> tuple[int, int]:
    """Return the width and the side of a patch."""
    weight = _tensor(state_dict, "patch_embed.proj.weight", 4)
    return weight.shape[0], weight.shape[2]


def _depth(state_dict: Mapping[str, torch.Tensor]) -> int:
    indices = {int(match[1]) for name in state_dict if (match := re.match(r"blocks\.(\d{1,4})\.", name))}
    if not indices:
        raise ConversionError("the backbone has no blocks (blocks.0. ...)")
    return max(indices) + 1


def _tensor(state_dict: Mapping[str, torch.Tensor], name: str, rank: int) -> torch.Tensor:
    tensor = state_dict.get(name)
    if tensor is None or tensor.dim() != rank or not tensor.numel():
        found = "missing" if tensor is None else shape_of(tensor)
        raise ConversionError(f"the backbone's {short_repr(name)} is {found}, expected {rank} dimensions")
    return tensor
