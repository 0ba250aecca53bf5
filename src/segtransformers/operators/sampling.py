# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Weighted bilinear samples in plain PyTorch, several times faster on a CPU than `grid_sample`.

Each corner of each point is one row of a table, so that `embedding_bag` reads and sums them all in one go, without a
tensor of samples.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional as F


def weighted_samples(
    value: torch.Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    x: Sequence[torch.Tensor],
    y: Sequence[torch.Tensor],
    weights: torch.Tensor,
) -> torch.Tensor:
    """Sum over levels and points of weight times the bilinear sample at (x, y), with zeros outside of a level.

    A corner outside reads a row of zeros, never another row with weight zero: what is stored elsewhere may be NaN. A
    place that is not finite gives NaN for its query and head, as with `grid_sample`.

    Args:
        value: `(B, sum(h * w), heads, channels)`, the levels one after another, each row by row.
        spatial_shapes: `(h, w)` of each level.
        x, y: for each level `(B, queries, heads, points)`, in pixels of the level with pixel centres at integers.
        weights: `(B, queries, heads, levels, points)`, in the dtype of `value`.

    Returns:
        `(B, queries, heads * channels)`.
    """
    batch, tokens, heads, channels = value.shape
    queries = weights.shape[1]
    rows = torch.cat([value.flatten(0, 2), value.new_zeros(1, channels)])
    outside = batch * tokens * heads
    image = torch.arange(batch, device=value.device)[:, None, None, None] * tokens
    head = torch.arange(heads, device=value.device)[None, None, :, None]
    start = 0
    indices, factors = [], []
    for level, (height, width) in enumerate(spatial_shapes):
        column, right = _split(x[level], width)
        row, lower = _split(y[level], height)
        weight = weights[:, :, :, level]
        upper_weight, lower_weight = (1 - lower) * weight, lower * weight
        first = ((image + start + row * width + column) * heads) + head
        for vertical, row_weight in ((0, upper_weight), (1, lower_weight)):
            for lateral, fraction in ((0, 1 - right), (1, right)):
                inside = (row + vertical >= 0) & (row + vertical < height)
                inside = inside & (column + lateral >= 0) & (column + lateral < width)
                index = first + (vertical * width + lateral) * heads
                indices.append(torch.where(inside, index, outside))
                factors.append(row_weight * fraction)
        start += height * width
    if not indices or weights.shape[-1] == 0:
        return rows[outside].expand(batch, queries, heads, channels).flatten(2)  # zeros, with a gradient of zeros
    index = torch.cat(indices, dim=-1).flatten(0, 2)
    factor = torch.cat(factors, dim=-1).flatten(0, 2)
    output = F.embedding_bag(index, rows, per_sample_weights=factor, mode="sum")
    return output.reshape(batch, queries, heads * channels)


def _split(place: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The last pixel not beyond `place` and the rest; what is farther than a pixel outside becomes pixel -2."""
    near = (place > -1) & (place < size)  # not where place is NaN
    bounded = torch.where(near, place, -2.0)
    pixel = bounded.detach().floor()
    return pixel.long(), (bounded - pixel) + (place - place)  # the last is 0, or NaN where place is not finite


def check_floating(**tensors: torch.Tensor) -> None:
    """
    Raises:
        ValueError: if one of these, given by its name, does not hold floating-point numbers.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must hold floating-point numbers, got {tensor.dtype}")
