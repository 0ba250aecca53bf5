# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Parameters in groups, each with its own learning rate and weight decay, as the originals group them.

Sources: `segmentation/mmcv_custom/layer_decay_optimizer_constructor.py` of ViT-Adapter and ViT-CoMer,
`segmentation/mmcv_custom/custom_layer_decay_optimizer_constructor.py` of InternImage, and
`DefaultOptimizerConstructor` in `mmcv/runner/optimizer/default_constructor.py`. The idea is BEiT's
(https://arxiv.org/abs/2106.08254): layers nearer to the image were trained well enough before, and learn more slowly.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging

from ..models.internimage import InternImageBackbone
from ..models.trunk.backbone import TrunkBackbone
from .recipes import Recipe, check_faults

logger = logging.get_logger(__name__)

# of Mask2Former, whatever is wrapped around it: what `mask_predictor_at_lowest_rate` is about
_MASK_PREDICTOR = re.compile(
    r"(?:.+\.)?(?:class_predictor|transformer_module\.(?:decoder\.mask_predictor|level_embed|queries_embedder"
    r"|queries_features))\..+"
)
_HEAD = "head"  # the keyword of the originals for everything that is no backbone


def parameter_groups(
    model: nn.Module, recipe: Recipe, reproduce_faults: bool | Collection[str] = True
) -> list[dict[str, Any]]:
    """The parameters of a model in groups for an optimizer of torch.

    Layer 0 are the patches and positions of a backbone, layers 1 to `L` its blocks, and layer `L + 1` is everything
    behind, adapters and heads included. Layer `l` learns at `layer_decay ** (L + 1 - l)` times the recipe's learning
    rate. `L` is the model's own, so that a recipe serves models of any depth. Parameters of one dimension and biases
    are not decayed, where the recipe does not say otherwise.

    Args:
        model: a model with one of our backbones, or any other, also wrapped (peft, `torch.compile`, DDP).
        recipe: its `optimizer` and `known_faults` are read.
        reproduce_faults: whether the recipe's known faults are reproduced: all, none, or those named.

    Returns:
        dicts with `params`, `lr`, `weight_decay`, `name`, `lr_scale` and `param_names`. Every parameter that requires a
        gradient is in exactly one; frozen ones are in none.

    Raises:
        ValueError: if `reproduce_faults` names a fault that nobody knows, or no parameter requires a gradient.
    """
    if isinstance(reproduce_faults, bool):
        faults = set(recipe.known_faults) if reproduce_faults else set()
    else:
        named = {reproduce_faults} if isinstance(reproduce_faults, str) else set(reproduce_faults)
        check_faults(named)
        faults = named & set(recipe.known_faults)
    settings = recipe.optimizer
    layers, top = _layers(model, faults)
    groups: dict[tuple[int, float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_head = name not in layers
        layer = top if is_head or settings.layer_decay == 1 else layers[name]
        if is_head and "mask_predictor_at_lowest_rate" in faults and _MASK_PREDICTOR.fullmatch(name):
            layer = 0
        scale = settings.layer_decay ** (top - layer)
        is_decayed, scale_of_head = _treatment(name, parameter, is_head, recipe, faults)
        scale *= scale_of_head
        key = (layer, scale, is_decayed)
        if key not in groups:
            factor = "" if scale_of_head == 1 else f"_times_{scale_of_head:g}"
            groups[key] = {
                "params": [],
                "lr": settings.learning_rate * scale,
                "weight_decay": settings.weight_decay if is_decayed else 0.0,
                "name": f"layer_{layer}_{'decay' if is_decayed else 'no_decay'}{factor}",
                "lr_scale": scale,
                "param_names": [],
            }
        groups[key]["params"].append(parameter)
        groups[key]["param_names"].append(name)
    if not groups:
        raise ValueError("no parameter of the model requires a gradient: there is nothing to train")
    return list(groups.values())


def create_optimizer(
    model: nn.Module, recipe: Recipe, reproduce_faults: bool | Collection[str] = True
) -> torch.optim.Optimizer:
    """The recipe's optimizer for the groups of [`parameter_groups`]; its arguments."""
    groups, settings = parameter_groups(model, recipe, reproduce_faults), recipe.optimizer
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas)


def _treatment(
    name: str, parameter: nn.Parameter, is_head: bool, recipe: Recipe, faults: set[str]
) -> tuple[bool, float]:
    """Whether a parameter is decayed, and the factor on its learning rate beside layer decay."""
    settings = recipe.optimizer
    factor = settings.head_learning_rate_factor if is_head else 1.0
    found = [part for part in settings.no_weight_decay if part in name]
    if "first_keyword_alone" in faults:
        keywords = [*found, _HEAD] if is_head else found
        first = min(keywords, key=lambda keyword: (-len(keyword), keyword), default=None)
        return first in (None, _HEAD), factor if first in (None, _HEAD) else 1.0
    if "weight_decay_exclusions_never_match" in faults:
        found = []
    is_vector = parameter.dim() <= 1 or name.endswith(".bias")
    return not found and (settings.decay_vectors or not is_vector), factor


def _layers(model: nn.Module, faults: set[str]) -> tuple[dict[str, int], int]:
    """The layer of every parameter of the model's backbone by its name, and the number of the layer above them all."""
    prefix, module = next(((name, part) for name, part in model.named_modules() if _is_backbone(part)), ("", None))
    if module is None:
        return {}, 0
    prefix = f"{prefix}." if prefix else ""
    names = [name for name, _ in module.named_parameters()]
    if isinstance(module, TrunkBackbone):
        top = len(module.trunk.blocks) + 1
        layers = {name: _trunk_layer(name, top) for name in names}
    elif isinstance(module, InternImageBackbone):
        depths = module.config.depths
        top = sum(depths) + 1
        layers = {name: _internimage_layer(name, depths, module.config.stage3_norm_block_ids, faults) for name in names}
    else:
        layers, top = _layers_in_order(module)
    return {prefix + name: layer for name, layer in layers.items()}, top


def _is_backbone(module: nn.Module) -> bool:
    return isinstance(module, BackboneMixin)


def _trunk_layer(name: str, top: int) -> int:
    block = re.match(r"trunk\.blocks\.(\d+)\.", name)
    if block:
        return int(block[1]) + 1
    return 0 if name.startswith(("trunk.embeddings.", "trunk.rotary.")) else top


def _internimage_layer(name: str, depths: Sequence[int], norm_block_ids: Sequence[int] | None, faults: set[str]) -> int:
    """Convolutions and norms between two stages belong to the first block of the later one."""
    kind, stage, number = _parts(name)
    if kind == "embeddings":
        return 0
    first = 1 + sum(depths[:stage])  # the layer of the stage's first block
    if kind == "blocks":
        return first + number
    if kind == "block_norms":
        block = number if "post_norms_with_wrong_blocks" in faults else (norm_block_ids or [])[number]
        return first + block
    if stage + 1 < len(depths):
        return first + depths[stage]
    return first if "last_stage_norm_with_first_block" in faults else first + depths[stage] - 1


def _parts(name: str) -> tuple[str, int, int]:
    match = re.match(r"stages\.(\d+)\.(blocks|block_norms)\.(\d+)\.", name)
    if match:
        return match[2], int(match[1]), int(match[3])
    match = re.match(r"(?:downsamples|stages)\.(\d+)\.", name)
    return ("between", int(match[1]), 0) if match else ("embeddings", 0, 0)


def _layers_in_order(backbone: nn.Module) -> tuple[dict[str, int], int]:
    """For backbones that nobody told us about: transformers marks their blocks, in order."""
    blocks = list(_outermost(backbone, GradientCheckpointingLayer))
    if not blocks:
        logger.warning_once(f"{type(backbone).__name__} has no layers that we know of: all of it counts as one layer")
    layers, current = {}, 0
    for name, _ in backbone.named_parameters():
        for index in range(current, len(blocks)):
            if name.startswith(blocks[index]):
                current = index + 1
        layers[name] = current
    return layers, len(blocks) + 1


def _outermost(module: nn.Module, kind: type[nn.Module], prefix: str = "") -> Iterator[str]:
    for name, child in module.named_children():
        if isinstance(child, kind):
            yield f"{prefix}{name}."
        else:
            yield from _outermost(child, kind, f"{prefix}{name}.")


__all__ = ["create_optimizer", "parameter_groups"]
