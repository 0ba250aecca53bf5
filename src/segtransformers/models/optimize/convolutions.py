# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Convolutions in inference: with the norm behind them folded in, and 3x3 kernels with four multiplications instead of
nine by Winograd's minimal filtering F(2x2, 3x3).

Source: Fast Algorithms for Convolutional Neural Networks (https://arxiv.org/abs/1509.09308). A tile of 4x4 input pixels
gives 2x2 output pixels: 16 sums of the input are multiplied with 16 sums of the weights, and sums of the products are
the output. Channels lie last, so that sums go over long lines and products are those of matrices. The sums are short
and their factors 1 and 1/2: rounding grows to about twice that of the direct way. The larger variant F(4x4, 3x3) would
need 2.25 multiplications, and round three to six times as much: it is not taken.
"""

import torch
from torch import nn
from torch.nn import functional as F

from .faster import in_inference, in_inference_on_cpu, is_untouched, linear, products_are_fast

FEWEST_CHANNELS = 384  # in and out: products grow with both, sums with one of them
FEWEST_TILES = 1024
TILES_AT_ONCE = 768  # so that what is made of them stays in a CPU's cache


def folded(
    convolution: nn.Conv2d, norm: nn.BatchNorm2d, kind: type[nn.Conv2d] = nn.Conv2d
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Scale and shift `(out_channels,)`: weights times scale, with shift as bias, are the convolution and its norm.

    None where both must be called. `kind` is the class that the convolution should have.
    """
    if not (
        is_untouched(convolution, kind)
        and is_untouched(norm, nn.BatchNorm2d)
        and not norm.training
        and norm.running_mean is not None
        and convolution.padding_mode == "zeros"
        and in_inference(convolution.weight, norm.running_mean)
    ):
        return None
    scale, shift = norm_scale_and_shift(norm)
    return scale, shift if convolution.bias is None else shift + convolution.bias * scale


def norm_scale_and_shift(norm: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Both `(channels,)`: what the norm does in evaluation mode to each channel. It needs running statistics."""
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias


def conv_norm_relu(convolution: nn.Conv2d, norm: nn.BatchNorm2d, features: torch.Tensor) -> torch.Tensor:
    """The rectified norm of a convolution of `(B, C, H, W)`, in one pass over memory less where that can be."""
    scale_and_shift = folded(convolution, norm) if in_inference(features) else None
    if scale_and_shift is not None:  # on small maps the norm has less to do than what folds it
        down, across = convolution.stride
        pixels = features.shape[0] * (features.shape[2] // down) * (features.shape[3] // across)
        scale_and_shift = scale_and_shift if pixels > convolution.weight[0].numel() else None
    if scale_and_shift is None:
        return F.relu(norm(convolution(features)), inplace=True)
    scale, shift = scale_and_shift
    weight = convolution.weight * scale[:, None, None, None]
    shape = convolution.kernel_size, convolution.stride, convolution.padding, convolution.dilation, convolution.groups
    if shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1):
        output = convolution3x3(features, weight, shift)
    else:
        output = F.conv2d(features, weight, shift, *shape[1:])
    return F.relu(output, inplace=True)


def convolution3x3(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`conv2d(features, weight, bias, padding=1)` by the faster of two ways.

    Args:
        features: `(B, C, H, W)`.
        weight: `(channels, C, 3, 3)`.
        bias: `(channels,)`.
    """
    batch, channels, height, width = features.shape
    if (
        features.dtype == torch.float32
        and in_inference_on_cpu(features, weight)
        and min(channels, weight.shape[0]) >= FEWEST_CHANNELS
        and height % 2 == width % 2 == 0
        and batch * height * width >= 4 * FEWEST_TILES
        and products_are_fast()
    ):
        return winograd_convolution(features, weight, bias)
    return F.conv2d(features, weight, bias, padding=1)


def winograd_convolution(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`conv2d(features, weight, bias, padding=1)` for even sides, with the channels last."""
    batch, channels, height, width = features.shape
    wide, across = weight.shape[0], width // 2
    down = min(max(TILES_AT_ONCE // across, 1), height // 2)  # rows of tiles at once
    taps = _transformed(weight)
    output = features.new_empty((batch, height, width, wide))
    padded = features.new_zeros((2 * down + 2, width + 2, channels))
    by_rows = features.new_empty((4, down, width + 2, channels))
    tiles = features.new_empty((4, 4, down, across, channels))
    halves = features.new_empty((2, 4, down, across, wide))
    for image, result in zip(features.permute(0, 2, 3, 1), output, strict=True):
        for start in range(0, height, 2 * down):
            end = min(start + 2 * down, height)
            count = (end - start) // 2
            part = padded[: end - start + 2]
            part[0], part[-1] = 0, 0
            above, below = int(start > 0), int(end < height)
            part[1 - above : end - start + 1 + below, 1:-1] = image[start - above : end + below]
            _input_sums(part, 0, by_rows[:, :count])
            _input_sums(by_rows[:, :count], 2, tiles[:, :, :count].transpose(0, 1))
            products = [
                # the output sums have every pixel take the product of this place once: so it brings the bias
                linear(tile.flatten(0, 1), tap, bias if place == 5 else None).unflatten(0, (count, across))
                for place, (tile, tap) in enumerate(zip(tiles[:, :, :count].flatten(0, 1), taps, strict=True))
            ]
            for column in range(4):
                _output_sums(products[column::4], halves[:, column, :count])
            pixels = result[start:end].view(count, 2, across, 2, wide)
            for row in range(2):
                _output_sums(halves[row, :, :count], pixels[:, row].unbind(2))
    return output.permute(0, 3, 1, 2)


def _transformed(weight: torch.Tensor) -> torch.Tensor:
    """`(16, channels, C)`: the sums of weights `(channels, C, 3, 3)`, rows of the kernel first."""
    sums = weight.new_tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
    taps = weight.permute(2, 3, 0, 1).flatten(2)  # (3, 3, channels * C)
    return (torch.kron(sums, sums) @ taps.flatten(0, 1)).view(16, *weight.shape[:2])


def _input_sums(lines: torch.Tensor, dim: int, sums: torch.Tensor) -> None:
    """Write the four sums of every four lines along `dim`, two lines apart, into `sums[0]` to `sums[3]`."""
    size = lines.shape[dim] - 3
    first, second, third, fourth = (lines.narrow(dim, index, size)[_every_second(dim)] for index in range(4))
    torch.sub(first, third, out=sums[0])
    torch.add(second, third, out=sums[1])
    torch.sub(third, second, out=sums[2])
    torch.sub(second, fourth, out=sums[3])


def _every_second(dim: int) -> tuple[slice, ...]:
    return (*[slice(None)] * dim, slice(None, None, 2))


def _output_sums(products: torch.Tensor | list[torch.Tensor], sums: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
    """Write the two sums of four products into `sums[0]` and `sums[1]`."""
    first, second, third, fourth = products
    torch.add(second, third, out=sums[0]).add_(first)
    torch.sub(second, third, out=sums[1]).sub_(fourth)


__all__ = ["conv_norm_relu", "convolution3x3", "folded", "norm_scale_and_shift", "winograd_convolution"]
