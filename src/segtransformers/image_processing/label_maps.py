# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Labels from logits, resized in bands of rows: the resized logits of a large image would take gigabytes."""

from collections.abc import Iterator

import torch
from torch.nn import functional as F

from .decision import Decision

BAND_BYTES = 1 << 23  # size of a band of resized logits; larger bands leave the cache and are slower


def resized_labels(logits: torch.Tensor, size: tuple[int, int], decision: Decision | None = None) -> torch.Tensor:
    """Return the labels of bilinearly resized logits (align_corners False), computed in bands of rows.

    Args:
        logits: `(num_labels, h, w)`.
        size: (height, width) of the result.
        decision: the model's rule. None takes the class with the largest logit.

    Returns:
        int64 `(height, width)`, or bool `(num_labels, height, width)` of a multi-label model.
    """
    decision = decision or Decision()
    result = decision.empty_labels(len(logits), size, logits.device)
    resized = ResizedRows(iter([logits]), logits.shape[1], size)
    for rows in resized.slices():
        result[..., rows, :] = decision.labels(resized.take(rows))
    return result


class ResizedRows:
    """Resize a feature map bilinearly (align_corners False), where both the map and the result come in bands of rows.

    Args:
        bands: bands `(channels, rows, w)` of the feature map, from top to bottom.
        height: number of rows of all bands together.
        size: (height, width) to resize to.
    """

    def __init__(self, bands: Iterator[torch.Tensor], height: int, size: tuple[int, int]):
        self.bands, self.height, self.size = bands, height, size
        self.buffer = next(bands)  # rows of the feature map from `self.first` on
        self.first = 0
        dtype = torch.promote_types(self.buffer.dtype, torch.float32)
        # source row of each result row, with the rounding of F.interpolate
        target = torch.arange(size[0], dtype=dtype, device=self.buffer.device)
        source = ((target + 0.5) * (height / size[0]) - 0.5).clamp(min=0)
        self.above = source.long().clamp(max=height - 1)
        self.below = (self.above + 1).clamp(max=height - 1)
        self.weight = (source - self.above).view(-1, 1)

    def slices(self) -> Iterator[slice]:
        """Yield slices of result rows that fill `BAND_BYTES`, from top to bottom."""
        row_bytes = len(self.buffer) * self.size[1] * max(self.buffer.element_size(), 4)
        step = max(BAND_BYTES // row_bytes, 1)
        for start in range(0, self.size[0], step):
            yield slice(start, min(start + step, self.size[0]))

    def take(self, rows: slice) -> torch.Tensor:
        """Return these rows of the result, `(channels, rows, width)`, in float32 or wider.

        Calls must go from top to bottom, because bands are dropped once they are used.
        """
        first, last = int(self.above[rows.start]), int(self.below[rows.stop - 1])
        while self.first + self.buffer.shape[1] <= last:
            kept = self.buffer[:, max(first - self.first, 0) :]
            self.first += self.buffer.shape[1] - kept.shape[1]
            self.buffer = torch.cat([kept, next(self.bands)], dim=1)
        needed = self.buffer[:, first - self.first : last + 1 - self.first].to(self.weight.dtype)
        if (self.height, needed.shape[2]) == self.size:
            return needed[:, : rows.stop - rows.start]
        size = (needed.shape[1], self.size[1])
        wide = F.interpolate(needed[None], size=size, mode="bilinear", align_corners=False)[0]
        return torch.lerp(wide[:, self.above[rows] - first], wide[:, self.below[rows] - first], self.weight[rows])
