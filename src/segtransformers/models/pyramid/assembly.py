# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""How a pyramid backbone makes its four maps from tokens: step by step, or channels last in inference on a CPU.

Tokens are maps whose channels lie last. What changes that order, and every new map of stride 4, costs a CPU more than
the arithmetic does.
"""

from collections.abc import Sequence

import torch
from torch import nn

from ..optimize.convolutions import norm_scale_and_shift
from ..optimize.faster import in_inference_on_cpu, is_untouched, linear
from .modules_pyramid import Grid, resized, split_levels


def assembled_maps(
    upsample: nn.ConvTranspose2d,
    norms: Sequence[nn.Module],
    stride4: torch.Tensor,
    pyramid: torch.Tensor,
    grids: list[Grid],
    trunk_features: list[torch.Tensor],
) -> list[torch.Tensor]:
    """The four normalised maps `(B, C, h, w)` at strides 4, 8, 16 and 32.

    Args:
        upsample: from stride 8 to stride 4, with 2x2 kernels that do not overlap.
        norms: batch norm of each map.
        stride4: `(B, C, 2 * h_0, 2 * w_0)`.
        pyramid: tokens `(B, sum(h * w), C)` of `grids`.
        trunk_features: nothing, or what is resized and added to each map, `(B, C, h, w)` cut out of the trunk's tokens.
    """
    if _channels_last(upsample, norms, stride4, pyramid):
        return _assembled_channels_last(upsample, norms, stride4, pyramid, grids, trunk_features)
    maps = split_levels(pyramid, grids)
    maps = [upsample(maps[0]) + stride4, *maps]
    for index, feature in enumerate(trunk_features):
        maps[index] = maps[index] + resized(feature, maps[index].shape[2:])
    if maps[0].shape[0] == 1:
        # torch's batch norm on a CPU has wrong gradients for one map that is cut out of others (torch 2.14)
        maps = [map_.clone(memory_format=torch.channels_last) for map_ in maps]
    return [norm(map_) for norm, map_ in zip(norms, maps, strict=True)]


def _channels_last(
    upsample: nn.ConvTranspose2d, norms: Sequence[nn.Module], stride4: torch.Tensor, pyramid: torch.Tensor
) -> bool:
    return (
        is_untouched(upsample, nn.ConvTranspose2d)
        and in_inference_on_cpu(stride4, pyramid, upsample.weight)
        and all(
            is_untouched(norm, nn.BatchNorm2d) and not norm.training and norm.running_mean is not None for norm in norms
        )
    )


def _assembled_channels_last(
    upsample: nn.ConvTranspose2d,
    norms: Sequence[nn.Module],
    stride4: torch.Tensor,
    pyramid: torch.Tensor,
    grids: list[Grid],
    trunk_features: list[torch.Tensor],
) -> list[torch.Tensor]:
    batch, _, channels = pyramid.shape
    levels = pyramid.split([height * width for height, width in grids], dim=1)
    maps = [level.unflatten(1, grid) for level, grid in zip(levels, grids, strict=True)]  # (B, h, w, C)
    height, width = grids[0]
    # the two pixels side by side that a token gives are one row of a matrix product
    below = stride4.permute(0, 2, 3, 1).reshape(batch, height, 2, width, 2 * channels)
    finest = torch.empty_like(below)
    taps = upsample.weight.permute(2, 3, 1, 0).flatten(1, 2)  # (2, 2 * C, C)
    bias = None if upsample.bias is None else upsample.bias.repeat(2)
    for row, weight in enumerate(taps):
        torch.add(below[:, :, row], linear(maps[0], weight, bias), out=finest[:, :, row])
    maps = [finest.view(batch, 2 * height, 2 * width, channels), *maps]
    for index, feature in enumerate(trunk_features):
        # a batch of one may have any stride, and only with the usual one a resize knows that channels lie last
        tokens = feature.permute(0, 2, 3, 1).reshape(-1, channels).view(batch, *feature.shape[2:], channels)
        enlarged = resized(tokens.permute(0, 3, 1, 2), maps[index].shape[1:3]).permute(0, 2, 3, 1)
        maps[index] = maps[index].add_(enlarged) if index == 0 else maps[index] + enlarged
    normalised = []
    for norm, map_ in zip(norms, maps, strict=True):
        scale, shift = norm_scale_and_shift(norm)
        normalised.append(torch.addcmul(shift, map_, scale).permute(0, 3, 1, 2))
    return normalised


__all__ = ["assembled_maps"]
