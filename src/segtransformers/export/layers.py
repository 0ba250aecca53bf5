# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Layers of exported models: folded norms and scales, and deformable layers whose projections are merged.

The projections of offsets and weights become one, whose outputs are ordered by coordinate: all x, all y, all weights.
So nothing has to separate pairs (x, y), which takes longer than the arithmetic on them.
"""

from typing import Any

import torch
from torch import nn
from transformers.models.swin.modeling_swin import SwinLayer

from ..models.internimage.configuration_internimage import KERNEL_SIZE
from ..models.internimage.modeling_internimage import (
    InternImageDeformableConvolution,
    InternImageDeformableConvolutionV4,
)
from ..models.layers.deformable_attention import DeformableAttention, SamplingGeometry
from ..models.optimize.layer_scale import fold_layer_scales
from ..models.optimize.norm_folding import fold_norms
from ..models.optimize.replacement import is_plain, replace_modules
from ..operators import FusedDeformableAttention, MultiScaleDeformableAttention
from ..operators.deformable_attention import gathered_attention
from ..operators.deformable_convolution import convolution_samples, kernel_points
from .swin import AnySizeSwinLayer


class GatheredAttention(nn.Module):
    """[`DeformableAttention`] by gathers.

    Args:
        attention: its linear layers are taken over.
    """

    def __init__(self, attention: DeformableAttention):
        super().__init__()
        self.num_heads, self.num_levels = attention.num_heads, attention.num_levels
        self.value_proj, self.output_proj = attention.value_proj, attention.output_proj
        offsets, logits = attention.sampling_offsets, attention.attention_weights
        self.taps = logits.out_features
        self.packed = _linear(
            torch.cat([offsets.weight[0::2], offsets.weight[1::2], logits.weight]),
            torch.cat([offsets.bias[0::2], offsets.bias[1::2], logits.bias]),
        )

    def forward(self, query: torch.Tensor, value: torch.Tensor, geometry: SamplingGeometry) -> torch.Tensor:
        """Attend from `query` `(B, queries, C)` to `value` `(B, tokens, C)`; returns `(B, queries, C)`."""
        value = self.value_proj(value).unflatten(2, (self.num_heads, -1))
        x, y, logits = self.packed(query).split(self.taps, dim=2)
        weights = logits.unflatten(2, (self.num_heads, -1)).softmax(-1).flatten(2)
        return self.output_proj(gathered_attention(value, geometry.shapes, geometry.reference_points, x, y, weights))


class GatheredConvolution(nn.Module):
    """[`InternImageDeformableConvolution`] or [`InternImageDeformableConvolutionV4`] by gathers.

    The positions of the kernel's points are part of the bias.

    Args:
        layer: its other layers are taken over.
    """

    def __init__(self, layer: InternImageDeformableConvolution | InternImageDeformableConvolutionV4):
        super().__init__()
        self.groups, self.num_points = layer.groups, layer.num_points
        self.input_proj, self.output_proj, self.depthwise = layer.input_proj, layer.output_proj, layer.depthwise
        self.norm: nn.Module | None = None
        self.center_gate: nn.Module | None = None
        self.has_softmax = isinstance(layer, InternImageDeformableConvolution)
        numbers = torch.arange(self.groups * self.num_points * 3)
        if isinstance(layer, InternImageDeformableConvolution):
            self.norm, self.act, self.center_gate = layer.depthwise_norm, layer.act, layer.center_gate
            weight = torch.cat([layer.offset.weight, layer.mask.weight])
            bias = torch.cat([layer.offset.bias, layer.mask.bias])
            pairs, rest = numbers[: self.taps * 2], numbers[self.taps * 2 :]
        else:
            weight, bias = layer.offset_mask.weight, layer.offset_mask.bias
            by_group = numbers.view(self.groups, -1)
            pairs, rest = by_group[:, : self.num_points * 2].flatten(), by_group[:, self.num_points * 2 :].flatten()
        order = torch.cat([pairs[0::2], pairs[1::2], rest]).to(weight.device)
        weight, bias = weight[order].clone(), bias[order].clone()
        kernel = kernel_points(
            (KERNEL_SIZE, KERNEL_SIZE), (1, 1), layer.remove_center, torch.float32, weight.device
        ).to(bias.dtype)
        bias[: self.taps] += kernel[:, 0].repeat(self.groups)
        bias[self.taps : self.taps * 2] += kernel[:, 1].repeat(self.groups)
        weight[: self.taps * 2] *= layer.offset_scale
        bias[: self.taps * 2] *= layer.offset_scale
        self.packed = _linear(weight, bias)

    @property
    def taps(self) -> int:
        return self.groups * self.num_points

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """From and to `(B, h, w, C)`."""
        value = self.input_proj(features)
        guide = features
        if self.depthwise is not None:
            guide = self.depthwise(guide.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        if self.norm is not None:
            guide = self.act(self.norm(guide))
        x, y, weights = self.packed(guide.flatten(1, 2)).split(self.taps, dim=2)
        if self.has_softmax:
            weights = weights.unflatten(2, (self.groups, self.num_points)).softmax(-1).flatten(2)
        half = KERNEL_SIZE // 2
        sampled = convolution_samples(
            value, x, y, weights, features.shape[1:3], (1, 1), (half, half), (1, 1), (KERNEL_SIZE, KERNEL_SIZE),
            self.groups,
        )  # fmt: skip
        if self.center_gate is not None:
            gate = self.center_gate(guide).sigmoid().to(value.dtype)
            gate = gate.repeat_interleave(value.shape[3] // self.groups, dim=3)
            sampled = sampled * (1 - gate) + value * gate
        return self.output_proj(sampled)


def _linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer


class MatrixPool(nn.Module):
    """[`nn.AdaptiveAvgPool2d`] as two matrix products, for runtimes without pooling to a fixed size of dynamic inputs.

    Args:
        size: (height, width) of the output.
    """

    def __init__(self, size: tuple[int, int]):
        super().__init__()
        self.size = size

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map `(B, C, h, w)` to `(B, C, *size)`."""
        rows, columns = (_pool_matrix(features.shape[2 + axis], self.size[axis], features) for axis in (0, 1))
        return rows @ (features @ columns.t())


