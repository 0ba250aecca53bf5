# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Weighted sums of bilinear samples by gathers and arithmetic, for exported files.

`GridSample` is slow in some runtimes, wrong in others and missing in the rest. This form needs `Gather`, `MatMul` and
elementwise operators on float and int32 tensors. Each level gets a border of zeros. A table then holds the four pixels
of every cell of the level's grid in one row, so that one gather reads all corners of a sampling point, and one matrix
product sums the corners of all points of a query.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

BORDER = 2  # pixels of zeros: a cell that is outside of a level has four corners there
CORNERS = 4
SAMPLE_BYTES = 2**23  # of samples at once, so that they stay in the cache of the processor until they are summed


def split_position(position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split float positions into whole pixels, int32, and fractions.

    A position that is not finite has the fraction NaN.
    """
    pixel = position.floor()
    return pixel.int(), position - pixel


def gathered_samples(
    value: torch.Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    columns: tuple[torch.Tensor, torch.Tensor],
    rows: tuple[torch.Tensor, torch.Tensor],
    weights: torch.Tensor,
) -> torch.Tensor:
    """Sum weight times bilinear sample over levels and points; values outside a level are zero.

    Args:
        value: `(B, sum(h * w), heads, channels)`, the levels one after another, each row by row.
        spatial_shapes: `(h, w)` of each level.
        columns, rows: whole pixels, int32, and fractions of the sampling points, each
            `(B, queries, heads * levels * points)`, see [`split_position`]. Pixels of any size are valid.
        weights: in the same shape.

    Returns:
        `(B, queries, heads * channels)`.
    """
    batch, _, heads, channels = value.shape
    queries = weights.shape[1]
    taps = weights.shape[2] // heads  # levels * points
    points = taps // len(spatial_shapes)
    if taps == 0:
        return value.new_zeros((batch, queries, heads * channels))
    table, starts = _cell_table(value, spatial_shapes)

    def by_tap(numbers: Sequence[int]) -> torch.Tensor:
        """Repeat one number of each level for all heads and points, `(heads * levels * points,)`."""
        each = [torch.full((points,), number, dtype=torch.int32, device=value.device) for number in numbers]
        return torch.cat(each).repeat(heads)

    # not `clamp`, because TensorRT clips no integers
    least = torch.full((1,), -BORDER, dtype=torch.int32, device=value.device)
    row = torch.minimum(torch.maximum(rows[0], least), by_tap([height for height, _ in spatial_shapes]))
    column = torch.minimum(torch.maximum(columns[0], least), by_tap([width for _, width in spatial_shapes]))
    cell = row * by_tap([_padded_width(width) for _, width in spatial_shapes]) + column
    # first cell of the image, plus the cell (0, 0) of the level, plus the head
    image = _integers(0, batch, value.device)[:, None, None] * table.shape[1]
    head = _integers(0, heads, value.device)[:, None].expand(-1, taps).flatten()
    index = cell * heads + (image + (by_tap(starts) * heads + head))

    lower = weights * rows[1]
    upper = weights - lower
    upper_right, lower_right = upper * columns[1], lower * columns[1]
    factors = torch.stack([upper - upper_right, upper_right, lower - lower_right, lower_right], dim=-1)
    factors = factors.reshape(-1, 1, taps * CORNERS).to(table.dtype)
    index, table = index.flatten(), table.flatten(0, 1)
    outputs = []
    for part in _parts(factors.shape[0], taps * table.shape[1] * table.element_size()):
        samples = table.index_select(0, index[part.start * taps : part.stop * taps] if part else index)
        outputs.append((factors[part] if part else factors) @ samples.reshape(-1, taps * CORNERS, channels))
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return output.reshape(batch, queries, heads * channels)


def _parts(queries: int, size: int) -> list[slice | None]:
    """Divide queries into parts whose samples have `SAMPLE_BYTES` together. None stands for all queries.

    Slices are used because ONNX Runtime does not find the long list of sizes of a split.

    Args:
        queries: a symbol if the exported file takes any number of images or any size; it is not divided then.
        size: bytes of the samples of a query.
    """
    step = max(SAMPLE_BYTES // size, 1)
    if not isinstance(queries, int) or step >= queries:
        return [None]
    return [slice(start, min(start + step, queries)) for start in range(0, queries, step)]


def _padded_width(width: int) -> int:
    return width + 2 * BORDER


def _cell_table(value: torch.Tensor, spatial_shapes: Sequence[tuple[int, int]]) -> tuple[torch.Tensor, list[int]]:
    """Return the corners of all cells, and for each level the cell whose upper left corner is its pixel (0, 0).

    Returns:
        `(B, cells * heads, 4 * channels)`: upper left, upper right, lower left and lower right pixel. The cells of a
        level are numbered row by row over the padded level. Those at its right and lower edge are never read.
    """
    batch, _, heads, channels = value.shape
    levels, indices, starts = [], [], []
    start = pixels = cells = 0
    for height, width in spatial_shapes:
        level = value[:, start : start + height * width].reshape(batch, height, width, heads * channels)
        levels.append(F.pad(level, (0, 0, BORDER, BORDER, BORDER, BORDER)).reshape(batch, -1, channels))
        side = _padded_width(width)
        count = (height + 2 * BORDER - 1) * side - 1  # the last one has corners up to the last pixel
        first = [(pixels + corner) * heads for corner in (0, 1, side, side + 1)]
        indices.append(torch.stack([_integers(row, row + count * heads, value.device) for row in first], dim=1))
        starts.append(cells + BORDER * side + BORDER)
        start += height * width
        pixels += (height + 2 * BORDER) * side
        cells += count
    padded = levels[0] if len(levels) == 1 else torch.cat(levels, dim=1)
    index = indices[0] if len(indices) == 1 else torch.cat(indices)
    table = padded.index_select(1, index.flatten())
    return table.reshape(batch, -1, CORNERS * channels), starts


def _integers(start: int, stop: int, device: torch.device) -> torch.Tensor:
    return torch.arange(start, stop, dtype=torch.int32, device=device)


__all__ = ["gathered_samples", "split_position"]
