# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Describe and build the architectures of timm that can be a trunk.

Nothing here is part of a forward pass.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.layers import Attention as PlainAttention
from timm.layers import AttentionRope, GluMlp, LayerScale, RmsNorm, RotaryEmbeddingCat, SwiGLU
from timm.models.beit import Attention as BeitAttention
from timm.models.beit import Beit
from timm.models.beit import Block as BeitBlock
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import Block as PlainBlock
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from .configuration_trunk import TrunkConfig
from .one_peace import one_peace_giant

OWN_ARCHITECTURES = {"one_peace_giant_patch16": one_peace_giant}  # by name; all others are timm's
FITTING_KINDS = (
    "A trunk is a plain ViT with pre-norm blocks and square patches, of timm's class VisionTransformer "
    "(such as vit_tiny_patch16_224, deit3_base_patch16_224, vit_small_patch14_reg4_dinov2, "
    "vit_base_patch16_siglip_512), Beit (beit_base_patch16_224, beitv2_large_patch16_224) or Eva "
    "(vit_small_patch16_dinov3, eva02_tiny_patch14_224)."
)


@dataclass(frozen=True)
class Architecture:
    """Facts about one of timm's classes.

    Attributes:
        block: class of all its blocks.
        attentions: classes that the attention of a block may have, each with a function that returns whether an
            attention has query and value biases.
        layer_scale: returns the initial value of a block's layer scale, 0.0 or None for a block without one.
        arguments: arguments of its constructor in addition to the common ones.
        packed_mlp: whether the first layer of a `GluMlp` inside has twice the width that `mlp_ratio` gives.
    """

    block: type[nn.Module]
    attentions: dict[type[nn.Module], Callable[[Any], bool]]
    layer_scale: Callable[[Any], float | None]
    arguments: dict[str, Any]
    packed_mlp: bool = False


def _fused_bias(attention: Any) -> bool:
    return attention.qkv.bias is not None


def _separate_bias(attention: Any) -> bool:
    return attention.q_bias is not None


def _optionally_fused_bias(attention: Any) -> bool:
    return (attention.qkv if attention.q_proj is None else attention.q_proj).bias is not None


def _eva_bias(attention: Any) -> bool:
    return _separate_bias(attention) if attention.q_proj is None else attention.q_proj.bias is not None


def _plain_layer_scale(block: Any) -> float:
    return block.ls1.init_values if isinstance(block.ls1, LayerScale) else 0.0


def _own_layer_scale(block: Any) -> float | None:
    return block.init_values


# the head is not taken over, so its pooling has no effect; "token" would demand a class token
_PLAIN = Architecture(
    block=PlainBlock,
    attentions={PlainAttention: _fused_bias},
    layer_scale=_plain_layer_scale,
    arguments={"global_pool": "avg", "weight_init": "skip"},
)
_ARCHITECTURES: dict[type[nn.Module], Architecture] = {
    VisionTransformer: _PLAIN,
    VisionTransformerDistilled: Architecture(
        block=PlainBlock,
        attentions=_PLAIN.attentions,
        layer_scale=_plain_layer_scale,
        arguments={"weight_init": "skip"},
    ),
    Beit: Architecture(
        block=BeitBlock,
        attentions={BeitAttention: _separate_bias},
        layer_scale=_own_layer_scale,
        # timm's own tables fix the image size, and each layer would keep an index of (h * w + 1)^2
        arguments={"global_pool": "avg", "use_rel_pos_bias": False},
    ),
    Eva: Architecture(
        block=EvaBlock,
        attentions={EvaAttention: _eva_bias, AttentionRope: _optionally_fused_bias},
        layer_scale=_own_layer_scale,
        # a dynamic size keeps timm from caching rotary embeddings of one size
        arguments={"global_pool": "avg", "dynamic_img_size": True},
        packed_mlp=True,
    ),
}


def build_architecture(config: TrunkConfig) -> Any:
    """Build timm's model for a resolved config, with timm's initial weights.

    Raises:
        ValueError: if the architecture cannot be a trunk or cannot have these sizes.
    """
    # raises for an unfit architecture, before its constructor fails on these arguments
    defined = _as_timm_defines(config.trunk)
    arguments = _ARCHITECTURES[type(defined)].arguments
    if config.pre_norm != _has_pre_norm(defined):
        if not isinstance(defined, VisionTransformer):
            raise ValueError(f"pre_norm must be {_has_pre_norm(defined)} for {config.trunk!r}, got {config.pre_norm}")
        arguments = {**arguments, "pre_norm": config.pre_norm}
    has_positions = config.use_absolute_position_embeddings
    if has_positions != (defined.pos_embed is not None):
        if not isinstance(defined, (Beit, Eva)):
            raise ValueError(
                f"use_absolute_position_embeddings must be {defined.pos_embed is not None} for {config.trunk!r}, got "
                f"{has_positions}"
            )
        arguments = {**arguments, "use_abs_pos_emb": has_positions}
    if config.rotary_reference_grid is not None:
        if not isinstance(getattr(defined, "rope", None), RotaryEmbeddingCat):
            raise ValueError(f"rotary_reference_grid is for EVA-02, not for {config.trunk!r}")
        arguments = {**arguments, "ref_feat_shape": tuple(config.rotary_reference_grid)}
    try:
        model = _create_model(
            config.trunk,
            in_chans=config.num_channels,
            img_size=tuple(config.pretrain_image_size),
            patch_size=config.patch_size,
            embed_dim=config.hidden_size,
            depth=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            mlp_ratio=config.mlp_ratio,
            qkv_bias=config.qkv_bias,
            init_values=config.layer_scale_init_value,  # timm would take None for its own default
            drop_path_rate=config.drop_path_rate,
            **arguments,
        )
    except (AssertionError, TypeError, ArithmeticError) as error:
        reason = str(error) or "its layers refuse them"
        raise ValueError(
            f"timm's {config.trunk!r} cannot be built with hidden_size={config.hidden_size}, num_hidden_layers="
            f"{config.num_hidden_layers}, num_attention_heads={config.num_attention_heads}, mlp_ratio="
            f"{config.mlp_ratio:g}: {reason}"
        ) from error
    head_width = config.hidden_size // config.num_attention_heads
    if getattr(model, "rope", None) is not None and head_width % 4:
        raise ValueError(
            f"{config.trunk!r} rotates queries and keys: hidden_size / num_attention_heads must be a multiple of 4, "
            f"got {head_width}"
        )
    if config.use_relative_position_bias and not _can_have_tables(model):
        raise ValueError(
            "use_relative_position_bias is for trunks of timm's class Beit, and of Eva with one layer for queries, "
            f"keys and values, not for {config.trunk!r}"
        )
    if isinstance(model, Eva) and not config.layer_scale_init_value:  # the other classes make none for 0
        for block in model.blocks:
            block.register_parameter("gamma_1", None)
            block.register_parameter("gamma_2", None)
    for module in model.modules():
        if isinstance(module, (nn.LayerNorm, RmsNorm)):
            module.eps = float(config.layer_norm_eps)
    return model


