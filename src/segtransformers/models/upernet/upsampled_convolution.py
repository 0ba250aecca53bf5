# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""A 3x3 convolution over maps of several sizes that are brought to one size, without bringing them there."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from ..optimize.convolutions import convolution3x3
from ..optimize.faster import in_inference_on_cpu, left_product, linear

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
    no map of all their channels is held. Exact but for rounding, for any sizes. In inference on a CPU the output's
    channels lie last.

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
    first = first if scale is None else first * scale[:, None, None, None]
    channels_last = in_inference_on_cpu(*maps)
    if channels_last:
        finest = finest.contiguous(memory_format=torch.channels_last)
    output = convolution3x3(finest, first, bias)
    for map_, part in zip(others, rest, strict=True):
        rows = _shifted_resize(map_.shape[2], finest.shape[2], like=map_).transpose(0, 1).flatten(1)  # (H, 3 * h)
        columns = _shifted_resize(map_.shape[3], finest.shape[3], like=map_).transpose(0, 1).flatten(1)  # (W, 3 * w)
        if channels_last:
            _add_channels_last(output.permute(0, 2, 3, 1), map_, part, scale, rows, columns)
            continue
        taps = part if scale is None else part * scale[:, None, None, None]
        products = F.conv2d(map_, taps.permute(0, 2, 3, 1).flatten(0, 2)[:, :, None, None])
        products = products.unflatten(1, (-1, 3, 3)).transpose(3, 4)  # (B, channels, 3, h, 3, w)
        output += rows @ F.linear(products.flatten(4, 5).flatten(2, 3), columns)  # of (B, channels, 3 * h, W)
    return output


def _add_channels_last(
    output: torch.Tensor,
    map_: torch.Tensor,
    part: torch.Tensor,
    scale: torch.Tensor | None,
    rows: torch.Tensor,
    columns: torch.Tensor,
) -> None:
    """Add what one map contributes to the output `(B, H, W, channels)`.

    Args:
        map_: `(B, C, h, w)`.
        part: its weights `(channels, C, 3, 3)`, to be multiplied with `scale`.
        rows, columns: `(H, 3 * h)` and `(W, 3 * w)`, resize and move.
    """
    batch, _, height, width = map_.shape
    pixels = map_.permute(0, 2, 3, 1)
    for start in range(0, part.shape[0], CHANNELS_AT_ONCE):
        chosen = slice(start, start + CHANNELS_AT_ONCE)
        taps, factor = part[chosen], None if scale is None else scale[chosen]
        if batch * height * width <= FEW_PIXELS:
            products = torch.bmm(pixels.flatten(0, 2).expand(taps.shape[0], -1, -1), taps.flatten(2))
            products = products if factor is None else products * factor[:, None, None]
            products = products.view(-1, batch, height, width, 3, 3).permute(1, 4, 2, 5, 3, 0)
        else:
            taps = taps if factor is None else taps * factor[:, None, None, None]
            products = linear(pixels, taps.permute(2, 3, 0, 1).flatten(0, 2), None)
            products = products.view(batch, height, width, 3, 3, -1).permute(0, 3, 1, 4, 2, 5)
        lines = products.reshape(batch * 3 * height, 3 * width, -1)
        lines = left_product(columns, lines).view(batch, 3 * height, -1)
        output[..., chosen] += left_product(rows, lines).view(*output.shape[:3], -1)


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
