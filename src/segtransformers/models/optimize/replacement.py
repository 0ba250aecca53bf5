# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Replacement of modules inside a model."""

from collections.abc import Callable
from typing import TypeGuard, TypeVar

import torch
from torch import nn

from ..upernet.upsampled_convolution import is_called_plainly

_Kind = TypeVar("_Kind", bound=nn.Module)


def is_plain(module: nn.Module, kind: type[_Kind]) -> TypeGuard[_Kind]:
    """Return whether a module is of exactly this class, is called by its `forward` alone, and owns plain tensors.

    Hooks, adapters, pruning, offloaded weights and quantized weights break one of these. Such a module is not replaced.
    """
    tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return (
        type(module) is kind
        and is_called_plainly(module)
        and all(type(tensor) in (nn.Parameter, torch.Tensor) for tensor in tensors)
    )


def replace_modules(model: nn.Module, replacement: Callable[[nn.Module], nn.Module | None]) -> int:
    """Replace submodules in place.

    Args:
        replacement: returns the new module for an old one, or None to keep it. New modules are not visited.

    Returns:
        the number of replaced modules.
    """
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            new = replacement(child)
            if new is not None:
                setattr(parent, name, new)
                count += 1
    return count


def linear_layer(weight: torch.Tensor, bias: torch.Tensor | None = None) -> nn.Linear:
    """Build a linear layer of weights `(out_features, in_features)`, which may be replaced in turn."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


def is_on_cpu(model: nn.Module) -> bool:
    """Return whether all parameters are on a CPU. The faster layers were measured there."""
    return all(parameter.device.type == "cpu" for parameter in model.parameters())


def runs_float32_on_cpu(features: torch.Tensor) -> bool:
    """Return whether a layer gets the kind of input for which its faster way was measured."""
    return features.dtype == torch.float32 and features.device.type == "cpu" and not torch.compiler.is_compiling()


__all__ = ["is_on_cpu", "is_plain", "linear_layer", "replace_modules", "runs_float32_on_cpu"]
