# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""3x3 convolutions with 2.25 instead of 9 multiplications per output pixel: Winograd's minimal filtering F(4x4, 3x3).

Source: Fast Algorithms for Convolutional Neural Networks (https://arxiv.org/abs/1509.09308). A tile of 6x6 input pixels
gives 4x4 output pixels: 36 sums of the input are multiplied with 36 sums of the weights, and sums of the products are
the output. Channels are last, so that sums run over long rows and the products are matrix products.

The sums are evaluations of polynomials at 0, A, -A, B, -B and infinity. A = 3/4 and B = 3/2 are exact in floating point
and round less than the usual 1 and 2. A layer of 512 channels had an error of 7e-7 with compiled sums and 1.3e-6 with
PyTorch's, in relative L2; a direct convolution has 5e-7. In bfloat16 the sums of the input and of the weights are
rounded, and the error of a layer is 4e-3 to 1.2e-2 (direct: 2e-3). Logits of ViT-Adapter-T and InternImage-T with
random weights had errors of 8.1e-3 and 1.18e-2 instead of 8.0e-3 and 1.14e-2.
"""

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import nn
from torch.nn import functional as F

from ...operators import dispatcher
from ..upernet.upsampled_convolution import is_plain_conv3x3
from .onednn_linear import mkl_is_slow, packed_products, product_into
from .packed_layers import matrix_operators_for, pack
from .replacement import is_on_cpu, is_plain, replace_modules, runs_float32_on_cpu

A, B = 0.75, 1.5
TILE, SUMS = 4, 6  # sides of a tile of output and input pixels
# of input and output: the products grow with both, the sums with one of them
MIN_CHANNELS = 256
MIN_CHANNELS_PACKED = 64  # with sums and products by the kernel
MIN_PIXELS = 4096  # without compiled operators
MIN_PIXELS_COMPILED = 1024
TILES_PER_STEP = 128  # so that the sums and products of a step stay in a CPU's cache
PADDING = 64  # elements between the planes of sums, which would else be powers of two apart and share cache lines


class WinogradConvolution(nn.Module):
    """A 3x3 convolution with padding 1 by minimal filtering, where the input is large enough.

    Args:
        convolution: the direct convolution.
    """

    def __init__(self, convolution: nn.Conv2d):
        super().__init__()
        weight = convolution.weight.detach()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", None if convolution.bias is None else convolution.bias.detach())
        filters = transformed_filters(weight)
        self.register_buffer("filters", pack(filters) if _can_pack(weight) else filters)

    @property
    def is_packed(self) -> bool:
        """Return whether the filters are packed, which adds a dimension."""
        return self.filters.dim() == 4

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map `(B, C_in, H, W)` to `(B, C_out, H, W)`."""
        dense = dispatcher.dense_operators(features, *self.weight.shape[:2])
        matrix = matrix_operators_for(self.filters, features) if self.is_packed else None
        if self._serves(features, dense, matrix):
            return winograd_convolution(features, self.filters, self.weight.shape[0], self.bias, dense, matrix)
        return F.conv2d(features, self.weight, self.bias, padding=1)

    def _serves(self, features: torch.Tensor, dense: ModuleType | None, matrix: ModuleType | None) -> bool:
        if self.is_packed and (dense is None or matrix is None):
            return False
        if not self.is_packed and not (
            runs_float32_on_cpu(features) and (torch.get_num_threads() > 1 or not mkl_is_slow())
        ):
            return False
        pixels = features.shape[0] * features.shape[2] * features.shape[3]
        return pixels >= (MIN_PIXELS if dense is None else MIN_PIXELS_COMPILED)


def transformed_filters(weight: torch.Tensor) -> torch.Tensor:
    """Return the 36 sums `(36, C_out, C_in)` of weights `(C_out, C_in, 3, 3)`, row by row of the 6x6 tile."""
    points = [0.0, A, -A, B, -B]
    sums = []
    for index, point in enumerate(points):
        factor = 1.0
        for other in points[:index] + points[index + 1 :]:
            factor *= point - other
        sums.append([power / factor for power in (1.0, point, point**2)])
    sums.append([0.0, 0.0, 1.0])
    matrix = torch.tensor(sums, dtype=torch.float64, device=weight.device)
    taps = weight.double().permute(2, 3, 0, 1).flatten(2)  # (3, 3, C_out * C_in)
    return (torch.kron(matrix, matrix) @ taps.flatten(0, 1)).view(-1, *weight.shape[:2]).to(weight.dtype)


def winograd_convolution(
    features: torch.Tensor,
    filters: torch.Tensor,
    out_channels: int,
    bias: torch.Tensor | None,
    dense: ModuleType | None = None,
    matrix: ModuleType | None = None,
) -> torch.Tensor:
    """Compute a 3x3 convolution with padding 1.

    Args:
        features: `(B, C_in, H, W)`, float32; bfloat16 only with both of the kernel's modules.
        filters: [`transformed_filters`], packed if `matrix` is given.
        bias: `(C_out,)`.
        dense: the kernel's operators ([`dispatcher.dense_operators`]); None computes the sums in PyTorch.
        matrix: the kernel's products ([`dispatcher.matrix_operators`]); None multiplies in PyTorch.

    Returns:
        `(B, C_out, H, W)` with channels last.
    """
    pixels = features.permute(0, 2, 3, 1).contiguous()
    batch, height, width, channels = pixels.shape
    tile_rows, tile_columns = -(-height // TILE), -(-width // TILE)
    rows_per_step = min(max(TILES_PER_STEP // tile_columns, 1), tile_rows)
    output = pixels.new_empty((batch, height, width, out_channels))
    zeros = pixels.new_zeros(channels)
    bias = pixels.new_zeros(out_channels) if bias is None else bias
    most = rows_per_step * tile_columns
    sum_memory = pixels.new_empty((SUMS**2, most * channels + PADDING))
    wide = torch.float32 if pixels.dtype == torch.bfloat16 else pixels.dtype
    product_memory = pixels.new_empty((SUMS**2, most * out_channels + PADDING), dtype=wide)
    for image in range(batch):
        for first_row in range(0, tile_rows, rows_per_step):
            count = min(rows_per_step, tile_rows - first_row) * tile_columns
            sums = sum_memory[:, : count * channels].unflatten(1, (count, channels))
            products = product_memory[:, : count * out_channels].unflatten(1, (count, out_channels))
            if dense is None:
                _sum_inputs(pixels[image], first_row, sums.unflatten(1, (-1, tile_columns)))
            else:
                dense.winograd_inputs(pixels, zeros, image, first_row, sums)
            if matrix is None:
                for one, kernel, product in zip(sums, filters, products, strict=True):
                    product_into(one, kernel, product)
            else:
                matrix.product(sums, filters, products[:, None])
            if dense is None:
                _sum_products(products.unflatten(1, (-1, tile_columns)), bias, output[image], first_row)
            else:
                dense.winograd_outputs(products, bias, image, first_row, False, output)
    return output.permute(0, 3, 1, 2)


def _sum_inputs(image: torch.Tensor, first_row: int, sums: torch.Tensor) -> None:
    """Write the input sums `(36, rows, tile_columns, C)` of some rows of tiles of an image `(H, W, C)`."""
    height, width, channels = image.shape
    _, rows, tile_columns, _ = sums.shape
    top = first_row * TILE - 1
    padded = image.new_zeros((rows * TILE + 2, tile_columns * TILE + 2, channels))
    first, last = max(top, 0), min(top + padded.shape[0], height)
    padded[first - top : last - top, 1 : width + 1] = image[first:last]
    row_sums = image.new_empty((SUMS, rows, padded.shape[1], channels))
    _input_sums([padded[index : index + TILE * rows : TILE] for index in range(SUMS)], row_sums)
    columns = [row_sums[:, :, index : index + TILE * tile_columns : TILE] for index in range(SUMS)]
    _input_sums(columns, sums.unflatten(0, (SUMS, SUMS)).transpose(0, 1))


def _input_sums(lines: Sequence[torch.Tensor], sums: torch.Tensor) -> None:
    """Write the six sums of six lines of a tile into `sums[0]` to `sums[5]`."""
    first, second, third, fourth, fifth, sixth = lines
    for pair, point, other in ((sums[1:3], A, B), (sums[3:5], B, A)):
        even = torch.sub(fifth, third, alpha=other**2)
        odd = torch.sub(fourth, second, alpha=other**2)
        torch.add(even, odd, alpha=point, out=pair[0])
        torch.sub(even, odd, alpha=point, out=pair[1])
    torch.sub(fifth, third, alpha=A**2 + B**2, out=sums[0]).add_(first, alpha=(A * B) ** 2)
    torch.sub(sixth, fourth, alpha=A**2 + B**2, out=sums[5]).add_(second, alpha=(A * B) ** 2)


def _sum_products(products: torch.Tensor, bias: torch.Tensor, output: torch.Tensor, first_row: int) -> None:
    """Write the output pixels of products `(36, rows, tile_columns, C)` into an image `(H, W, C)`."""
    height, width, channels = output.shape
    _, rows, tile_columns, _ = products.shape
    lines = products.new_empty((TILE, SUMS, rows, tile_columns, channels))
    _output_sums(products.unflatten(0, (SUMS, SUMS)), lines)
    pixels = products.new_empty((rows, TILE, tile_columns, TILE, channels))
    _output_sums(lines.transpose(0, 1), pixels.permute(3, 1, 0, 2, 4))
    end = min((first_row + rows) * TILE, height)
    part = output[first_row * TILE : end]
    torch.add(pixels.view(rows * TILE, tile_columns * TILE, channels)[: len(part), :width], bias, out=part)


def _output_sums(products: torch.Tensor, sums: torch.Tensor) -> None:
    """Write the four sums of `products[0]` to `products[5]` into `sums[0]` to `sums[3]`."""
    even_a, odd_a = products[1] + products[2], products[1] - products[2]
    even_b, odd_b = products[3] + products[4], products[3] - products[4]
    torch.add(even_a, even_b, out=sums[0]).add_(products[0])
    torch.mul(odd_a, A, out=sums[1]).add_(odd_b, alpha=B)
    torch.mul(even_a, A**2, out=sums[2]).add_(even_b, alpha=B**2)
    torch.mul(odd_a, A**3, out=sums[3]).add_(odd_b, alpha=B**3).add_(products[5])


def use_winograd(model: nn.Module) -> int:
    """Replace 3x3 convolutions of enough channels on a CPU."""
    return replace_modules(model, _replacement) if is_on_cpu(model) else 0


def _replacement(module: nn.Module) -> nn.Module | None:
    if not (is_plain(module, nn.Conv2d) and is_plain_conv3x3(module)):
        return None
    if _can_pack(module.weight):
        least = MIN_CHANNELS_PACKED
    elif module.weight.dtype in (torch.float32, torch.float64):
        least = MIN_CHANNELS
    else:
        return None
    return WinogradConvolution(module) if min(module.in_channels, module.out_channels) >= least else None


def _can_pack(weight: torch.Tensor) -> bool:
    """Return whether the kernel computes both the products and the sums."""
    dense = dispatcher.dense_operators(weight, *weight.shape[:2])
    return dense is not None and packed_products(weight.dtype) is not None


__all__ = ["WinogradConvolution", "transformed_filters", "use_winograd", "winograd_convolution"]
