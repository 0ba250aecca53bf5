# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Relative position biases for any token grid, and position tables resized to another grid.

Sources: BEiT (https://arxiv.org/abs/2106.08254); `segmentation/mmcv_custom/checkpoint.py` of czczup/ViT-Adapter.
"""

import functools
import math

import numpy as np
import torch
from torch.nn import functional as F

from ..layers.cache import in_inference, remembered
from ..layers.token_grid import Grid


def num_relative_positions(grid: Grid) -> int:
    """How many offsets (rows, columns) there are between two tokens of a grid `(h, w)`."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1)


def relative_position_bias(
    table: torch.Tensor,
    table_grid: Grid,
    grid: Grid,
    num_prefix_tokens: int,
    scratch: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """What is added to the attention logits of every head.

    The table is used as it is on the grid that it was made for and, where the grid is smaller, in part: an offset of so
    many patches keeps its bias. On a larger grid, the distances that the table knows are spread in a geometric
    progression, fine near the middle, as the original spreads them when it enlarges a pre-trained table, and biases
    between them are interpolated linearly.

    Args:
        table: `((2 * h' - 1) * (2 * w' - 1) + 3, heads)` for `table_grid` `(h', w')`: query minus key, rows first; then
            class token to patch, patch to class token, class token to itself. Without prefix tokens there are no three
            last rows.
        grid: `(h, w)` of the patch tokens.
        num_prefix_tokens: 0 or 1, the class token in front of the patches.
        scratch: a list that the blocks of one forward pass share. In inference the memory of one block's biases is kept
            there for those of the next: fresh memory of that size costs a CPU several times what the biases do.

    Returns:
        `(1, heads, tokens, tokens)`, queries first, where tokens = num_prefix_tokens + h * w. No index of that size is
        made on the way. With `scratch` in inference, it holds until the next call: clone it to keep it.
    """
    height, width = grid
    heads, tokens = table.shape[1], num_prefix_tokens + height * width
    maps = table[: num_relative_positions(table_grid)].t().unflatten(1, (2 * table_grid[0] - 1, 2 * table_grid[1] - 1))
    if grid != table_grid:
        dtype = torch.promote_types(maps.dtype, torch.float32)
        rows, columns = (
            # len(range(n)) is n, also where a compiler that saw another size has made a symbol of it
            _interpolation_matrix(known, len(range(wanted)), dtype, maps.device)
            for known, wanted in zip(table_grid, grid, strict=True)
        )
        maps = (rows @ maps.to(rows.dtype) @ columns.t()).to(table.dtype)
    # queries in column b and keys in column l: place width - 1 - b + l of the reversed rows
    columns = maps.flip(1, 2).unfold(2, width, 1).flip(2)  # (heads, 2 * height - 1, width, width)
    aligned = math.ceil(tokens / 8) * 8  # rows of a multiple of 8, which fused attention on a GPU wants of a bias
    shape = (1, heads, tokens, aligned if num_prefix_tokens else tokens)
    like = (table.dtype, table.device)
    reuse = scratch is not None and in_inference(table)
    if reuse and scratch and scratch[0].shape == shape and (scratch[0].dtype, scratch[0].device) == like:
        full = scratch[0][..., :tokens]
    else:
        full = columns.new_empty(shape)
        if reuse:
            scratch[:] = [full]
        full = full[..., :tokens]
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or table.device.type != "cpu":
        windows = columns.unfold(1, height, 1).flip(1)  # (heads, rows, width, width, rows of keys)
        full[:, :, num_prefix_tokens:, num_prefix_tokens:] = windows.permute(0, 1, 2, 4, 3).reshape(
            heads, height * width, height * width
        )
    else:  # each element is written once, where it belongs, and a query's keys in one piece
        lines = columns.transpose(1, 2).flatten(2)  # (heads, width, (2 * height - 1) * width)
        patches = full[0, :, num_prefix_tokens:, num_prefix_tokens:].unflatten(1, grid)
        for row in range(height):
            patches[:, row] = lines[:, :, (height - 1 - row) * width : (2 * height - 1 - row) * width]
    if num_prefix_tokens:
        to_patch, from_patch, to_itself = table[-3:].unsqueeze(-1).unsqueeze(-1)
        full[:, :, :1, 1:] = to_patch
        full[:, :, 1:, :1] = from_patch
        full[:, :, :1, :1] = to_itself
    return full


@remembered(maxsize=16)
def _interpolation_matrix(known: int, wanted: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.tensor(_interpolation(known, wanted), dtype=dtype, device=device)


@torch.compiler.assume_constant_result
def _interpolation(known: int, wanted: int) -> list[list[float]]:
    return _cached_interpolation(known, wanted)  # the compiler looks through a cache, and would trace the bisection


@functools.lru_cache(maxsize=64)
def _cached_interpolation(known: int, wanted: int) -> list[list[float]]:
    """Weights `(2 * wanted - 1, 2 * known - 1)` that turn biases at known offsets into those at wanted ones.

    Plain numbers, because a tensor in the cache would keep the device and the mode of its first caller.
    """
    offsets = np.arange(-(wanted - 1), wanted, dtype=np.float64)
    if wanted > known:  # distances 1, 1 + q, 1 + q + q^2, ... reach the outermost offset
        reach = _distances(known - 1, _growth(known - 1, wanted - 1, low=1.0, high=float(wanted)))
        if known > 1:
            reach *= (wanted - 1) / reach[-1]
        offsets = np.sign(offsets) * np.interp(np.abs(offsets), reach, np.arange(known))
    places = np.arange(-(known - 1), known, dtype=np.float64)
    return np.maximum(1 - np.abs(offsets[:, None] - places), 0).tolist()


def _distances(terms: int, ratio: float) -> np.ndarray:
    """0, 1, 1 + q, ..., each step `ratio` times as long as the one before: `(terms + 1,)` float64."""
    return np.concatenate([[0.0], np.cumsum(ratio ** np.arange(terms, dtype=np.float64))])


def _growth(terms: int, total: float, low: float, high: float) -> float:
    """The ratio between `low` and `high` whose geometric series of `terms` terms adds up to `total`, by bisection."""
    ratio = (low + high) / 2
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if sum(ratio**power for power in range(terms)) > total:
            high = ratio
        else:
            low = ratio
    return ratio


def resize_relative_position_table(table: torch.Tensor, old_grid: Grid, new_grid: Grid) -> torch.Tensor:
    """A pre-trained table for another grid, as the original makes it before fine-tuning.

    Offsets that the table knows are spread in a geometric progression, and a cubic spline through them gives the
    others. The rows of the class token stay. Where the grids agree, so does the table.

    timm's `resize_rel_pos_bias_table` has the same coordinates but another interpolation: on the recorded tables it is
    off by 0.4 to 0.6 in relative L2.

    Args:
        table: see [`relative_position_bias`].

    Returns:
        `(num_relative_positions(new_grid) + 0 or 3, heads)` in the dtype of `table`.
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
    maps = table[:count].detach().t().double().reshape(-1, *known)
    resized = [torch.from_numpy(RectBivariateSpline(*sources, map_.cpu().numpy())(*targets)) for map_ in maps]
    patches = torch.stack(resized).flatten(1).t().to(table)
    return torch.cat([patches, table[count:].detach()])


def resize_positions(
    positions: torch.Tensor, old_grid: Grid, new_grid: Grid, interpolation: str = "bicubic"
) -> torch.Tensor:
    """Learned positions `(1, h * w, C)` for another grid.

    Bicubic (or bilinear), align_corners False, no antialiasing, as the originals resize them at every forward pass.
    """
    if old_grid == new_grid:
        return positions
    maps = positions.transpose(1, 2).unflatten(2, old_grid)
    maps = maps if maps.dtype == torch.float64 else maps.float()
    return F.interpolate(maps, size=new_grid, mode=interpolation, align_corners=False).flatten(2).transpose(1, 2)
