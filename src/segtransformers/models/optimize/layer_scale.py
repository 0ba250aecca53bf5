# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Layer scales folded into the layers before them."""

from collections import Counter
from typing import Any

import torch
from timm.layers import Attention, GluMlp, LayerScale, Mlp, SwiGLU
from timm.models.eva import EvaAttention
from torch import nn

from ..internimage.modeling_internimage import (
    InternImageBranch,
    InternImageDeformableConvolution,
    InternImageDeformableConvolutionV4,
    InternImageMLP,
)
from ..trunk.attention import BeitTrunkAttention, EvaTrunkAttention, WindowAttention
from ..trunk.blocks import BeitTrunkBlock, EvaTrunkBlock, PlainTrunkBlock
from ..upernet.upsampled_convolution import is_called_plainly
from .replacement import is_plain

# Layers whose output is that of a linear layer, and its name.
LAST_LAYERS: dict[type[nn.Module], str] = {
    **dict.fromkeys((Attention, EvaAttention, BeitTrunkAttention, EvaTrunkAttention, WindowAttention), "proj"),
    **dict.fromkeys((Mlp, GluMlp, SwiGLU, InternImageMLP), "fc2"),
    **dict.fromkeys((InternImageDeformableConvolution, InternImageDeformableConvolutionV4), "output_proj"),
}


@torch.no_grad()
def fold_layer_scales(model: nn.Module) -> int:
    """Multiply the last layer of each branch of a block by the layer scale that follows it.

    Layers that several modules share stay.
    """
    count = 0
    parents = Counter(id(child) for module in model.modules() for child in module.children())
    for module in model.modules():
        block: Any = module
        if is_plain(module, BeitTrunkBlock) or is_plain(module, EvaTrunkBlock):
            for layer, name in ((block.attn, "gamma_1"), (block.mlp, "gamma_2")):
                if _fold(layer, getattr(block, name), parents):
                    setattr(block, name, None)
                    count += 1
        elif is_plain(module, PlainTrunkBlock):
            for layer, name in ((block.attn, "ls1"), (block.mlp, "ls2")):
                scale = getattr(block, name)
                if is_plain(scale, LayerScale) and _fold(layer, scale.gamma, parents):
                    setattr(block, name, nn.Identity())
                    count += 1
        elif is_plain(module, InternImageBranch):
            last = block.norm if block.post_norm else block.layer
            if _fold(last, block.gamma, parents):
                block.gamma = None
                count += 1
    return count


def _fold(layer: nn.Module, scale: torch.Tensor | None, parents: Counter[int]) -> bool:
    """Multiply the output of a layer by a scale `(C,)`, and return whether that was possible.

    Args:
        parents: the number of modules that have a module as a child, by its id.
    """
    if scale is None or not all(map(is_called_plainly, layer.modules())):
        return False
    last: Any = getattr(layer, LAST_LAYERS[type(layer)]) if type(layer) in LAST_LAYERS else layer
    if parents[id(layer)] > 1 or parents[id(last)] > 1:
        return False
    if is_plain(last, nn.Linear):
        weight = last.weight * scale[:, None]
    elif is_plain(last, nn.LayerNorm):
        weight = last.weight * scale
    else:
        return False
    last.weight = nn.Parameter(weight, requires_grad=False)
    if last.bias is not None:
        last.bias = nn.Parameter(last.bias * scale, requires_grad=False)
    return True


__all__ = ["fold_layer_scales"]
