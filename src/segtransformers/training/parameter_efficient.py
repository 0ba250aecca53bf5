# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Parameter-efficient fine-tuning: a frozen trunk, or low-rank updates (LoRA) of the trunk's linear layers."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from ..models.layers.separate_trunk import SeparateTrunkMixin
from ..models.trunk import Trunk

if TYPE_CHECKING:
    from peft import LoraConfig

ADAPTER_NAME = "default"  # peft's name of a single adapter
CONTAINERS = (nn.ModuleList, nn.ModuleDict)  # peft cannot save these as a whole


def trunk_of(model: PreTrainedModel) -> nn.Module:
    """Return the pre-trained part of a model: the plain ViT inside the backbone, or the whole of another backbone."""
    backbone: nn.Module = getattr(model, "backbone", model)
    return getattr(backbone, "trunk", backbone)


def freeze_trunk(model: PreTrainedModel, dtype: torch.dtype | Literal["auto"] | None = "auto") -> None:
    """Train all parameters except those of the trunk. Dropout and drop path of the trunk stay active in training.

    No graph of the trunk is kept unless something trained precedes its blocks, as the injectors of a ViT-Adapter do.

    Args:
        dtype: precision of the matrix products of a plain ViT, until the model is loaded again. Its weights keep
            theirs. "auto" is bfloat16 on a GPU that has it, float16 on other GPUs, and None elsewhere. None is the
            precision of the rest.
    """
    trunk: Any = trunk_of(model)
    trunk.requires_grad_(False)
    if isinstance(trunk, Trunk):
        trunk.frozen_dtype = half_precision() if dtype == "auto" else dtype


def save_frozen_trunk(model: PreTrainedModel, weights: str | None, whole: bool = False) -> str | None:
    """Decide whether saved folders hold the weights of a frozen trunk, or only their name.

    Args:
        weights: a name by which the trunk can be loaded anywhere, as for `separate_trunk`; None if it has none.
        whole: whether the folders hold the weights also if it has a name.

    Returns:
        the name, if folders hold only the name. A model that was loaded from such a folder keeps its name.
    """
    if not isinstance(model, SeparateTrunkMixin) or not isinstance(trunk_of(model), Trunk):
        return None
    named = getattr(model, "backbone", model).config.trunk_weights
    if whole:
        model.unite_trunk()
        return None
    if named is None and weights is not None:
        model.separate_trunk(weights)
        return weights
    return named


def half_precision() -> torch.dtype | None:
    """Return the fast floating-point type of half precision on this machine's GPU, or None without a GPU."""
    if not torch.cuda.is_available():
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def trunk_linears(model: PreTrainedModel) -> list[str]:
    """Return the names of the trunk's linear layers, for `LoraConfig(target_modules=...)` of peft."""
    trunk, prefix = trunk_of(model), _trunk_name(model)
    names = [name for name, module in trunk.named_modules() if isinstance(module, nn.Linear)]
    return [f"{prefix}.{name}" if prefix else name for name in names]


def lora_config(model: PreTrainedModel, rank: int, **options: Any) -> "LoraConfig":
    """Create the config of low-rank updates (https://arxiv.org/abs/2106.09685) for peft's `get_peft_model`.

    The updates are on the trunk's linear layers. `modules_to_save` names all other modules, so that they are trained
    and saved with the adapter. An adapter that saves the updates alone gives other outputs after a reload, because the
    running statistics of batch norms change in training, too. `PeftModel.from_pretrained` on the same base model gives
    exactly the trained outputs. Parameters that belong to no module of their own stay frozen. Needs peft.

    Args:
        rank: rank of the updates.
        options: fields of peft's `LoraConfig`; `lora_alpha` defaults to twice the rank.
    """
    from peft import LoraConfig  # an optional dependency

    settings = {
        "lora_alpha": 2 * rank,
        "target_modules": trunk_linears(model),
        "modules_to_save": list(_modules_beside_trunk(model, _trunk_name(model))),
    }
    return LoraConfig(r=rank, **{**settings, **options})


def add_lora(model: PreTrainedModel, rank: int, **options: Any) -> None:
    """Put low-rank updates on the trunk's linear layers and freeze the trunk's own weights.

    All parameters outside the trunk train as before. The model keeps its class and its checkpoints hold all tensors;
    [`merge_lora`] turns it into an ordinary model again. Needs peft.

    Args:
        rank, options: see [`lora_config`].
    """
    from peft import inject_adapter_in_model  # an optional dependency

    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    trained -= {id(parameter) for parameter in trunk_of(model).parameters()}
    config = lora_config(model, rank, **{"modules_to_save": None, **options})
    inject_adapter_in_model(config, model, adapter_name=ADAPTER_NAME)
    for parameter in model.parameters():
        if id(parameter) in trained:  # peft froze all parameters except its own
            parameter.requires_grad_(True)


def merge_lora(model: PreTrainedModel) -> None:
    """Add the low-rank updates to the weights, remove them, and make all parameters trainable."""
    from peft.tuners.tuners_utils import BaseTunerLayer  # an optional dependency

    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, BaseTunerLayer):
                module.merge(safe_merge=True)
                setattr(parent, name, module.get_base_layer())
    model.requires_grad_(True)


def unsaved_statistics(model: nn.Module) -> list[str]:
    """Return the names of norms whose running statistics a saved peft adapter lacks. Other models are saved whole."""
    if isinstance(model, PreTrainedModel) or not hasattr(model, "peft_config"):
        return []
    saved = {"modules_to_save", "original_module"}  # peft's names of a saved module and of its frozen original
    return [
        name
        for name, module in model.named_modules()
        if _has_running_statistics(module) and saved.isdisjoint(name.split("."))
    ]


def _has_running_statistics(module: nn.Module) -> bool:
    return getattr(module, "running_mean", None) is not None


def _trunk_name(model: nn.Module) -> str:
    trunk = trunk_of(model)  # type: ignore[arg-type]
    return next(name for name, module in model.named_modules() if module is trunk)


def _modules_beside_trunk(model: nn.Module, trunk_name: str) -> Iterator[str]:
    """Yield the names of the outermost modules with parameters or buffers that do not contain the trunk.

    Batch norms inside the trunk are yielded too, because peft does not save their running statistics otherwise.
    """
    saved: list[str] = []
    for name, module in model.named_modules():
        contains_trunk = f"{trunk_name}.".startswith(f"{name}.") or not name
        is_in_trunk = not trunk_name or name.startswith(f"{trunk_name}.")
        if contains_trunk or isinstance(module, CONTAINERS) or any(name.startswith(f"{outer}.") for outer in saved):
            continue
        if _has_running_statistics(module) if is_in_trunk else module.state_dict():
            saved.append(name)
            yield name


__all__ = [
    "add_lora",
    "freeze_trunk",
    "lora_config",
    "merge_lora",
    "save_frozen_trunk",
    "trunk_linears",
    "trunk_of",
    "unsaved_statistics",
]
