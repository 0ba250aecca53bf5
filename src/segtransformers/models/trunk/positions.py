# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Relative position biases for any token grid, and position embeddings and tables resized to another grid.

Sources: BEiT (https://arxiv.org/abs/2106.08254); `segmentation/mmcv_custom/checkpoint.py` of czczup/ViT-Adapter.
"""

import functools

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..layers.token_grid import Grid, has_variable_size


def num_relative_positions(grid: Grid) -> int:
    """Return the number of different offsets (rows, columns) between two tokens of a grid `(h, w)`."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1)


class RelativePositionBias(nn.Module):
    """Expand a table of relative position biases to the bias on the attention logits of every head.

    The table serves the grid that it was made for and, in part, any smaller grid: the same offset keeps its bias. On a
    larger grid, the known offsets are spread in a geometric progression, finest near the middle, as the original
    spreads them when it enlarges a pre-trained table, and biases between them are interpolated linearly.

    No index of `(tokens, tokens)` is built on the way.

    Args:
        table_grid: token grid `(h', w')` that the table is made for.
        num_prefix_tokens: 0 or 1, the class token in front of the patches.
    """

    def __init__(self, table_grid: Grid, num_prefix_tokens: int):
        super().__init__()
        self.table_grid, self.num_prefix_tokens = table_grid, num_prefix_tokens

    def forward(
        self, table: torch.Tensor, grid: Grid, interpolation: tuple[torch.Tensor, torch.Tensor] | None
    ) -> torch.Tensor:
        """Return the bias `(1, heads, tokens, tokens)`, queries first, where tokens = num_prefix_tokens + h * w.

        Args:
            table: `((2 * h' - 1) * (2 * w' - 1) + 3, heads)`: query minus key, rows first; then class token to patch,
                patch to class token, class token to itself. Without prefix tokens the last three rows are missing.
            grid: `(h, w)` of the patch tokens.
            interpolation: see [`offset_interpolation`].
        """
        offsets = self.offset_biases(table, interpolation)
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or table.device.type != "cpu":
            return self._expand(table, offsets, grid)
        # no gradient flows through these writes, which take an eighth of the time on a CPU
        tokens = self.num_prefix_tokens + grid[0] * grid[1]
        bias = offsets.new_empty((1, table.shape[1], tokens, tokens))
        self.write(bias, table, offsets, grid)
        return bias

    def offset_biases(
        self, table: torch.Tensor, interpolation: tuple[torch.Tensor, torch.Tensor] | None
    ) -> torch.Tensor:
        """Return the biases of all offsets on a grid `(h, w)`, `(heads, 2 * h - 1, 2 * w - 1)`."""
        rows, columns = (2 * side - 1 for side in self.table_grid)
        offsets = table[: rows * columns].t().unflatten(1, (rows, columns))
        if interpolation is None:
            return offsets
        vertical, horizontal = interpolation
        return (vertical @ offsets.to(vertical.dtype) @ horizontal.t()).to(table.dtype)

    def _expand(self, table: torch.Tensor, offsets: torch.Tensor, grid: Grid) -> torch.Tensor:
        height, width = grid
        count = height * width
        # query (row, column), key (row', column'): offset (row + height - 1 - row', column + width - 1 - column')
        windows = offsets.unfold(1, height, 1).unfold(2, width, 1).flip(3, 4)
        patches = windows.reshape(-1, count, count)
        if not self.num_prefix_tokens:
            return patches[None]
        to_patch, from_patch, to_itself = table[-3:, :, None, None]
        # fused attention on a GPU wants rows of a multiple of 8 elements in memory
        filler = patches.new_zeros((patches.shape[0], 1, (8 - (1 + count) % 8) % 8))
        first = torch.cat([to_itself, to_patch.expand(-1, 1, count), filler], dim=2)
        others = torch.cat([from_patch.expand(-1, count, 1), patches, filler.expand(-1, count, -1)], dim=2)
        return torch.cat([first, others], dim=1)[None, ..., : 1 + count]

    def keys_of_columns(self, offsets: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Order the biases of all offsets by the query's column, `(heads, w, (2 * h - 1) * w)`.

        The keys of a query at row y and column x lie in one piece, from `(h - 1 - y) * w` to `(2 * h - 1 - y) * w`.

        Args:
            offsets: from `offset_biases`.
        """
        return offsets.flip(1, 2).unfold(2, grid[1], 1).flip(2).transpose(1, 2).flatten(2)

    def write(self, bias: torch.Tensor, table: torch.Tensor, offsets: torch.Tensor, grid: Grid) -> None:
        """Write the bias into memory `(1, heads, tokens, tokens)`, each element once.

        Args:
            offsets: from `offset_biases`.
        """
        height, width = grid
        keys = self.keys_of_columns(offsets, grid)
        prefix = self.num_prefix_tokens
        patches = bias[0, :, prefix:, prefix:].unflatten(1, grid)
        for row in range(height):
            patches[:, row] = keys[:, :, (height - 1 - row) * width : (2 * height - 1 - row) * width]
        if prefix:
            to_patch, from_patch, to_itself = table[-3:, :, None, None]
            bias[0, :, :1, 1:] = to_patch
            bias[0, :, 1:, :1] = from_patch
            bias[0, :, :1, :1] = to_itself


def offset_interpolation(
    table_grid: Grid, grid: Grid, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the matrices that resize a table for `table_grid` to another grid, see [`RelativePositionBias`].

    Returns:
        `(2 * h - 1, 2 * h' - 1)` and `(2 * w - 1, 2 * w' - 1)` for a grid `(h, w)` and a table for `(h', w')`, float32
        or wider; None where the two grids are equal.

    Raises:
        ValueError: in an export for images of any size, because the matrices are constants of a program.
    """
    if has_variable_size(grid):
        raise ValueError(
            "a model with tables of relative positions (BEiT) is exported for images of one size: leave out "
            "dynamic_size (--dynamic-size)"
        )
    if grid == table_grid:
        return None
    dtype = torch.promote_types(dtype, torch.float32)
    vertical, horizontal = (
        # len(range(n)) is n even where a compiler that saw another size has made a symbol of it
        torch.tensor(_interpolation(known, len(range(wanted))), dtype=dtype, device=device)
        for known, wanted in zip(table_grid, grid, strict=True)
    )
    return vertical, horizontal


@torch.compiler.assume_constant_result
def _interpolation(known: int, wanted: int) -> list[list[float]]:
    return _cached_interpolation(known, wanted)  # not cached itself: the compiler looks through a cache's wrapper


@functools.lru_cache(maxsize=64)
def _cached_interpolation(known: int, wanted: int) -> list[list[float]]:
    """Return weights `(2 * wanted - 1, 2 * known - 1)` that interpolate biases at known offsets to wanted ones.

    Plain numbers, because a tensor in the cache would keep the device and the mode of its first caller.
    """
    offsets = np.arange(-(wanted - 1), wanted, dtype=np.float64)
    if wanted > known:  # distances 1, 1 + q, 1 + q + q^2, ... reach the outermost offset
        reach = _distances(known - 1, _growth(known - 1, wanted - 1, low=1.0, high=float(wanted)))
        if known > 1:
            reach *= (wanted - 1) / reach[-1]
        offsets = np.sign(offsets) * np.interp(np.abs(offsets), reach, np.arange(known))
    known_offsets = np.arange(-(known - 1), known, dtype=np.float64)
    return np.maximum(1 - np.abs(offsets[:, None] - known_offsets), 0).tolist()


def _distances(terms: int, ratio: float) -> np.ndarray:
    """Return the partial sums 0, 1, 1 + q, ... of a geometric series with the ratio q, `(terms + 1,)` float64."""
    return np.concatenate([[0.0], np.cumsum(ratio ** np.arange(terms, dtype=np.float64))])


def _growth(terms: int, total: float, low: float, high: float) -> float:
    """Find by bisection the ratio between `low` and `high` whose geometric series of `terms` terms sums to `total`."""
    ratio = (low + high) / 2
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if sum(ratio**power for power in range(terms)) > total:
            high = ratio
        else:
            low = ratio
    return ratio


def resize_relative_position_table(table: torch.Tensor, old_grid: Grid, new_grid: Grid) -> torch.Tensor:
    """Resize a pre-trained table to another grid, as the original does before fine-tuning.

    The known offsets are spread in a geometric progression, and a cubic spline through them gives the others. The rows
    of the class token stay. A table for `new_grid` is returned as it is.

    timm's `resize_rel_pos_bias_table` has the same coordinates but another interpolation: on the recorded tables it is
    off by 0.4 to 0.6 in relative L2.

    Args:
        table: see [`RelativePositionBias`].

    Returns:
        `(num_relative_positions(new_grid) + 0 or 3, heads)` in the dtype of `table`.

    Raises:
        ValueError: if `old_grid` is too small for cubic splines.
    """
    if tuple(old_grid) == tuple(new_grid):
        return table
    from scipy.interpolate import RectBivariateSpline  # slow to import, and only needed here

    known, wanted = [2 * side - 1 for side in old_grid], [2 * side - 1 for side in new_grid]
    if min(known) < 5:
        raise ValueError(f"a table for {old_grid[0]}x{old_grid[1]} patches is too small to be resized by cubic splines")
    sources, targets = [], []
    for side, target in zip(old_grid, wanted, strict=True):
        reach = _distances(side - 1, _growth(side - 1, target // 2, low=1.01, high=1.5))
        sources.append(np.concatenate([-reach[:0:-1], reach]))
        targets.append(np.arange(-(target // 2), target // 2 + 1, dtype=np.float64))
    count = num_relative_positions((old_grid[0], old_grid[1]))
    heads = table[:count].detach().t().double().reshape(-1, *known)
    resized = [torch.from_numpy(RectBivariateSpline(*sources, head.cpu().numpy())(*targets)) for head in heads]
    patches = torch.stack(resized).flatten(1).t().to(table)
    return torch.cat([patches, table[count:].detach()])


def resize_positions(
    positions: torch.Tensor,
    old_grid: Grid,
    new_grid: Grid,
    interpolation: str = "bicubic",
    offset: float = 0.0,
    antialias: bool = False,
) -> torch.Tensor:
    """Resize position embeddings `(1, h * w, C)` to another token grid with align_corners=False.

    Positions for `new_grid` are returned as they are. The originals of ViT-Adapter and Segmenter resize to the size
    without antialiasing. DINOv2 (`interpolate_pos_encoding` of `dinov2/models/vision_transformer.py`) has an offset or
    antialiases. All of it runs in float32, or in float64 for a model in that precision.

    Args:
        interpolation: `"bicubic"` or `"bilinear"`.
        offset: the sampling positions are those of the scale factors `(side + offset) / old side`. Bicubic only.
        antialias: whether to antialias where the new grid is smaller.
    """
    is_variable = has_variable_size(new_grid)
    if not is_variable and old_grid == new_grid:
        return positions
    feature_map = positions.transpose(1, 2).unflatten(2, old_grid)
    feature_map = feature_map if feature_map.dtype == torch.float64 else feature_map.float()
    # many runtimes, TensorRT for one, resize only bilinearly, so exported files hold products with the weights
    is_exporting = torch.compiler.is_exporting() and interpolation == "bicubic" and not antialias
    if offset or is_exporting:
        shift: float | torch.Tensor = offset
        if is_variable and offset:
            sides = zip(old_grid, new_grid, strict=True)
            changes = [(torch.full((), new, dtype=feature_map.dtype) - old).abs() for old, new in sides]
            shift = offset * (changes[0] + changes[1]).clamp(max=1).to(feature_map.device)
        rows, columns = (
            _cubic_weights(old, new, shift, feature_map) for old, new in zip(old_grid, new_grid, strict=True)
        )
        return (rows @ feature_map @ columns.t()).flatten(2).transpose(1, 2)
    resized = F.interpolate(feature_map, size=new_grid, mode=interpolation, align_corners=False, antialias=antialias)
    return resized.flatten(2).transpose(1, 2)


def positions_of_same_count(positions: torch.Tensor, resized: torch.Tensor) -> torch.Tensor:
    """Return `positions` if `resized` has as many tokens, or else `resized`, by arithmetic for programs of any size.

    Args:
        positions: `(1, tokens, C)`.
        resized: `(1, other tokens, C)`.
    """
    count, wanted = positions.shape[1], resized.shape[1]
    index = torch.arange(wanted, dtype=torch.int32, device=positions.device).clamp(max=count - 1)
    is_same = torch.full((), wanted, dtype=torch.float32, device=positions.device) == float(count)
    return torch.where(is_same, positions.index_select(1, index).to(resized.dtype), resized)


def _cubic_weights(known: int, wanted: int, offset: float | torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return the weights `(wanted, known)` of a bicubic resize by the factor `(wanted + offset) / known`.

    `F.interpolate` has such weights only together with a size that it computes from the factor, and this cannot be
    exported for a variable size. Keys' cubic convolution with a = -0.75, the border repeated.

    Args:
        like: a tensor with the device and dtype of the weights.
    """
    device, dtype = like.device, like.dtype
    steps = torch.arange(wanted, device=device, dtype=dtype)
    centers = (steps + 0.5) * (known / (wanted + offset)) - 0.5
    neighbours = centers.floor()[:, None] + torch.arange(-1, 3, device=device)
    distances = (centers[:, None] - neighbours).abs()
    near = (1.25 * distances - 2.25) * distances**2 + 1
    far = ((-0.75 * distances + 3.75) * distances - 6) * distances + 3
    weights = torch.where(distances <= 1, near, far)
    columns = torch.arange(known, device=device)
    return ((neighbours.clamp(0, known - 1)[..., None] == columns) * weights[..., None]).sum(1)
