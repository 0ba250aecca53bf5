# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Deformable convolutions v3 and v4, the cores of InternImage and FlashInternImage, without their linear projections.

Sources: DCNv3 is equation 3 of InternImage (https://arxiv.org/abs/2211.05778), and
`classification/ops_dcnv3/functions/dcnv3_func.py` of OpenGVLab/InternImage. DCNv4 (https://arxiv.org/abs/2401.06197) is
`DCNv4_op/src/cuda/dcnv4_im2col_cuda.cuh` of OpenGVLab/DCNv4: DCNv3 with offsets and weights packed in one tensor.
"""

from collections.abc import Sequence

import torch
from kernels import use_kernel_forward_from_hub
from torch import nn
from torch.nn import functional as F

from . import dispatcher
from .gathering import gathered_samples, split_position
from .sampling import bounded_grid, check_floating, weighted_samples


def dcnv3_reference(
    value: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    offset_scale: float,
    remove_center: bool,
) -> torch.Tensor:
    """Sum weighted bilinear samples around every output pixel, in plain PyTorch.

    The points of the kernel are numbered column by column, each column from top to bottom. Point (row, column) of
    output pixel (i, j) samples at
    `y = i * stride - padding + middle + ((row * dilation - middle) + offset_y) * offset_scale` with
    `middle = dilation * (kernel - 1) // 2`, and `x` likewise, in pixels of `value` with pixel centres at integers.
    So `offset_scale` scales the kernel's grid as well as the offsets. Values outside of `value` are zero.

    All arithmetic runs in float32, or in float64 if any argument is float64, because coordinates in half precision
    would be off by whole pixels. An offset that is not finite gives NaN for its output pixel and group; a finite one of
    any size is outside.

    Args:
        value: `(B, H, W, groups * channels)`, not padded.
        offset: `(B, h, w, groups * points * 2)`, pairs (x, y) in pixels; `points` is the kernel's area, minus one with
            `remove_center`, and `h = (H + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1`.
        mask: `(B, h, w, groups * points)`, the weights, used as they are.
        kernel_size, stride, padding, dilation: (height, width).
        groups: number of equal parts of the channels; each part has its own offsets and weights.
        offset_scale: distance between neighbouring points of the kernel, divided by `dilation`.
        remove_center: leave out the middle point of the kernel.

    Returns:
        `(B, h, w, groups * channels)` in the dtype of `value`.

    Raises:
        ValueError: if an argument is out of range, the shapes do not fit together, or a tensor does not hold
            floating-point numbers.
    """
    locations, offset, mask = _locations(
        value, offset, mask, kernel_size, stride, padding, dilation, groups, offset_scale, remove_center
    )
    batch, height, width, _, points, _ = locations.shape
    value_height, value_width = value.shape[1:3]
    dtype = locations.dtype
    sides = torch.tensor([value_width, value_height], dtype=dtype, device=value.device)
    # grid_sample: -1 and 1 are the outer edges
    grids = bounded_grid((2 * locations + 1) / sides - 1, offset)
    grids = grids.permute(0, 3, 4, 1, 2, 5).reshape(batch * groups, points, height * width, 2)
    weights = mask.permute(0, 3, 4, 1, 2).reshape(batch * groups, 1, points, height * width)
    values = value.to(dtype).unflatten(3, (groups, -1)).permute(0, 3, 4, 1, 2).flatten(0, 1)
    output = value.new_zeros((), dtype=dtype)
    column = kernel_size[0]  # a compromise: all points at once need more memory, single points more calls
    for grid, weight in zip(grids.split(column, dim=1), weights.split(column, dim=2), strict=True):
        samples = F.grid_sample(values, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        output = output + (samples * weight).sum(2)  # (B * groups, channels, h * w)
    output = output.unflatten(0, (batch, groups)).flatten(1, 2)
    return output.transpose(1, 2).unflatten(1, (height, width)).to(value.dtype)


def dcnv3_fallback(
    value: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    offset_scale: float,
    remove_center: bool,
) -> torch.Tensor:
    """Compute [`dcnv3_reference`] by [`weighted_samples`], in eager mode and with torch.compile."""
    locations, offset, mask = _locations(
        value, offset, mask, kernel_size, stride, padding, dilation, groups, offset_scale, remove_center
    )
    height, width = locations.shape[1:3]
    x, y = locations.flatten(1, 2).unbind(-1)  # (B, h * w, groups, points)
    rows = value.to(locations.dtype).flatten(1, 2).unflatten(2, (groups, -1))
    weights = mask.flatten(1, 2)[:, :, :, None]
    sources = [offset.flatten(1, 2)]
    output = weighted_samples(rows, [(value.shape[1], value.shape[2])], [x], [y], weights, sources)
    return output.unflatten(1, (height, width)).to(value.dtype)


def dcnv3_gather(
    value: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    offset_scale: float,
    remove_center: bool,
) -> torch.Tensor:
    """Compute [`dcnv3_reference`] by [`gathered_samples`], for exported files."""
    points = _check_kernel(kernel_size, stride, padding, dilation, groups, remove_center)
    height, width = _check_shapes(value, offset, mask, kernel_size, stride, padding, dilation, groups, points)
    dtype = _arithmetic_dtype(value, offset, mask)
    kernel = kernel_points(kernel_size, dilation, remove_center, dtype, value.device)
    relative = (kernel + offset.to(dtype).unflatten(3, (groups, points, 2))) * offset_scale
    x, y = (one.flatten(1, 2).flatten(2) for one in relative.unbind(-1))
    weights = mask.flatten(1, 2)
    return convolution_samples(value, x, y, weights, (height, width), stride, padding, dilation, kernel_size, groups)


def convolution_samples(
    value: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    weights: torch.Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    kernel_size: Sequence[int],
    groups: int,
) -> torch.Tensor:
    """Sum weighted samples around every output pixel by [`gathered_samples`].

    Args:
        value: `(B, H, W, groups * channels)`.
        x, y: `(B, h * w, groups * points)`, in pixels relative to the middle of the kernel. Their fractions are exact,
            because the middles are whole numbers, which are added to the whole pixels.
        weights: in the same shape.
        size: (h, w).

    Returns:
        `(B, h, w, groups * channels)` in the dtype of `value`.
    """
    middles = []
    for axis in (0, 1):
        first = dilation[axis] * (kernel_size[axis] - 1) // 2 - padding[axis]
        steps = torch.arange(size[axis], dtype=torch.int32, device=value.device)
        middles.append(steps * stride[axis] + first if stride[axis] > 1 or first else steps)
    row_middles = middles[0][:, None].expand(-1, size[1]).reshape(1, -1, 1)
    column_middles = middles[1][None].expand(size[0], -1).reshape(1, -1, 1)
    dtype = _arithmetic_dtype(value, x, weights)
    columns, rows = split_position(x.to(dtype)), split_position(y.to(dtype))
    tokens = value.to(dtype).flatten(1, 2).unflatten(2, (groups, -1))
    output = gathered_samples(
        tokens,
        [(value.shape[1], value.shape[2])],
        (columns[0] + column_middles, columns[1]),
        (rows[0] + row_middles, rows[1]),
        weights.to(dtype),
    )
    return output.unflatten(1, tuple(size)).to(value.dtype)


PACKED_MULTIPLE = 8  # the width of DCNv4's packed tensor is rounded up to a multiple of this


def packed_width(groups: int, points: int) -> int:
    """Return the number of DCNv4's offsets and weights of an output pixel, with unused numbers at the end."""
    return -(-groups * points * 3 // PACKED_MULTIPLE) * PACKED_MULTIPLE


def dcnv4_reference(
    value: torch.Tensor,
    offset_mask: torch.Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    offset_scale: float,
    remove_center: bool,
) -> torch.Tensor:
    """Compute [`dcnv3_reference`] with offsets and weights in one tensor, each image of the batch by itself.

    Args:
        offset_mask: `(B, h, w, packed_width(groups, points))`. Each group has its `points * 2` offsets, pairs (x, y) in
            pixels, and then its `points` weights, which are used as they are. The numbers after the last group are
            not read.

    Raises:
        ValueError: if an argument is out of range, the shapes do not fit together, or a tensor does not hold
            floating-point numbers.
    """
    offset, mask = _unpacked(value, offset_mask, kernel_size, stride, padding, dilation, groups, remove_center)
    return dcnv3_reference(
        value, offset, mask, kernel_size, stride, padding, dilation, groups, offset_scale, remove_center
    )


def dcnv4_fallback(
    value: torch.Tensor,
    offset_mask: torch.Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    offset_scale: float,
    remove_center: bool,
) -> torch.Tensor:
    """Compute [`dcnv4_reference`] as [`dcnv3_fallback`] computes DCNv3."""
    offset, mask = _unpacked(value, offset_mask, kernel_size, stride, padding, dilation, groups, remove_center)
    return dcnv3_fallback(
        value, offset, mask, kernel_size, stride, padding, dilation, groups, offset_scale, remove_center
    )


def dcnv4_gather(
    value: torch.Tensor,
    offset_mask: torch.Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    offset_scale: float,
    remove_center: bool,
) -> torch.Tensor:
    """Compute [`dcnv4_reference`] as [`dcnv3_gather`] computes DCNv3."""
    offset, mask = _unpacked(value, offset_mask, kernel_size, stride, padding, dilation, groups, remove_center)
    return dcnv3_gather(
        value, offset, mask, kernel_size, stride, padding, dilation, groups, offset_scale, remove_center
    )


def _unpacked(
    value, offset_mask, kernel_size, stride, padding, dilation, groups, remove_center
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return offset and mask of DCNv3."""
    points = _check_kernel(kernel_size, stride, padding, dilation, groups, remove_center)
    check_floating(offset_mask=offset_mask)
    height, width = _output_size(value, kernel_size, stride, padding, dilation, groups)
    expected = (value.shape[0], height, width, packed_width(groups, points))
    if tuple(offset_mask.shape) != expected:
        raise ValueError(
            "offset_mask must be (batch, height, width, groups * points * 3 rounded up to a multiple of "
            f"{PACKED_MULTIPLE}) = {expected}, got {tuple(offset_mask.shape)}"
        )
    numbers = offset_mask[..., : groups * points * 3].unflatten(3, (groups, points * 3))
    return numbers[..., : points * 2].flatten(3), numbers[..., points * 2 :].flatten(3)


def _locations(value, offset, mask, kernel_size, stride, padding, dilation, groups, offset_scale, remove_center):
    """Return sampling locations `(B, h, w, groups, points, 2)` in pixels of `value`, and offset and mask in that shape.

    All are float32, or float64 if any argument is float64.
    """
    points = _check_kernel(kernel_size, stride, padding, dilation, groups, remove_center)
    height, width = _check_shapes(value, offset, mask, kernel_size, stride, padding, dilation, groups, points)
    dtype = _arithmetic_dtype(value, offset, mask)

    def centres_along(axis: int, count: int) -> torch.Tensor:
        """Return the centres of the output pixels along an axis."""
        middle = dilation[axis] * (kernel_size[axis] - 1) // 2
        return torch.arange(count, dtype=dtype, device=value.device) * stride[axis] + (middle - padding[axis])

    centres_y, centres_x = centres_along(0, height), centres_along(1, width)
    kernel = kernel_points(kernel_size, dilation, remove_center, dtype, value.device)
    centres = torch.stack(torch.meshgrid(centres_x, centres_y, indexing="xy"), dim=-1)  # (h, w, 2)
    offset = offset.to(dtype).unflatten(3, (groups, points, 2))
    locations = centres[:, :, None, None] + (kernel + offset) * offset_scale
    return locations, offset, mask.to(dtype).unflatten(3, (groups, points))


def kernel_points(
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    remove_center: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> torch.Tensor:
    """Return (x, y) of the kernel's points relative to its middle, `(points, 2)`, column by column."""
    y, x = (
        torch.arange(kernel_size[axis], dtype=dtype, device=device) * dilation[axis]
        - dilation[axis] * (kernel_size[axis] - 1) // 2
        for axis in (0, 1)
    )
    kernel = torch.stack(torch.meshgrid(x, y, indexing="ij"), dim=-1).flatten(0, 1)
    middle = len(kernel) // 2
    return torch.cat([kernel[:middle], kernel[middle + 1 :]]) if remove_center else kernel


def _arithmetic_dtype(*tensors: torch.Tensor) -> torch.dtype:
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def _check_kernel(kernel_size, stride, padding, dilation, groups, remove_center) -> int:
    """Check the kernel's settings and return its number of points."""
    for name, pair, least in (
        ("kernel_size", kernel_size, 1),
        ("stride", stride, 1),
        ("padding", padding, 0),
        ("dilation", dilation, 1),
    ):
        if not isinstance(pair, Sequence) or len(pair) != 2 or min(pair) < least:
            raise ValueError(f"{name} must be (height, width), each at least {least}, got {pair}")
    if groups < 1:
        raise ValueError(f"groups must be at least 1, got {groups}")
    points = kernel_size[0] * kernel_size[1]
    if remove_center and (points % 2 == 0 or points == 1):
        raise ValueError(f"remove_center needs a kernel with odd sides, larger than 1x1, got {tuple(kernel_size)}")
    return points - int(remove_center)


def _check_shapes(value, offset, mask, kernel_size, stride, padding, dilation, groups, points) -> tuple[int, int]:
    """Check the tensors and return height and width of the output."""
    check_floating(value=value, offset=offset, mask=mask)
    height, width = _output_size(value, kernel_size, stride, padding, dilation, groups)
    for name, tensor, each in (("offset", offset, 2), ("mask", mask, 1)):
        expected = (value.shape[0], height, width, groups * points * each)
        if tuple(tensor.shape) != expected:
            raise ValueError(
                f"{name} must be (batch, height, width, groups * points{' * 2' if each == 2 else ''}) = {expected}, "
                f"got {tuple(tensor.shape)}"
            )
    return height, width


def _output_size(value, kernel_size, stride, padding, dilation, groups) -> tuple[int, int]:
    """Check `value` and return height and width of the output."""
    if value.dim() != 4 or value.shape[3] % groups:
        raise ValueError(
            f"value must be (batch, height, width, channels) with channels in {groups} equal groups, got "
            f"{tuple(value.shape)}"
        )
    height, width = (
        (value.shape[1 + axis] + 2 * padding[axis] - dilation[axis] * (kernel_size[axis] - 1) - 1) // stride[axis] + 1
        for axis in (0, 1)
    )
    if min(height, width) < 1 or min(value.shape[1:3]) < 1:
        raise ValueError(
            f"value {tuple(value.shape)} is smaller than the kernel {tuple(kernel_size)} with padding {tuple(padding)} "
            f"and dilation {tuple(dilation)}"
        )
    return height, width


@use_kernel_forward_from_hub("DeformableConvolutionV3")
class DeformableConvolutionV3(nn.Module):
    """DCNv3's sampling as a layer without parameters. [`dispatcher`] selects the implementation."""

    def __init__(self) -> None:
        super().__init__()
        dispatcher.prepare()

    def forward(
        self,
        value: torch.Tensor,
        offset: torch.Tensor,
        mask: torch.Tensor,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        offset_scale: float,
        remove_center: bool,
    ) -> torch.Tensor:
        """See [`dcnv3_reference`]."""
        implementation = dispatcher.choose(
            "dcnv3", value, fallback=dcnv3_fallback, reference=dcnv3_reference, gather=dcnv3_gather
        )
        return implementation(
            value, offset, mask, kernel_size, stride, padding, dilation, groups, offset_scale, remove_center
        )


@use_kernel_forward_from_hub("DeformableConvolutionV4")
class DeformableConvolutionV4(nn.Module):
    """DCNv4's sampling as a layer without parameters. [`dispatcher`] selects the implementation."""

    def __init__(self) -> None:
        super().__init__()
        dispatcher.prepare()

    def forward(
        self,
        value: torch.Tensor,
        offset_mask: torch.Tensor,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        offset_scale: float,
        remove_center: bool,
    ) -> torch.Tensor:
        """See [`dcnv4_reference`]."""
        implementation = dispatcher.choose(
            "dcnv4", value, fallback=dcnv4_fallback, reference=dcnv4_reference, gather=dcnv4_gather
        )
        return implementation(
            value, offset_mask, kernel_size, stride, padding, dilation, groups, offset_scale, remove_center
        )
