# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""3x3 convolutions with 4 instead of 9 multiplications per output pixel: Winograd's minimal filtering F(2x2, 3x3).

Source: Fast Algorithms for Convolutional Neural Networks (https://arxiv.org/abs/1509.09308). A tile of 4x4 input pixels
gives 2x2 output pixels: 16 sums of the input are multiplied with 16 sums of the weights, and sums of the products are
the output. Channels are last, so that sums run over long rows and the products are matrix products. All factors are 1
or 1/2, and rounding grows to about twice that of a direct convolution. F(4x4, 3x3) would need 2.25 multiplications but
rounds three to six times as much, so it is not used.
"""

import torch
from torch import nn
from torch.nn import functional as F

from ..upernet.upsampled_convolution import is_plain_conv3x3
from .onednn_linear import linear, mkl_is_slow
from .replacement import is_on_cpu, is_plain, replace_modules, runs_float32_on_cpu

MIN_CHANNELS = 384  # of input and output: the products grow with both, the sums with one of them
MIN_PIXELS = 4096
TILES_PER_STEP = 768  # so that the sums and products of a step stay in a CPU's cache


class WinogradConvolution(nn.Module):
    """A 3x3 convolution with padding 1 by minimal filtering, where the input is large enough and has even sides.

    Args:
        convolution: the direct convolution.
    """

    def __init__(self, convolution: nn.Conv2d):
        super().__init__()
        self.register_buffer("weight", convolution.weight.detach())
        self.register_buffer("bias", None if convolution.bias is None else convolution.bias.detach())
        self.register_buffer("filters", transformed_filters(convolution.weight.detach()))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map `(B, C_in, H, W)` to `(B, C_out, H, W)`."""
        batch, _, height, width = features.shape
        if (
            runs_float32_on_cpu(features)
            and height % 2 == width % 2 == 0
            and batch * height * width >= MIN_PIXELS
            and (torch.get_num_threads() > 1 or not mkl_is_slow())
        ):
            return winograd_convolution(features, self.filters, self.bias)
        return F.conv2d(features, self.weight, self.bias, padding=1)


def transformed_filters(weight: torch.Tensor) -> torch.Tensor:
    """Return the 16 sums `(16, C_out, C_in)` of weights `(C_out, C_in, 3, 3)`, row by row of the 4x4 tile."""
    sums = weight.new_tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
    taps = weight.permute(2, 3, 0, 1).flatten(2)  # (3, 3, C_out * C_in)
    return (torch.kron(sums, sums) @ taps.flatten(0, 1)).view(16, *weight.shape[:2])


def winograd_convolution(features: torch.Tensor, filters: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Compute a 3x3 convolution with padding 1 of an image with even sides.

    Args:
        features: `(B, C_in, H, W)`.
        filters: [`transformed_filters`].
        bias: `(C_out,)`.

    Returns:
        `(B, C_out, H, W)` with channels last.
    """
    batch, channels, height, width = features.shape
    out_channels, tile_columns = filters.shape[1], width // 2
    rows_per_step = min(max(TILES_PER_STEP // tile_columns, 1), height // 2)  # rows of tiles
    output = features.new_empty((batch, height, width, out_channels))
    padded = features.new_zeros((2 * rows_per_step + 2, width + 2, channels))
    row_sums = features.new_empty((4, rows_per_step, width + 2, channels))
    tiles = features.new_empty((4, 4, rows_per_step, tile_columns, channels))
    column_sums = features.new_empty((2, 4, rows_per_step, tile_columns, out_channels))
    for image, result in zip(features.permute(0, 2, 3, 1), output, strict=True):
        for start in range(0, height, 2 * rows_per_step):
            end = min(start + 2 * rows_per_step, height)
            count = (end - start) // 2
            part = padded[: end - start + 2]
            part[0], part[-1] = 0, 0
            above, below = int(start > 0), int(end < height)
            part[1 - above : end - start + 1 + below, 1:-1] = image[start - above : end + below]
            _sum_inputs(part, 0, row_sums[:, :count])
            _sum_inputs(row_sums[:, :count], 2, tiles[:, :, :count].transpose(0, 1))
            # filter 5 carries the bias, because every output pixel sums its product exactly once
            products = [
                linear(tile.flatten(0, 1), kernel, bias if index == 5 else None).unflatten(0, (count, tile_columns))
                for index, (tile, kernel) in enumerate(zip(tiles[:, :, :count].flatten(0, 1), filters, strict=True))
            ]
            for column in range(4):
                _sum_products(products[column::4], column_sums[:, column, :count])
            pixels = result[start:end].view(count, 2, tile_columns, 2, out_channels)
            for row in range(2):
                _sum_products(column_sums[row, :, :count], pixels[:, row].unbind(2))
    return output.permute(0, 3, 1, 2)


def _sum_inputs(lines: torch.Tensor, dim: int, sums: torch.Tensor) -> None:
    """Write the input sums of each tile's four lines along `dim` into `sums[0]` to `sums[3]`. Tiles overlap by 2."""
    size = lines.shape[dim] - 3
    every_second = (*[slice(None)] * dim, slice(None, None, 2))
    first, second, third, fourth = (lines.narrow(dim, index, size)[every_second] for index in range(4))
    torch.sub(first, third, out=sums[0])
    torch.add(second, third, out=sums[1])
    torch.sub(third, second, out=sums[2])
    torch.sub(second, fourth, out=sums[3])


def _sum_products(products: torch.Tensor | list[torch.Tensor], sums: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
    """Write the two output sums of four products into `sums[0]` and `sums[1]`."""
    first, second, third, fourth = products
    torch.add(second, third, out=sums[0]).add_(first)
    torch.sub(second, third, out=sums[1]).sub_(fourth)


def use_winograd(model: nn.Module) -> int:
    """Replace wide 3x3 convolutions on a CPU."""
    return replace_modules(model, _replacement) if is_on_cpu(model) else 0


def _replacement(module: nn.Module) -> nn.Module | None:
    if (
        is_plain(module, nn.Conv2d)
        and is_plain_conv3x3(module)
        and min(module.in_channels, module.out_channels) >= MIN_CHANNELS
    ):
        return WinogradConvolution(module)
    return None


__all__ = ["WinogradConvolution", "transformed_filters", "use_winograd", "winograd_convolution"]
