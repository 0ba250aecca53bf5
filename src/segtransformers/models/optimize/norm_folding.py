# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Batch norms folded into the convolutions before them."""

from typing import Any

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from transformers.models.upernet.modeling_upernet import UperNetConvModule

from .replacement import is_plain


def fold_norms(model: nn.Module) -> int:
    """Fold each batch norm that directly follows a convolution, and let the ReLU after it work in place."""
    count = 0
    for module in model.modules():
        if type(module) is nn.Sequential:
            count += _fold_in_sequence(module)
        elif type(module) is UperNetConvModule:
            count += _fold_in_conv_module(module)
    return count


def _fold_in_sequence(layers: Any) -> int:
    count = 0
    for index in range(len(layers) - 1):
        if _can_fold(layers[index], layers[index + 1]):
            layers[index] = fuse_conv_bn_eval(layers[index], layers[index + 1])
            layers[index + 1] = nn.Identity()
            if index + 2 < len(layers) and is_plain(layers[index + 2], nn.ReLU):
                layers[index + 2] = nn.ReLU(inplace=True)
            count += 1
    return count


def _fold_in_conv_module(module: Any) -> int:
    if not _can_fold(module.conv, module.batch_norm):
        return 0
    module.conv = fuse_conv_bn_eval(module.conv, module.batch_norm)
    module.batch_norm = nn.Identity()
    if is_plain(module.activation, nn.ReLU):
        module.activation = nn.ReLU(inplace=True)
    return 1


def _can_fold(convolution: nn.Module, norm: nn.Module) -> bool:
    return is_plain(convolution, nn.Conv2d) and is_plain(norm, nn.BatchNorm2d) and norm.track_running_stats


__all__ = ["fold_norms"]
