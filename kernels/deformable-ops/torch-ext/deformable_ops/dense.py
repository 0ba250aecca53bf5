# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Dense operators for inference on a CPU: minimal filtering, bilinear resizes, softmax and labels.

Pixels are `(B, H, W, C)`: channels are last, and C is a multiple of `CHANNEL_MULTIPLE`. All tensors are contiguous.
They take float32 and bfloat16 and compute in float32; minimal filtering rounds its sums of bfloat16 inputs. These
functions have no gradients, and most write into a given tensor, so that a loop can use the same memory again.
"""

from collections.abc import Sequence

import torch

from ._ops import add_op_namespace_prefix, ops

INTERFACE = 2  # raised when arguments change, so that segtransformers leaves builds of other sources unused
CHANNEL_MULTIPLE = 16
MOST_MAPS = 8


def winograd_inputs(
    pixels: torch.Tensor, zeros: torch.Tensor, image: int, first_row: int, planes: torch.Tensor
) -> None:
    """Transform tiles of an image for minimal filtering F(4x4, 3x3) with padding 1.

    Source: Fast Algorithms for Convolutional Neural Networks (https://arxiv.org/abs/1509.09308). The interpolation
    points are 0, 3/4, -3/4, 3/2, -3/2 and infinity. Tiles of 4x4 output pixels are numbered row by row. Pixels outside
    of the image are zero.

    Args:
        pixels: `(B, H, W, C)`, float32 or bfloat16.
        zeros: `(C,)`, for pixels outside, in the type of the pixels.
        image: index in the batch.
        first_row: row of tiles.
        planes: `(36, tiles, C)` in the type of the pixels, written: plane `i * 6 + k` has row i and column k of the
            transformed tiles. The number of tiles is a multiple of the tiles in a row. The planes may be apart from
            each other in memory.

    Raises:
        RuntimeError: if shapes or dtypes do not fit together.
    """
    ops.winograd_inputs(pixels, zeros, image, first_row, planes)


def winograd_outputs(
    planes: torch.Tensor, bias: torch.Tensor, image: int, first_row: int, relu: bool, pixels: torch.Tensor
) -> None:
    """Transform products of [`winograd_inputs`] and transformed filters to output pixels.

    Args:
        planes: `(36, tiles, C)`, the products, float32.
        bias: `(C,)`, in the type of the pixels.
        relu: whether negative numbers become zero.
        pixels: `(B, H, W, C)`, float32 or bfloat16; the tiles' pixels are written.
    """
    ops.winograd_outputs(planes, bias, image, first_row, relu, pixels)


def add_resized(pixels: torch.Tensor, target: torch.Tensor) -> None:
    """Resize `pixels` `(B, h, w, C)` bilinearly, with align_corners False, and add them to `target` `(B, H, W, C)`."""
    ops.add_resized(pixels, target)


def resize_planes(planes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize `(B, C, h, w)` bilinearly, with align_corners False. Channels are first, and any number is allowed."""
    return ops.resize_planes(planes, height, width)


def add_resized_taps(products: Sequence[torch.Tensor], first_channel: int, relu: bool, target: torch.Tensor) -> None:
    """Add 3x3 convolutions with padding 1 of resized feature maps, computed from products at their own resolution.

    Args:
        products: `(B, h_i, w_i, 9, C)` for each of up to [`MOST_MAPS`] feature maps: of each pixel with each tap of the
            kernel, row by row of the kernel.
        first_channel: where the C output channels are in `target`.
        relu: whether negative sums become zero.
        target: `(B, H, W, channels)`. The resize from (h_i, w_i) to (H, W) is bilinear, with align_corners False.
    """
    ops.add_resized_taps(list(products), first_channel, relu, target)


def softmax_rows(logits: torch.Tensor) -> None:
    """Replace each row of `(N, size)` by its softmax. `size` is at most 1024."""
    ops.softmax_rows(logits)


def layer_norm_rows(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Return the layer norm of each row of `(N, C)`.

    Args:
        weight, bias: `(C,)`, in the type of the rows.
        epsilon: added to the variance of a row.
    """
    return ops.layer_norm_rows(rows, weight, bias, epsilon)


def label_windows(
    logits: torch.Tensor,
    origins: Sequence[tuple[int, int]],
    window: tuple[int, int],
    rows: tuple[int, int],
    view: tuple[int, int],
    image: tuple[int, int],
) -> torch.Tensor:
    """Return the class with the largest logit at each pixel of an image that was run in windows.

    The logits of each window are resized bilinearly to the window, with align_corners False. A view's logits are the
    means over the windows that cover a pixel, and are resized to the image in the same way. Of equal logits the first
    class is taken.

    Args:
        logits: `(N, h, w, classes)` of N windows.
        origins: the windows' first (row, column) in the view. Windows are a grid, all rows with equal columns; those
            that cover no row of the view that the wanted rows need may be missing.
        window: (height, width) of a window in pixels. What reaches over the view's borders is left out.
        rows: the first row of the image, and the one behind the last.
        view: (height, width) of the view.
        image: (height, width) of the image.

    Returns:
        int64 `(rows, image width)`.

    Raises:
        RuntimeError: if the numbers do not fit together, the windows are no grid, or they leave out a wanted pixel.
    """
    tops, lefts = [top for top, _ in origins], [left for _, left in origins]
    return ops.label_windows(logits, tops, lefts, window, rows, view, image)


def _fake_nothing(*_):
    return None


for _name in ("winograd_inputs", "winograd_outputs", "add_resized", "add_resized_taps", "softmax_rows"):
    torch.library.register_fake(add_op_namespace_prefix(_name), _fake_nothing)
torch.library.register_fake(
    add_op_namespace_prefix("resize_planes"),
    lambda planes, height, width: planes.new_empty((*planes.shape[:2], height, width)),
)
torch.library.register_fake(
    add_op_namespace_prefix("layer_norm_rows"), lambda rows, weight, bias, epsilon: torch.empty_like(rows)
)
torch.library.register_fake(
    add_op_namespace_prefix("label_windows"),
    lambda logits, tops, lefts, window, rows, view, image: logits.new_empty(
        (rows[1] - rows[0], image[1]), dtype=torch.int64
    ),
)
