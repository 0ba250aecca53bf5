# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Training with less: the pre-trained trunk frozen, or changed by low-rank updates alone."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

LORA_NAME = "default"  # peft's name of the only update


def trunk_of(model: PreTrainedModel) -> nn.Module:
    """What starts pre-trained: the plain ViT inside the backbone, or all of a backbone that has none."""
    backbone: nn.Module = getattr(model, "backbone", model)
    return getattr(backbone, "trunk", backbone)


def freeze_trunk(model: PreTrainedModel) -> None:
    """Train everything but the trunk. What drops out of it in training still does."""
    trunk_of(model).requires_grad_(False)


def trunk_linears(model: PreTrainedModel) -> list[str]:
    """The names of the trunk's linear layers, as `LoraConfig(target_modules=...)` of peft takes them."""
    trunk = trunk_of(model)
    (prefix,) = (name for name, module in model.named_modules() if module is trunk)
    names = [name for name, module in trunk.named_modules() if isinstance(module, nn.Linear)]
    return [f"{prefix}.{name}" if prefix else name for name in names]


def add_lora(model: PreTrainedModel, rank: int, **options: Any) -> None:
    """Put low-rank updates (https://arxiv.org/abs/2106.09685) on the trunk's linear layers; its own weights are frozen.

    Everything outside the trunk trains as before. The model stays what it is, so that checkpoints of a run hold all of
    it; [`merge_lora`] makes it an ordinary model again. Needs peft.

    Args:
        rank: of the updates.
        options: of peft's `LoraConfig`; `lora_alpha` is twice the rank where it is not given.
    """
    from peft import LoraConfig, inject_adapter_in_model

    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    trunk = trunk_of(model)
    trained -= {id(parameter) for parameter in trunk.parameters()}
    config = LoraConfig(r=rank, target_modules=trunk_linears(model), **{"lora_alpha": 2 * rank, **options})
    inject_adapter_in_model(config, model, adapter_name=LORA_NAME)
    for parameter in model.parameters():
        if id(parameter) in trained:  # peft has frozen all but its own
            parameter.requires_grad_(True)


def merge_lora(model: PreTrainedModel) -> None:
    """Add the low-rank updates to the weights that they update, and make all parameters trainable again."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, BaseTunerLayer):
                module.merge(safe_merge=True)
                setattr(parent, name, module.get_base_layer())
    model.requires_grad_(True)


__all__ = ["add_lora", "freeze_trunk", "merge_lora", "trunk_linears", "trunk_of"]
