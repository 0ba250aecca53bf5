# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""A 3x3 convolution over maps of several sizes that are brought to one size, without bringing them there."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from ..faster import linear

CHANNELS_AT_ONCE = 64  # of the output, whose products with small maps are then in a CPU's cache


def upsampled_convolution(
    maps: Sequence[torch.Tensor], weight: torch.Tensor, bias: torch.Tensor | None
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

    Returns:
        `(B, channels, h_0, w_0)`: that of `conv2d(cat(maps, each resized bilinearly), weight, bias, padding=1)`.
    """
    finest, *others = maps
    first, *rest = weight.split([map_.shape[1] for map_ in maps], dim=1)
    output = F.conv2d(finest, first, bias, padding=1)
    # compilers have their own ways to cut work into pieces, and gradients would be copied for every piece
    whole = torch.is_grad_enabled() or torch.compiler.is_compiling()
    step = weight.shape[0] if whole else CHANNELS_AT_ONCE
    for map_, part in zip(others, rest, strict=True):
        rows = _shifted_resize(map_.shape[2], finest.shape[2], like=map_).transpose(0, 1).flatten(1)  # (H, 3 * h)
        columns = _shifted_resize(map_.shape[3], finest.shape[3], like=map_).transpose(0, 1).flatten(1)  # (W, 3 * w)
        for start in range(0, weight.shape[0], step):
            taps = part[start : start + step].permute(0, 2, 3, 1).flatten(0, 2)
            products = F.conv2d(map_, taps[:, :, None, None]).unflatten(1, (-1, 3, 3))  # (B, channels, 3, 3, h, w)
            products = products.transpose(3, 4).flatten(4, 5).flatten(2, 3)  # (B, channels, 3 * h, 3 * w)
            lines = products.flatten(0, 1)
            lines = torch.bmm(rows.expand(lines.shape[0], -1, -1), lines)  # (B * channels, H, 3 * w)
            output[:, start : start + step] += linear(lines, columns, None).unflatten(0, products.shape[:2])
    return output


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
