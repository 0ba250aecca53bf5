# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""What all our backbones share: which images they take, how they pad them, and which hidden states they return."""

from collections.abc import Sequence

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils.output_capturing import resolve_hidden_states_indices, selected_hidden_states

STRIDES = (4, 8, 16, 32)


def check_images(pixel_values: torch.Tensor, shortest: int = STRIDES[-1], num_channels: int = 3) -> None:
    """Refuse what is no batch of images of `num_channels` channels, or has a side shorter than `shortest` pixels.

    Raises:
        ValueError: naming the shape found and what to do.
    """
    if pixel_values.dim() != 4 or pixel_values.shape[1] != num_channels:
        raise ValueError(
            f"pixel_values must be (batch, {num_channels}, height, width), got {tuple(pixel_values.shape)}: the "
            f"backbone's config has num_channels={num_channels}"
        )
    height, width = pixel_values.shape[2:]
    if min(height, width) < shortest:
        raise ValueError(
            f"pixel_values must be at least {shortest} pixels high and wide, got {height}x{width}: take a "
            "larger image, window or scale (the image processor enlarges images with do_resize=True)"
        )


def padded_to_stride(pixel_values: torch.Tensor, stride: int = STRIDES[-1]) -> torch.Tensor:
    """Pad `(B, C, H, W)` with zeros at the right and the bottom to multiples of `stride` pixels."""
    height, width = pixel_values.shape[2:]
    if height % stride or width % stride:
        return F.pad(pixel_values, (0, -width % stride, 0, -height % stride))
    return pixel_values


def wanted_hidden_states(model: PreTrainedModel, selection: bool | int | list[int] | None) -> bool | int | list[int]:
    """What `output_hidden_states` asks for, or the config where it is None.

    An index may be 0, so compare the result with False.
    """
    if selection is None:
        selection = model.config.output_hidden_states
    return False if selection is None else selection


def chosen_hidden_states(
    model: PreTrainedModel, hidden_states: Sequence[torch.Tensor] | None, selection: bool | int | list[int]
) -> tuple[torch.Tensor | None, ...] | None:
    """Those that `output_hidden_states` asks for: all, those at some indices (the others are None), or none."""
    indices = selected_hidden_states(selection)
    if hidden_states is None:
        return None
    if indices is None:
        return tuple(hidden_states)
    chosen = resolve_hidden_states_indices(model, indices, num_hidden_states=len(hidden_states))
    return tuple(state if index in chosen else None for index, state in enumerate(hidden_states))


__all__ = ["STRIDES", "check_images", "chosen_hidden_states", "padded_to_stride", "wanted_hidden_states"]
