# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Resizes, softmax and layer norms of a model by the kernel's dense operators, where a kernel is found."""

from collections.abc import Sequence

import torch
from timm.layers import LayerNorm as TimmLayerNorm
from torch import nn

from ...operators import dispatcher
from ..layers.resize import AddResized, Resize, resize
from .replacement import is_on_cpu, is_plain, replace_modules

MOST_CLASSES = 32  # PyTorch's softmax is slow for short rows only


class FastResize(Resize):
    """[`Resize`] of feature maps with channels first."""

    def forward(self, features: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """Map `(B, C, h, w)` to `(B, C, *size)`."""
        dense = dispatcher.dense_operators(features)
        if dense is None or self.align_corners or tuple(size) == tuple(features.shape[2:]):
            return super().forward(features, size)
        return dense.resize_planes(features.contiguous(), *size)


class FastAddResized(AddResized):
    """[`AddResized`] of feature maps with channels last.

    Args:
        inplace: whether to add to the first argument where no gradient is computed.
    """

    def __init__(self, inplace: bool = False):
        super().__init__()
        self.inplace = inplace

    def forward(self, features: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Map `(B, C, H, W)` and `(B, C, h, w)` to `(B, C, H, W)`."""
        if torch.is_grad_enabled() and features.requires_grad:
            return super().forward(features, other)
        dense = dispatcher.dense_operators(features, features.shape[1])
        size, other = features.shape[2:], other.to(features.dtype)  # they differ under autocast
        if dense is None or other.shape[2:] == size or not features.is_contiguous(memory_format=torch.channels_last):
            return features.add_(resize(other, size)) if self.inplace else super().forward(features, other)
        output = features if self.inplace else features.clone(memory_format=torch.channels_last)
        dense.add_resized(other.permute(0, 2, 3, 1).contiguous(), output.permute(0, 2, 3, 1))
        return output


class FastSoftmax(nn.Softmax):
    """`nn.Softmax` over a last dimension of few numbers."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map `(..., size)` to the same shape."""
        dense = dispatcher.dense_operators(input)
        if dense is None or input.shape[-1] > MOST_CLASSES:
            return super().forward(input)
        output = input.clone(memory_format=torch.contiguous_format)
        dense.softmax_rows(output.view(-1, input.shape[-1]))
        return output


class FastLayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` over a last dimension.

    Args:
        norm: whose weight and bias are taken over.
    """

    def __init__(self, norm: nn.LayerNorm):
        super().__init__(norm.normalized_shape, eps=norm.eps, device="meta")
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map `(..., C)` to the same shape."""
        dense = dispatcher.dense_operators(input, *self.normalized_shape)
        if dense is None or input.dtype != self.weight.dtype:  # they differ under autocast
            return super().forward(input)
        rows = input.reshape(-1, input.shape[-1])
        return dense.layer_norm_rows(rows.contiguous(), self.weight, self.bias, self.eps).view(input.shape)


def use_dense_operators(model: nn.Module) -> int:
    """Replace resizes, softmax layers and layer norms on a CPU."""
    return replace_modules(model, _replacement) if is_on_cpu(model) else 0


def _replacement(module: nn.Module) -> nn.Module | None:
    if is_plain(module, Resize):
        return FastResize(module.align_corners)
    if is_plain(module, AddResized):
        return FastAddResized()
    if is_plain(module, nn.Softmax) and module.dim == -1:
        return FastSoftmax(dim=-1)
    is_norm = is_plain(module, nn.LayerNorm) or is_plain(module, TimmLayerNorm)
    if is_norm and len(module.normalized_shape) == 1 and module.weight is not None and module.bias is not None:
        return FastLayerNorm(module)
    return None


__all__ = ["FastAddResized", "FastLayerNorm", "FastResize", "FastSoftmax", "use_dense_operators"]
