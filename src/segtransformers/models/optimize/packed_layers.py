# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Linear layers and 1x1 convolutions by the kernel's products of packed weights, where a kernel is found.

Weights are packed once, and biases, activations and sums with feature maps are part of a product. [`packed_products`]
decides for which CPUs and dtypes; `deformable_ops/matrix.py` describes the products.
"""

from types import ModuleType
from typing import Any

import torch
from timm.layers import Mlp
from torch import nn
from torch.nn import functional as F

from ...operators import dispatcher
from ..internimage.modeling_internimage import InternImageMLP
from ..layers.resize import AddUpsampled
from ..mask2former.modules_seg_mask2former import SegMask2FormerDecoderLayer, SegMask2FormerPixelDecoderLayer
from ..pyramid.modeling_pyramid import PyramidBackbone
from .channels_last import DoublingConvolution
from .onednn_linear import packed_products
from .replacement import is_on_cpu, is_plain, replace_modules

BLOCK = 32  # columns of a block of packed weights
PAGE = 4096  # bytes; products copy rows that are whole pages apart, because they would take each other's cache lines
SPACING = 64  # bytes between the rows of a hidden layer that would be whole pages apart
MIN_FEATURES = 32  # smaller matrices are mostly the zeros that fill up a block
ACTIVATIONS: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.GELU: "gelu"}
# layers that apply an activation to the output of a linear layer and nothing else, with the names of the two
PAIRS: tuple[tuple[type[nn.Module], str, str], ...] = (
    (Mlp, "fc1", "act"),
    (InternImageMLP, "fc1", "act"),
    (SegMask2FormerPixelDecoderLayer, "fc1", "activation"),
    (SegMask2FormerDecoderLayer, "fc1", "activation"),
)


class PackedWeight(nn.Module):
    """Weights `(out_features, in_features)` that are packed for the kernel's products.

    Args:
        weight: float32 or bfloat16.
        bias: `(out_features,)`.
        activation: of the output, `"relu"` or `"gelu"`.
        is_hidden: whether the output only goes into another product, so that its rows may be apart in memory.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        activation: str | None = None,
        is_hidden: bool = False,
    ):
        super().__init__()
        weight = weight.detach().contiguous()
        self.out_features, self.in_features = weight.shape
        self.activation = activation
        row_bytes = self.out_features * weight.element_size()
        self.spacing = SPACING // weight.element_size() if is_hidden and row_bytes % PAGE == 0 else 0
        self.register_buffer("packed", pack(weight[None]))
        self.register_buffer("bias", None if bias is None else bias.detach())

    def product(self, features: torch.Tensor) -> torch.Tensor:
        """Map `(..., in_features)` to `(..., out_features)`."""
        matrix = matrix_operators_for(self.packed, features)
        if matrix is None:
            weight = unpacked(self.packed[0], self.out_features, self.in_features)
            bias = None if self.bias is None else self.bias.to(features.dtype)
            output = F.linear(features, weight.to(features.dtype), bias)
            return output if self.activation is None else getattr(F, self.activation)(output)
        output = features.new_empty((*features.shape[:-1], self.out_features + self.spacing))[..., : self.out_features]
        rows = features.reshape(1, -1, self.in_features)
        rows = rows if rows.stride(2) == 1 else rows.contiguous()
        matrix.product(rows, self.packed, output.view(1, 1, -1, self.out_features), self.bias, self.activation)
        return output


def pack(weight: torch.Tensor) -> torch.Tensor:
    """Pack the weights `(N, out_features, in_features)` of N products, see `deformable_ops/matrix.py`."""
    matrix = dispatcher.matrix_operators(weight)
    assert matrix is not None
    return matrix.pack_weight(weight)


def matrix_operators_for(packed: torch.Tensor, features: torch.Tensor) -> ModuleType | None:
    """Return the kernel's products if they take these packed weights with these features.

    They do not if the layer was moved to another device, dtype or processor, or if compiled operators are off.
    """
    matrix = dispatcher.matrix_operators(features)
    if matrix is None:
        return None
    if features.dtype == torch.bfloat16:
        expected = (torch.bfloat16, 2 * BLOCK)
    elif matrix.PRODUCTS[torch.float32] == "matrix unit":
        expected = (torch.int16, 3 * BLOCK**2)
    else:
        expected = (torch.float32, BLOCK)
    return matrix if (packed.dtype, packed.shape[-1]) == expected else None


