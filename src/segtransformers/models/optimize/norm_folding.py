# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Batch norms folded into the convolutions before them."""

from typing import Any

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from transformers.models.upernet.modeling_upernet import UperNetConvModule


def fold_norms(model: nn.Module) -> int:
    """Fold each batch norm that directly follows a convolution, and let the ReLU after it work in place."""
    count = 0
    modules: list[Any] = list(model.modules())
    for module in modules:
        if type(module) is nn.Sequential:
            for index in range(len(module) - 1):
                if _can_fold(module[index], module[index + 1]):
                    module[index] = fuse_conv_bn_eval(module[index], module[index + 1])
                    module[index + 1] = nn.Identity()
                    count += 1
                    if index + 2 < len(module) and type(module[index + 2]) is nn.ReLU:
                        module[index + 2] = nn.ReLU(inplace=True)
        elif type(module) is UperNetConvModule and _can_fold(module.conv, module.batch_norm):
            module.conv = fuse_conv_bn_eval(module.conv, module.batch_norm)
            module.batch_norm = nn.Identity()
            module.activation = nn.ReLU(inplace=True)
            count += 1
    return count


def _can_fold(convolution: nn.Module, norm: nn.Module) -> bool:
    return type(convolution) is nn.Conv2d and type(norm) is nn.BatchNorm2d and norm.track_running_stats


__all__ = ["fold_norms"]
