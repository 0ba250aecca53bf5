# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Multi-scale deformable attention without its linear projections.

Source: Deformable DETR (https://arxiv.org/abs/2010.04159), equation 3.
"""

from collections.abc import Sequence

import torch
from kernels import use_kernel_forward_from_hub
from torch import nn
from torch.nn import functional as F

from . import dispatcher
from .gathering import gathered_samples, split_position
from .sampling import bounded_grid, check_floating, weighted_samples


def ms_deform_attn_reference(
    value: torch.Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
) -> torch.Tensor:
    """Sum weighted bilinear samples from several levels, in plain PyTorch.

    Sampling uses align_corners False and zeros outside a level. All arithmetic runs in float32, or in float64 if any
    argument is float64, because coordinates in half precision would be off by whole pixels. A location that is not
    finite gives NaN for its query and head; a finite one of any size is outside.

    Args:
        value: `(B, sum(h * w), heads, channels)`, the levels one after another, each row by row.
        spatial_shapes: `(h, w)` of each level.
        sampling_locations: `(B, queries, heads, levels, points, 2)`, (x, y) with 0 and 1 at the outer edges of a level.
        attention_weights: `(B, queries, heads, levels, points)`.

    Returns:
        `(B, queries, heads * channels)` in the dtype of `value`.

    Raises:
        ValueError: if the shapes do not fit together, or a tensor does not hold floating-point numbers.
    """
    _check_shapes(value, spatial_shapes, sampling_locations, attention_weights)
    batch, _, heads, channels = value.shape
    queries, levels, points = attention_weights.shape[1], attention_weights.shape[3], attention_weights.shape[4]
    exact = torch.float64 in (value.dtype, sampling_locations.dtype, attention_weights.dtype)
    dtype = torch.float64 if exact else torch.float32

    values = value.to(dtype).permute(0, 2, 3, 1).flatten(0, 1)  # (B * heads, channels, tokens)
    values_by_level = values.split([height * width for height, width in spatial_shapes], dim=2)
    locations = sampling_locations.to(dtype)
    grids = bounded_grid(2 * locations - 1, locations).transpose(1, 2).flatten(0, 1)
    weights = attention_weights.to(dtype).transpose(1, 2).reshape(batch * heads, 1, queries, levels, points)
    output = value.new_zeros((), dtype=dtype)
    for level, (height, width) in enumerate(spatial_shapes):
        samples = F.grid_sample(
            values_by_level[level].unflatten(2, (height, width)),
            grids[:, :, level],  # (B * heads, queries, points, 2)
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )
        output = output + (samples * weights[:, :, :, level]).sum(-1)
    return output.reshape(batch, heads * channels, queries).transpose(1, 2).to(value.dtype)


def ms_deform_attn_fallback(
    value: torch.Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
) -> torch.Tensor:
    """Compute [`ms_deform_attn_reference`] faster on a CPU, in eager mode and with torch.compile."""
    _check_shapes(value, spatial_shapes, sampling_locations, attention_weights)
    exact = torch.float64 in (value.dtype, sampling_locations.dtype, attention_weights.dtype)
    dtype = torch.float64 if exact else torch.float32
    locations = sampling_locations.to(dtype)
    x = [locations[:, :, :, level, :, 0] * width - 0.5 for level, (_, width) in enumerate(spatial_shapes)]
    y = [locations[:, :, :, level, :, 1] * height - 0.5 for level, (height, _) in enumerate(spatial_shapes)]
    sources = locations.unbind(3)
    return weighted_samples(value.to(dtype), spatial_shapes, x, y, attention_weights.to(dtype), sources).to(value.dtype)


def ms_deform_attn_gather(
    value: torch.Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
) -> torch.Tensor:
    """Compute [`ms_deform_attn_reference`] by [`gathered_samples`], for exported files."""
    _check_shapes(value, spatial_shapes, sampling_locations, attention_weights)
    dtype = _arithmetic_dtype(value, sampling_locations, attention_weights)
    x, y = [], []
    for level, (height, width) in enumerate(spatial_shapes):
        positions = sampling_locations[:, :, :, level].to(dtype)
        x.append(positions[..., 0] * width - 0.5)
        y.append(positions[..., 1] * height - 0.5)
    columns, rows = (split_position(torch.cat(one, dim=3).flatten(2)) for one in (x, y))
    weights = attention_weights.to(dtype).flatten(2)
    return gathered_samples(value.to(dtype), spatial_shapes, columns, rows, weights).to(value.dtype)


def ms_deform_attn_fused_gather(
    value: torch.Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: torch.Tensor,
    sampling_offsets: torch.Tensor,
    attention_logits: torch.Tensor,
) -> torch.Tensor:
    """Compute [`FusedDeformableAttention`] by [`gathered_samples`], for exported files.

    Positions are the sums of reference point and offset in pixels of a level, without a division.
    """
    weights = attention_logits.flatten(3).softmax(-1).flatten(2)
    x, y = (one.flatten(2) for one in sampling_offsets.unbind(-1))
    return gathered_attention(value, spatial_shapes, reference_points, x, y, weights)


def gathered_attention(
    value: torch.Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """Sum weighted bilinear samples at reference points plus offsets, by [`gathered_samples`].

    Args:
        value: `(B, sum(h * w), heads, channels)`.
        reference_points: `(1, queries, 1, 2)`, (x, y) with 0 and 1 at the outer edges of a level.
        x, y: offsets in pixels of the levels, `(B, queries, heads * levels * points)`.
        weights: in the same shape.

    Returns:
        `(B, queries, heads * channels)` in the dtype of `value`.
    """
    taps = weights.shape[2] // value.shape[2]
    points = taps // max(len(spatial_shapes), 1)
    parts = []
    for axis, offsets in ((0, x), (1, y)):
        sides = [shape[1 - axis] for shape in spatial_shapes]
        # (1, queries, levels), and each level's position repeated for its points
        centres = torch.cat([reference_points[..., axis] * side - 0.5 for side in sides], dim=2)
        centres = centres[:, :, None, :, None].expand(-1, -1, value.shape[2], -1, points).flatten(2)
        parts.append(split_position(centres + offsets))
    dtype = _arithmetic_dtype(value, parts[0][1])
    weights = weights.to(dtype)
    return gathered_samples(value.to(dtype), spatial_shapes, parts[0], parts[1], weights).to(value.dtype)


def _arithmetic_dtype(*tensors: torch.Tensor) -> torch.dtype:
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def _check_shapes(value, spatial_shapes, sampling_locations, attention_weights) -> None:
    check_floating(value=value, sampling_locations=sampling_locations, attention_weights=attention_weights)
    if value.dim() != 4:
        raise ValueError(f"value must be (batch, tokens, heads, channels), got {tuple(value.shape)}")
    tokens = sum(height * width for height, width in spatial_shapes)
    if value.shape[1] != tokens:
        raise ValueError(
            f"value has {value.shape[1]} tokens, but the levels {list(map(tuple, spatial_shapes))} have {tokens}"
        )
    expected = (*attention_weights.shape, 2)
    if attention_weights.dim() != 5 or tuple(sampling_locations.shape) != expected:
        raise ValueError(
            "attention_weights must be (batch, queries, heads, levels, points) and sampling_locations (batch, queries, "
            f"heads, levels, points, 2), got {tuple(attention_weights.shape)} and {tuple(sampling_locations.shape)}"
        )
    batch, _, heads, levels, _ = attention_weights.shape
    if (batch, heads, levels) != (value.shape[0], value.shape[2], len(spatial_shapes)):
        raise ValueError(
            f"attention_weights {tuple(attention_weights.shape)} do not fit value {tuple(value.shape)} with "
            f"{len(spatial_shapes)} levels: batch, heads and levels must be equal"
        )


IM2COL_STEP = 64  # images that a kernel may process at once, as in the originals


def ms_deform_attn(
    value: torch.Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
) -> torch.Tensor:
    """See [`ms_deform_attn_reference`]; [`dispatcher`] selects the implementation."""
    implementation = dispatcher.choose(
        "ms_deform_attn",
        value,
        fallback=ms_deform_attn_fallback,
        reference=ms_deform_attn_reference,
        gather=ms_deform_attn_gather,
    )
    return implementation(value, spatial_shapes, sampling_locations, attention_weights)


@use_kernel_forward_from_hub("MultiScaleDeformableAttention")
class MultiScaleDeformableAttention(nn.Module):
    """Multi-scale deformable attention without parameters, with the name and `forward` of the layer in transformers.

    [`dispatcher`] selects the implementation.
    """

    def __init__(self) -> None:
        super().__init__()
        dispatcher.prepare()

    def forward(
        self,
        value: torch.Tensor,
        value_spatial_shapes: torch.Tensor,
        value_spatial_shapes_list: list[tuple[int, int]],
        level_start_index: torch.Tensor,
        sampling_locations: torch.Tensor,
        attention_weights: torch.Tensor,
        im2col_step: int,
    ) -> torch.Tensor:
        """See [`ms_deform_attn_reference`]. Only other kernels read the arguments that are described here.

        Args:
            value_spatial_shapes: `(levels, 2)`, the numbers of `value_spatial_shapes_list` as a tensor.
            level_start_index: `(levels,)`, the first token of each level.
            im2col_step: largest number of images that a kernel processes at once.
        """
        return ms_deform_attn(value, value_spatial_shapes_list, sampling_locations, attention_weights)


_OWN_FORWARD = MultiScaleDeformableAttention.forward


class FusedDeformableAttention(nn.Module):
    """Multi-scale deformable attention from predicted offsets and logits.

    A compiled operator computes softmax, sampling locations and weighted sum at once. Without one, and if the layer
    `attention` has another `forward` than its own or a hook, that layer is called on locations and weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.attention = MultiScaleDeformableAttention()

    def forward(
        self,
        value: torch.Tensor,
        value_spatial_shapes: torch.Tensor,
        value_spatial_shapes_list: list[tuple[int, int]],
        level_start_index: torch.Tensor,
        reference_points: torch.Tensor,
        sampling_offsets: torch.Tensor,
        attention_logits: torch.Tensor,
    ) -> torch.Tensor:
        """See [`MultiScaleDeformableAttention.forward`] for the other arguments and the result.

        Args:
            reference_points: `(1, queries, 1, 2)`, (x, y) with 0 and 1 at the outer edges of a level.
            sampling_offsets: `(B, queries, heads, levels, points, 2)`, (x, y) in pixels of the level.
            attention_logits: `(B, queries, heads, levels, points)`; their softmax runs over levels and points.
        """
        fused = None
        if not _must_be_called(self.attention):
            is_gathered = dispatcher.exports_gathers()
            fused = ms_deform_attn_fused_gather if is_gathered else dispatcher.compiled("ms_deform_attn_fused", value)
        if fused is not None:
            return fused(value, value_spatial_shapes_list, reference_points, sampling_offsets, attention_logits)
        weights = attention_logits.flatten(-2).softmax(-1).unflatten(-1, attention_logits.shape[-2:])
        sides = value_spatial_shapes.flip(-1).to(reference_points.dtype)
        # reference points are float32, so offsets in half precision become float32 here
        locations = reference_points[:, :, :, None, None] + sampling_offsets / sides[:, None]
        return self.attention(
            value, value_spatial_shapes, value_spatial_shapes_list, level_start_index, locations, weights, IM2COL_STEP
        )


def _must_be_called(attention: nn.Module) -> bool:
    """Return True if somebody replaced the layer's `forward` or registered a hook on it."""
    # `kernelize` may bind the layer's own function again, so functions are compared; a partial has no `__func__`
    if getattr(attention.forward, "__func__", None) is not _OWN_FORWARD:
        return True
    hooks = (  # nn.Module has no public list of its hooks
        attention._forward_pre_hooks,
        attention._forward_hooks,
        attention._backward_pre_hooks,
        attention._backward_hooks,
    )
    return any(hooks)
