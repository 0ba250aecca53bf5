# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Feature maps as sequences of tokens, one level after another and each row by row."""

from collections.abc import Sequence

import torch

Grid = tuple[int, int]  # (height, width) of a feature map in tokens


def grid_of(feature_map: torch.Tensor) -> Grid:
    """Return the token grid of a feature map `(B, C, h, w)`."""
    return feature_map.shape[2], feature_map.shape[3]


def has_variable_size(grid: Grid) -> bool:
    """Return whether a program is being exported that takes images with other token grids, too.

    A comparison of variable sizes would restrict such a program to one of its results.
    """
    return torch.compiler.is_exporting() and not all(isinstance(side, int) for side in grid)


def flatten_levels(feature_maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Join feature maps `(B, C, h, w)` to tokens `(B, sum(h * w), C)`."""
    return torch.cat([feature_map.flatten(2).transpose(1, 2) for feature_map in feature_maps], dim=1)


def split_levels(tokens: torch.Tensor, grids: Sequence[Grid]) -> list[torch.Tensor]:
    """Split tokens `(B, sum(h * w), C)` into one feature map `(B, C, h, w)` for each of `grids`, as views."""
    levels = tokens.transpose(1, 2).split([height * width for height, width in grids], dim=2)
    return [level.unflatten(2, grid) for level, grid in zip(levels, grids, strict=True)]


__all__ = ["Grid", "flatten_levels", "grid_of", "has_variable_size", "split_levels"]
