# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Parameter groups with their own learning rate and weight decay, as in the original code.

Sources: `segmentation/mmcv_custom/layer_decay_optimizer_constructor.py` of ViT-Adapter and ViT-CoMer,
`segmentation/mmcv_custom/custom_layer_decay_optimizer_constructor.py` of InternImage, and
`DefaultOptimizerConstructor` in `mmcv/runner/optimizer/default_constructor.py`; for ConvNeXt
`mmseg/core/optimizers/layer_decay_optimizer_constructor.py` of MMSegmentation 0.30. The idea is BEiT's
(https://arxiv.org/abs/2106.08254): layers closer to the image need fewer changes after pre-training, so they learn at a
lower rate.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import ConvNextBackbone
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging

from ..models.internimage import InternImageBackbone
from ..models.trunk.backbone import TrunkBackbone
from .recipe_settings import OptimizerSettings
from .recipes import Recipe, check_known_issues

logger = logging.get_logger(__name__)

# parameters of Mask2Former that `mask_predictor_at_lowest_rate` concerns; wrappers put a prefix before the names
_MASK_PREDICTOR = re.compile(
    r"(?:.+\.)?(?:class_predictor|transformer_module\.(?:decoder\.mask_predictor|level_embed|queries_embedder"
    r"|queries_features))\..+"
)
_HEAD = "head"  # the original code's keyword for parameters outside the backbone


def parameter_groups(
    model: nn.Module, recipe: Recipe, reproduce_known_issues: bool | Collection[str] = True
) -> list[dict[str, Any]]:
    """Group the parameters of a model for a torch optimizer.

    Layer 0 holds the patch and position embeddings of the backbone, layers 1 to `L` its blocks, and layer `L + 1` all
    other parameters, including adapters and heads. Layer `l` learns at `layer_decay ** (L + 1 - l)` times the recipe's
    learning rate. `L` is the depth of this model, so a recipe fits models of any depth. Biases and other parameters of
    one dimension are not decayed, unless the recipe sets `decay_vectors`.

    Args:
        model: a model with any backbone. It may be wrapped by peft, `torch.compile` or DDP.
        recipe: its `optimizer` and `known_issues` are read.
        reproduce_known_issues: True reproduces all known issues of the recipe, False corrects them, and names
            reproduce these alone.

    Returns:
        dicts with `params`, `lr`, `weight_decay`, `name`, `lr_scale` and `param_names`. Each trainable parameter is in
        exactly one group, and frozen parameters are in none.

    Raises:
        ValueError: if `reproduce_known_issues` has an unknown name, or no parameter requires a gradient.
    """
    if isinstance(reproduce_known_issues, bool):
        issues = set(recipe.known_issues) if reproduce_known_issues else set()
    else:
        named = {reproduce_known_issues} if isinstance(reproduce_known_issues, str) else set(reproduce_known_issues)
        check_known_issues(named)
        issues = named & set(recipe.known_issues)
    settings = recipe.optimizer
    layers, top = _layers(model, issues, settings)
    groups: dict[tuple[int, float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_head = name not in layers
        layer = top if is_head or settings.layer_decay == 1 else layers[name]
        if is_head and "mask_predictor_at_lowest_rate" in issues and _MASK_PREDICTOR.fullmatch(name):
            layer = 0
        scale = settings.layer_decay ** (top - layer)
        is_decayed, head_factor = _treatment(name, parameter, is_head, recipe, issues)
        scale *= head_factor
        key = (layer, scale, is_decayed)
        if key not in groups:
            factor = "" if head_factor == 1 else f"_times_{head_factor:g}"
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
        raise ValueError("no parameter of the model requires a gradient; unfreeze a part of the model before training")
    return list(groups.values())


def create_optimizer(
    model: nn.Module, recipe: Recipe, reproduce_known_issues: bool | Collection[str] = True
) -> torch.optim.Optimizer:
    """Create the recipe's optimizer for the groups of [`parameter_groups`], with the same arguments."""
    groups, settings = parameter_groups(model, recipe, reproduce_known_issues), recipe.optimizer
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas)


def _treatment(
    name: str, parameter: nn.Parameter, is_head: bool, recipe: Recipe, issues: set[str]
) -> tuple[bool, float]:
    """Return whether a parameter is decayed, and the factor of the head on its learning rate."""
    settings = recipe.optimizer
    factor = settings.head_learning_rate_factor if is_head else 1.0
    found = [part for part in settings.no_weight_decay if part in name]
    if "first_keyword_alone" in issues:
        keywords = [*found, _HEAD] if is_head else found
        first = min(keywords, key=lambda keyword: (-len(keyword), keyword), default=None)
        return first in (None, _HEAD), factor if first in (None, _HEAD) else 1.0
    if "weight_decay_exclusions_never_match" in issues:
        found = []
    is_vector = parameter.dim() <= 1 or name.endswith(".bias")
    return not found and (settings.decay_vectors or not is_vector), factor


def _layers(model: nn.Module, issues: set[str], settings: OptimizerSettings) -> tuple[dict[str, int], int]:
    """Return the layer of each backbone parameter by name, and the layer number of all other parameters."""
    backbones: Iterator[tuple[str, Any]] = (
        (name, part) for name, part in model.named_modules() if isinstance(part, BackboneMixin)
    )
    prefix, module = next(backbones, ("", None))
    if module is None:
        return {}, 0
    prefix = f"{prefix}." if prefix else ""
    names = [name for name, _ in module.named_parameters()]
    if isinstance(module, TrunkBackbone):
        top = len(module.trunk.blocks) + 1
        layers = {name: _trunk_layer(name, top) for name in names}
    elif isinstance(module, ConvNextBackbone) and settings.stage_layers:
        top = settings.stage_layers + 1
        layers = {name: _convnext_layer(name, top) for name in names}
    elif isinstance(module, InternImageBackbone):
        depths = module.config.depths
        top = sum(depths) + 1
        layers = {name: _internimage_layer(name, depths, module.config.stage3_norm_block_ids, issues) for name in names}
    else:
        layers, top = _layers_in_order(module)
        if top == 1 and settings.layer_decay != 1:
            logger.warning_once(f"no layers are known of {type(module).__name__}: layer decay treats it as one layer")
    return {prefix + name: layer for name, layer in layers.items()}, top


def _trunk_layer(name: str, top: int) -> int:
    block = re.match(r"trunk\.blocks\.(\d+)\.", name)
    if block:
        return int(block[1]) + 1
    return 0 if name.startswith(("trunk.embeddings.", "trunk.rotary.")) else top


def _convnext_layer(name: str, top: int) -> int:
    """Return the layer of a parameter: that of its stage, 0 for downsampling, or that of the heads for the norms."""
    stage = re.match(r"encoder\.stages\.(\d+)\.layers\.", name)
    if stage:
        return int(stage[1]) + 1
    return top if name.startswith("hidden_states_norms.") else 0


def _internimage_layer(name: str, depths: Sequence[int], norm_block_ids: Sequence[int] | None, issues: set[str]) -> int:
    """Return the layer of a parameter. Layers between two stages belong to the first block of the next stage."""
    kind, stage, number = _parts(name)
    if kind == "embeddings":
        return 0
    first = 1 + sum(depths[:stage])  # the layer of the stage's first block
    if kind == "blocks":
        return first + number
    if kind == "block_norms":
        block = number if "post_norms_with_wrong_blocks" in issues else (norm_block_ids or [])[number]
        return first + block
    if stage + 1 < len(depths):
        return first + depths[stage]
    return first if "last_stage_norm_with_first_block" in issues else first + depths[stage] - 1


def _parts(name: str) -> tuple[str, int, int]:
    """Return the kind of an InternImage parameter, its stage, and its index in the stage."""
    match = re.match(r"stages\.(\d+)\.(blocks|block_norms)\.(\d+)\.", name)
    if match:
        return match[2], int(match[1]), int(match[3])
    match = re.match(r"(?:downsamples|stages)\.(\d+)\.", name)
    return ("between", int(match[1]), 0) if match else ("embeddings", 0, 0)


def _layers_in_order(backbone: nn.Module) -> tuple[dict[str, int], int]:
    """Return layers as [`_layers`] for any other backbone, from the blocks that transformers can checkpoint."""
    blocks = list(_outermost(backbone, GradientCheckpointingLayer))
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