def _create_model(name: str, **arguments: Any) -> Any:
    """Build a model without a head, by timm or by a function of `OWN_ARCHITECTURES`."""
    if name in OWN_ARCHITECTURES:
        return OWN_ARCHITECTURES[name](num_classes=0, **arguments)
    return timm.create_model(name, pretrained=False, num_classes=0, **arguments)


def describe_trunk(name: str) -> dict[str, Any]:
    """Return timm's definition of the architecture `name` as values of [`TrunkConfig`]'s fields.

    It allocates no weights.

    Raises:
        ValueError: if timm has no such architecture or it cannot be a trunk.
    """
    model = _as_timm_defines(name)
    architecture = _ARCHITECTURES[type(model)]
    block = model.blocks[0]
    width = _mlp_width(block.mlp, architecture.packed_mlp)
    mlp_ratio = width / model.embed_dim
    if int(model.embed_dim * mlp_ratio) != width:  # timm truncates the product
        mlp_ratio = (width + 0.5) / model.embed_dim
    return {
        "patch_size": model.patch_embed.patch_size[0],
        "pretrain_image_size": list(model.patch_embed.img_size),
        "hidden_size": model.embed_dim,
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": block.attn.num_heads,
        "mlp_ratio": mlp_ratio,
        "qkv_bias": architecture.attentions[type(block.attn)](block.attn),
        "patch_bias": model.patch_embed.proj.bias is not None,
        "pre_norm": _has_pre_norm(model),
        "use_absolute_position_embeddings": model.pos_embed is not None,
        "use_relative_position_bias": name in OWN_ARCHITECTURES
        or (isinstance(model, Beit) and model.blocks[0].attn.window_size is not None),
        "layer_scale_init_value": architecture.layer_scale(block) or 0.0,
        "layer_norm_eps": block.norm1.eps,
        "timm_version": timm.__version__,
    }


@functools.lru_cache
def _as_timm_defines(name: str) -> Any:
    """Return timm's model of that name on the meta device.

    Raises:
        ValueError: if it cannot be a trunk.
    """
    if "/" in name or ":" in name or "." in name:
        raise ValueError(
            f"trunk {name!r} must be the bare name of a timm architecture, without a hub prefix or weight tag "
            f"(did you mean {name.rpartition('/')[2].rpartition(':')[2].partition('.')[0]!r}?)"
        )
    if name not in OWN_ARCHITECTURES and not timm.is_model(name):
        raise ValueError(f"timm {timm.__version__} has no architecture {name!r}. {FITTING_KINDS}")
    with torch.device("meta"):
        model = _create_model(name)
    problem = _why_unfit(model)
    if problem:
        raise ValueError(f"timm's {name!r} cannot be a trunk: {problem}. {FITTING_KINDS}")
    return model


def _why_unfit(model: Any) -> str | None:
    """Return why a model of timm cannot be a trunk, or None if it can."""
    architecture = _ARCHITECTURES.get(type(model))
    if architecture is None:
        return f"it is a {type(model).__name__}, no plain ViT"
    for block in model.blocks:
        if type(block) is not architecture.block:
            return f"its blocks are of the kind {type(block).__name__}"
        if type(block.attn) not in architecture.attentions:
            return f"its blocks are {type(block).__name__} around {type(block.attn).__name__}"
        if getattr(block.attn, "gate", None) is not None:
            return "its attention has a gate"
    if getattr(model, "rel_pos_bias", None) is not None:
        return "its blocks share one table of relative positions"
    patches = model.patch_embed
    if type(patches).__name__ != "PatchEmbed" or patches.patch_size[0] != patches.patch_size[1]:
        size = "x".join(map(str, patches.patch_size))
        return f"its embedding is a {type(patches).__name__} with patches of {size} pixels"
    return None


def _has_pre_norm(model: Any) -> bool:
    return not isinstance(getattr(model, "norm_pre", nn.Identity()), nn.Identity)


def _can_have_tables(model: Any) -> bool:
    attention = model.blocks[0].attn
    has_own_tables = hasattr(model.patch_embed, "stem")  # ONE-PEACE
    return isinstance(model, Beit) or has_own_tables or (type(attention) is EvaAttention and attention.qkv is not None)


def _mlp_width(mlp: Any, packed: bool) -> int:
    if isinstance(mlp, SwiGLU):
        return mlp.fc1_g.out_features
    return mlp.fc1.out_features // (2 if packed and isinstance(mlp, GluMlp) else 1)
