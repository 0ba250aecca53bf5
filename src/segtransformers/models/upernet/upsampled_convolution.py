# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""A 3x3 convolution over maps of several sizes that are brought to one size, without bringing them there."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from ..faster import left_product, linear

CHANNELS_AT_ONCE = 64  # of the output, whose products with small maps are then in a CPU's cache
FEW_PIXELS = 64  # of a map, so that its products cost less than to bring the weights into another order


def upsampled_convolution(
    maps: Sequence[torch.Tensor],
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """The convolution of the maps, one behind the other, with all of them at the size of the first.

    Resizing and convolution are linear and act on different axes, so that their order may change: the smaller maps are
    multiplied with the weights at their own size, and of the products, one for each of the 3x3 places of the kernel,
    the sum over places is resized. For maps at strides 4, 8, 16 and 32 this is less than half of the arithmetic, and
    no map of all their channels is held. Exact but for rounding, for any sizes.

    Args:
        maps: `(B, C_i, h_i, w_i)`.
        weight: `(channels, sum(C_i), 3, 3)`.
        bias: `(channels,)`.
        scale: `(channels,)`, of the weights.

    Returns:
        `(B, channels, h_0, w_0)`: that of `conv2d(cat(maps, each resized bilinearly), weight, bias, padding=1)`.
    """
    finest, *others = maps
    first, *rest = weight.split([map_.shape[1] for map_ in maps], dim=1)
    output = F.conv2d(finest, first if scale is None else first * scale[:, None, None, None], bias, padding=1)
    # compilers have their own ways to cut work into pieces, and gradients would be copied for every piece
    whole = torch.is_grad_enabled() or torch.compiler.is_compiling()
    step = weight.shape[0] if whole else CHANNELS_AT_ONCE
    for map_, part in zip(others, rest, strict=True):
        rows = _shifted_resize(map_.shape[2], finest.shape[2], like=map_).transpose(0, 1).flatten(1)  # (H, 3 * h)
        columns = _shifted_resize(map_.shape[3], finest.shape[3], like=map_).transpose(0, 1).flatten(1)  # (W, 3 * w)
        for start in range(0, weight.shape[0], step):
            chosen = slice(start, start + step)
            products = _products(map_, part[chosen], None if scale is None else scale[chosen])
            lines = linear(products.flatten(4, 5).flatten(2, 3), columns, None)  # (B, channels, 3 * h, W)
            output[:, chosen] += left_product(rows, lines.flatten(0, 1)).unflatten(0, lines.shape[:2])
    return output


def _products(map_: torch.Tensor, taps: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """`(B, channels, 3, h, 3, w)`: pixels of `(B, C, h, w)` times the weights `(channels, C, 3, 3)` of every place."""
    batch, _, height, width = map_.shape
    few = not torch.compiler.is_compiling() and map_.device.type == "cpu" and batch * height * width <= FEW_PIXELS
    if few:
        pixels = map_.permute(0, 2, 3, 1).flatten(0, 2)
        products = torch.bmm(pixels.expand(taps.shape[0], -1, -1), taps.flatten(2))  # (channels, B * h * w, 9)
        if scale is not None:
            products = products * scale[:, None, None]
        return products.view(-1, batch, height, width, 3, 3).permute(1, 0, 4, 2, 5, 3)
    if scale is not None:
        taps = taps * scale[:, None, None, None]
    products = F.conv2d(map_, taps.permute(0, 2, 3, 1).flatten(0, 2)[:, :, None, None])
    return products.unflatten(1, (-1, 3, 3)).transpose(3, 4)


def _shifted_resize(size: int, wanted: int, like: torch.Tensor) -> torch.Tensor:
    """`(3, wanted, size)`: matrices that resize a line bilinearly and move it by one, none and minus one pixel.

    What moves in from outside is zero.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)  # the resize knows no half precision everywhere
    unit = torch.eye(size, dtype=dtype, device=like.device)[None, :, :, None]
    resize = F.interpolate(unit, size=(wanted, 1), mode="bilinear", align_corners=False)[0, :, :, 0].t()
    padded = F.pad(resize, (0, 0, 1, 1)).to(like.dtype)
    return torch.stack([padded[:-2], padded[1:-1], padded[2:]])


class UpsampledConvolution(nn.Conv2d):
    """A 3x3 convolution with padding 1 by [`upsampled_convolution`]."""

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:  # type: ignore[override]
        """From maps `(B, C_i, h_i, w_i)` to `(B, out_channels, h_0, w_0)`."""
        return upsampled_convolution(maps, self.weight, self.bias)


__all__ = ["UpsampledConvolution", "upsampled_convolution"]
