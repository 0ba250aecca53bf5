# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Multi-scale deformable attention with its projections.

Source: Deformable DETR (https://arxiv.org/abs/2010.04159), `MSDeformAttn` in `ops/modules/ms_deform_attn.py` of the
original.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init

from ...operators import FusedDeformableAttention
from .precision import without_autocast
from .token_grid import Grid


@dataclass
class SamplingGeometry:
    """Positions of a deformable attention's queries, and the sizes of the levels that it samples.

    Attributes:
        reference_points: `(1, queries, 1, 2)` float32, (x, y) in the unit square.
        shapes: `(h, w)` of every value level.
        shapes_tensor: the same numbers `(levels, 2)` on the device, for compiled kernels.
        level_starts: `(levels,)`, the first token of each level, for compiled kernels.
    """

    reference_points: torch.Tensor
    shapes: list[Grid]
    shapes_tensor: torch.Tensor
    level_starts: torch.Tensor

    @classmethod
    def build(
        cls, query_grids: Sequence[Grid], value_grids: Sequence[Grid], device: torch.device
    ) -> "SamplingGeometry":
        """Place queries at the pixel centers of `query_grids`; values come from `value_grids`.

        The centers are float32 in models of every precision, because the original computes them so.
        """
        points = []
        for height, width in query_grids:
            # not linspace: torch.compile would make a new graph for every size
            y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
            x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
            points.append(torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1).flatten(0, 1))
        starts = [0]
        for height, width in value_grids[:-1]:
            starts.append(starts[-1] + height * width)
        return cls(
            reference_points=torch.cat(points)[None, :, None],
            shapes=list(value_grids),
            shapes_tensor=_filled([side for grid in value_grids for side in grid], device).view(-1, 2),
            level_starts=_filled(starts, device),
        )

    def to(self, device: torch.device, non_blocking: bool = False) -> "SamplingGeometry":
        """Move to a device. accelerate's hooks call this for the arguments of a module."""
        points, shapes, starts = (
            tensor.to(device, non_blocking=non_blocking)
            for tensor in (self.reference_points, self.shapes_tensor, self.level_starts)
        )
        return SamplingGeometry(points, self.shapes, shapes, starts)


def _filled(numbers: Sequence[int], device: torch.device) -> torch.Tensor:
    """Make a tensor of integers on the device, without a copy from the CPU, which CUDA graphs refuse."""
    return torch.stack([torch.full((), number, dtype=torch.long, device=device) for number in numbers])


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention with its projections.

    Args:
        hidden_size: channels of queries, values and output.
        num_heads: heads.
        num_levels: feature maps that are sampled.
        num_points: sampling points of each head on each level.
        value_ratio: width of the projected values over `hidden_size`.
    """

    def __init__(self, hidden_size: int, num_heads: int, num_levels: int, num_points: int, value_ratio: float):
        super().__init__()
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        value_size = int(hidden_size * value_ratio)
        self.sampling_offsets = nn.Linear(hidden_size, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(hidden_size, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(hidden_size, value_size)
        self.output_proj = nn.Linear(value_size, hidden_size)
        self.attn = FusedDeformableAttention()

    def forward(self, query: torch.Tensor, value: torch.Tensor, geometry: SamplingGeometry) -> torch.Tensor:
        """Attend from `query` `(B, queries, C)` to `value` `(B, tokens, C)`; returns `(B, queries, C)`."""
        value = self.value_proj(value).unflatten(2, (self.num_heads, -1))
        offsets = without_autocast(self.sampling_offsets, query)
        offsets = offsets.unflatten(2, (self.num_heads, self.num_levels, self.num_points, 2))
        logits = self.attention_weights(query).unflatten(2, (self.num_heads, self.num_levels, self.num_points))
        output = self.attn(
            value,
            geometry.shapes_tensor,
            geometry.shapes,
            geometry.level_starts,
            geometry.reference_points,
            offsets,
            logits,
        )
        return self.output_proj(output)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialize as Deformable DETR does.

        Sampling point p of head m lies p + 1 pixels from the query, in direction m of a ring. All points have the same
        attention weight.
        """
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        ring = directions[:, None, None] * steps[:, None]  # (heads, 1, points, 2)
        init.zeros_(self.sampling_offsets.weight)
        init.copy_(self.sampling_offsets.bias, ring.expand(-1, self.num_levels, -1, -1).flatten())
        init.zeros_(self.attention_weights.weight)
        init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            init.xavier_uniform_(projection.weight)
            init.zeros_(projection.bias)


__all__ = ["DeformableAttention", "SamplingGeometry"]