def unpacked(packed: torch.Tensor, out_features: int, in_features: int) -> torch.Tensor:
    """Return the weights `(out_features, in_features)` that were packed to `(blocks, blocks, numbers)`."""
    if packed.dtype == torch.int16:  # the bits of three bfloat16 numbers
        # (blocks of columns, blocks of inner, parts, tiles, pairs of inner, columns, 2)
        bits = packed.unflatten(2, (3, 2, BLOCK // 2, BLOCK // 2, 2))
        parts = (bits.to(torch.int32) << 16).view(torch.float32)
        blocks = ((parts[:, :, 2] + parts[:, :, 1]) + parts[:, :, 0]).permute(0, 2, 4, 1, 3, 5)
        return blocks.flatten(3, 5).flatten(0, 2)[:out_features, :in_features]
    steps = packed.unflatten(2, (BLOCK, -1)).transpose(1, 2)  # (blocks, columns, blocks of inner, one or two)
    return steps.flatten(2).flatten(0, 1)[:out_features, :in_features]


class PackedLinear(PackedWeight):
    """`nn.Linear` with packed weights."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map `(..., in_features)` to `(..., out_features)`."""
        return self.product(input)


class PackedConvolution(PackedWeight):
    """A 1x1 convolution with packed weights."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map `(B, C_in, h, w)` to `(B, C_out, h, w)` with channels last."""
        return self.product(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class AddPackedDoubling(nn.Module):
    """[`DoublingConvolution`] and [`AddUpsampled`] with packed weights. Every output pixel is added where it belongs.

    Args:
        doubling: whose weights are packed.
    """

    def __init__(self, doubling: DoublingConvolution):
        super().__init__()
        product: Any = doubling.product
        taps = product.weight.detach().unflatten(0, (4, -1))  # (2 * 2, C_out, C_in)
        self.out_features, self.in_features = taps.shape[1:]
        self.register_buffer("packed", pack(taps.contiguous()))
        self.register_buffer("bias", None if product.bias is None else product.bias.detach()[: self.out_features])

    def forward(self, features: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Map `(B, C_out, 2 * h, 2 * w)`, which is written to, and `(B, C_in, h, w)` to the sum with channels last."""
        if torch.is_grad_enabled() and features.requires_grad:
            features = features.clone()
        output = features.contiguous(memory_format=torch.channels_last)
        batch, _, height, width = other.shape
        other = other.to(output.dtype)  # they differ under autocast
        rows = other.permute(0, 2, 3, 1).reshape(1, -1, self.in_features).contiguous()
        pixels = output.permute(0, 2, 3, 1).view(batch * height, 2, width, 2, self.out_features)
        matrix = matrix_operators_for(self.packed, other)
        for index, packed in enumerate(self.packed):
            target = pixels[None, :, index // 2, :, index % 2]
            if matrix is not None:
                matrix.product(rows, packed[None], target, self.bias, accumulate=True)
            else:
                weight = unpacked(packed, self.out_features, self.in_features).to(rows.dtype)
                bias = None if self.bias is None else self.bias.to(rows.dtype)
                target += F.linear(rows, weight, bias).view(target.shape)
        return output


def use_packed_layers(model: nn.Module) -> int:
    """Replace linear layers, the activations after them, and 1x1 convolutions where packed products are faster."""
    if not is_on_cpu(model):
        return 0
    count = sum(
        _replace_pair(module, *names) for kind, *names in PAIRS for module in model.modules() if type(module) is kind
    )
    return count + sum(map(_replace_doubling, model.modules())) + replace_modules(model, _replacement)


def _replace_pair(module: nn.Module, linear_name: str, activation_name: str) -> bool:
    linear, activation = getattr(module, linear_name), getattr(module, activation_name)
    kind = ACTIVATIONS.get(type(activation))
    if (
        kind is None
        or not is_plain(activation, type(activation))
        or getattr(activation, "approximate", "none") != "none"
    ):
        return False
    if not (is_plain(linear, nn.Linear) and _is_large(linear.weight)):
        return False
    setattr(module, linear_name, PackedLinear(linear.weight, linear.bias, kind, is_hidden=True))
    setattr(module, activation_name, nn.Identity())
    return True


def _replace_doubling(module: nn.Module) -> bool:
    if not isinstance(module, PyramidBackbone) or not is_plain(module.add_upsampled, AddUpsampled):
        return False
    backbone: Any = module
    doubling = backbone.upsample
    if not (is_plain(doubling, DoublingConvolution) and is_plain(doubling.product, nn.Linear)):
        return False
    if not _is_large(doubling.product.weight):
        return False
    backbone.add_upsampled = AddPackedDoubling(doubling)
    backbone.upsample = nn.Identity()
    return True


def _replacement(module: nn.Module) -> nn.Module | None:
    if is_plain(module, nn.Linear) and _is_large(module.weight):
        return PackedLinear(module.weight, module.bias)
    if is_plain(module, nn.Conv2d) and _is_product(module) and _is_large(module.weight.flatten(1)):
        return PackedConvolution(module.weight.flatten(1), module.bias)
    return None


def _is_large(weight: torch.Tensor) -> bool:
    is_even = weight.shape[1] % 2 == 0 or weight.dtype == torch.float32
    return min(weight.shape) >= MIN_FEATURES and is_even and packed_products(weight.dtype) is not None


def _is_product(convolution: nn.Conv2d) -> bool:
    return (
        convolution.kernel_size == (1, 1)
        and convolution.stride == (1, 1)
        and convolution.padding == (0, 0)
        and convolution.groups == 1
    )


__all__ = [
    "AddPackedDoubling",
    "PackedConvolution",
    "PackedLinear",
    "matrix_operators_for",
    "pack",
    "use_packed_layers",
]