def _pool_matrix(size: int, new_size: int, like: torch.Tensor) -> torch.Tensor:
    """Return the matrix `(new_size, size)` that averages the pixels from `floor(i * size / new_size)` on."""
    steps = torch.arange(new_size, dtype=torch.int32, device=like.device)
    starts = torch.div(steps * size, new_size, rounding_mode="floor")[:, None]
    ends = torch.div((steps + 1) * size + (new_size - 1), new_size, rounding_mode="floor")[:, None]
    pixels = torch.arange(size, dtype=torch.int32, device=like.device)
    inside = ((pixels >= starts) & (pixels < ends)).to(like.dtype)
    return inside / (ends - starts).to(like.dtype)


@torch.no_grad()
def replace_layers(model: nn.Module, gathers: bool, dynamic_size: bool = False) -> None:
    """Replace layers of a model in place by those for export.

    Layers with hooks, adapters or quantized weights stay.

    Args:
        gathers: whether deformable layers are replaced, too.
        dynamic_size: whether pooling to a fixed size and Swin's layers are written for inputs of any size.
    """
    if all(tensor.dtype in (torch.float32, torch.float64) for tensor in model.parameters()):
        # folded weights in half precision would round differently
        fold_norms(model)
        fold_layer_scales(model)
    if gathers:
        replace_modules(model, _gathered)
    if dynamic_size:
        replace_modules(model, _of_any_size)


def _of_any_size(module: nn.Module) -> nn.Module | None:
    if is_plain(module, SwinLayer):
        return AnySizeSwinLayer(module)
    if not is_plain(module, nn.AdaptiveAvgPool2d):
        return None
    size: Any = module.output_size
    pair = (size, size) if isinstance(size, int) else tuple(size)
    return MatrixPool(pair) if None not in pair else None


def _gathered(module: Any) -> nn.Module | None:
    if is_plain(module, DeformableAttention):
        inner: tuple[nn.Module, ...] = (module.sampling_offsets, module.attention_weights)
        is_own = is_plain(module.attn, FusedDeformableAttention) and is_plain(
            module.attn.attention, MultiScaleDeformableAttention
        )
        return GatheredAttention(module) if is_own and all(is_plain(layer, nn.Linear) for layer in inner) else None
    if is_plain(module, InternImageDeformableConvolution):
        inner = (module.offset, module.mask)
    elif is_plain(module, InternImageDeformableConvolutionV4):
        inner = (module.offset_mask,)
    else:
        return None
    return GatheredConvolution(module) if all(is_plain(layer, nn.Linear) for layer in inner) else None


__all__ = ["GatheredAttention", "GatheredConvolution", "MatrixPool", "replace_layers"]
