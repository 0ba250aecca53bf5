# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""A 3x3 convolution of feature maps of several sizes, computed at each feature map's own resolution.

UperNet resizes feature maps to one size, concatenates them and convolves the result. Both steps are linear and act on
different axes, so their order may change: each of the nine kernel taps is multiplied with a feature map at
its own resolution, and the sum over taps is resized. For strides 4, 8, 16 and 32 this takes less than half of the
arithmetic, and the concatenated tensor is never stored. The result is exact up to rounding, for any sizes.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from ..layers.resize import resize


def convolve_resized(
    conv: nn.Module, feature_maps: Sequence[torch.Tensor], align_corners: bool = False
) -> torch.Tensor:
    """Convolve feature maps as if they were resized to the size of the first and concatenated.

    Args:
        conv: 3x3 convolution with padding 1. If it is a plain `nn.Conv2d`, its weights are used directly. Anything else
            (an adapter, a quantized layer, a layer with hooks) is called on the concatenated tensor.
        feature_maps: `(B, C_i, h_i, w_i)`.
        align_corners: whether the centres of the corner pixels stay at their places in the resize.

    Returns:
        `(B, out_channels, h_0, w_0)`.
    """
    if is_plain_conv3x3(conv):
        return upsampled_convolution(feature_maps, conv.weight, conv.bias, align_corners)
    return conv(concatenate_resized(feature_maps, align_corners))


def concatenate_resized(feature_maps: Sequence[torch.Tensor], align_corners: bool = False) -> torch.Tensor:
    """Resize feature maps `(B, C_i, h_i, w_i)` to the size of the first and concatenate their channels."""
    size = feature_maps[0].shape[2:]
    return torch.cat([resize(feature_map, size, align_corners) for feature_map in feature_maps], dim=1)


def is_plain_conv3x3(conv: nn.Module) -> bool:
    """Return whether calling `conv` does nothing but a 3x3 convolution with padding 1, stride 1 and its own weights."""
    return (
        type(conv) is nn.Conv2d
        and is_called_plainly(conv)
        and (conv.kernel_size, conv.stride, conv.padding, conv.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
        and conv.groups == 1
        and conv.padding_mode == "zeros"
    )


def is_called_plainly(module: nn.Module) -> bool:
    """Return whether a call of the module is its class's `forward` and nothing else: no hooks, no replaced `forward`.

    torch has no public way to ask for hooks; these attributes hold them in all supported versions.
    """
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
    )


def upsampled_convolution(
    feature_maps: Sequence[torch.Tensor],
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    align_corners: bool = False,
) -> torch.Tensor:
    """Compute `conv2d(cat(feature_maps, each resized bilinearly to the first), weight, bias, padding=1)`.

    Args:
        feature_maps: `(B, C_i, h_i, w_i)`.
        weight: `(channels, sum(C_i), 3, 3)`.
        bias: `(channels,)`.
        align_corners: of the resize.

    Returns:
        `(B, channels, h_0, w_0)`.
    """
    finest, *coarser = feature_maps
    size = finest.shape[2:]
    first, *rest = weight.split([feature_map.shape[1] for feature_map in feature_maps], dim=1)
    output = F.conv2d(finest, first, bias, padding=1)
    is_channels_last = finest.is_contiguous(memory_format=torch.channels_last) and not finest.is_contiguous()
    resized_taps = _resized_taps_channels_last if is_channels_last else _resized_taps
    for feature_map, part in zip(coarser, rest, strict=True):
        rows, columns = (
            shifted_resize_matrix(feature_map.shape[axis], size[axis - 2], feature_map, align_corners)
            for axis in (2, 3)
        )
        output = output + resized_taps(feature_map, part, rows, columns)
    return output


def _resized_taps(
    feature_map: torch.Tensor, weight: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """Multiply a feature map `(B, C_i, h, w)` with the nine taps, and resize and sum the products."""
    taps = F.conv2d(feature_map, weight.permute(0, 2, 3, 1).flatten(0, 2)[:, :, None, None])
    taps = taps.unflatten(1, (-1, 3, 3)).transpose(3, 4)  # (B, channels, 3, h, 3, w)
    taps = F.linear(taps.flatten(4, 5).flatten(2, 3), columns)  # (B, channels, 3 * h, W)
    return rows @ taps


def _resized_taps_channels_last(
    feature_map: torch.Tensor, weight: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """Compute [`_resized_taps`] without changing the order of the memory."""
    # sizes come from shapes, because len() of a tensor is a constant in exported programs
    batch, _, height, _ = feature_map.shape
    taps = F.linear(feature_map.permute(0, 2, 3, 1), weight.permute(2, 3, 0, 1).flatten(0, 2))
    taps = taps.unflatten(3, (3, 3, -1)).permute(0, 3, 1, 4, 2, 5)  # (B, 3, h, 3, w, channels)
    taps = taps.flatten(3, 4).flatten(0, 2)
    lines = torch.bmm(columns.expand(taps.shape[0], -1, -1), taps)  # (B * 3 * h, W, channels)
    lines = lines.view(batch, 3 * height, -1)
    resized = torch.bmm(rows.expand(batch, -1, -1), lines)
    return resized.unflatten(2, (columns.shape[0], -1)).permute(0, 3, 1, 2)


def shifted_resize_matrix(size: int, new_size: int, like: torch.Tensor, align_corners: bool = False) -> torch.Tensor:
    """Return the matrix `(new_size, 3 * size)` that resizes a line bilinearly and shifts it by 1, 0 and -1 pixels.

    The columns belong to the three taps of a kernel's row or column, one after another; zeros are shifted in.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)  # interpolate lacks half precision on some devices
    if torch.compiler.is_exporting():
        matrix = _resize_matrix(size, new_size, dtype, like.device, align_corners)
    else:
        unit = torch.eye(size, dtype=dtype, device=like.device)[None, :, :, None]
        matrix = F.interpolate(unit, size=(new_size, 1), mode="bilinear", align_corners=align_corners)[0, :, :, 0].t()
    padded = F.pad(matrix, (0, 0, 1, 1)).to(like.dtype)
    return torch.cat([padded[:-2], padded[1:-1], padded[2:]], dim=1)


def _resize_matrix(
    size: int, new_size: int, dtype: torch.dtype, device: torch.device, align_corners: bool
) -> torch.Tensor:
    """Return the matrix `(new_size, size)` of a bilinear resize, by arithmetic that runtimes have for dynamic sizes."""
    target = torch.arange(new_size, dtype=dtype, device=device)
    if align_corners:
        source = target * ((size - 1) / max(new_size - 1, 1))
    else:
        source = ((target + 0.5) * (size / new_size) - 0.5).clamp(min=0)
    last = torch.full((), size - 1, dtype=dtype, device=device)
    distance = torch.minimum(source, last)[:, None] - torch.arange(size, dtype=dtype, device=device)
    return (1 - distance.abs()).clamp(min=0)


__all__ = [
    "concatenate_resized",
    "convolve_resized",
    "is_called_plainly",
    "is_plain_conv3x3",
    "shifted_resize_matrix",
    "upsampled_convolution",
]
