# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""What all our backbones share: which images they take, and which hidden states they return."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel
from transformers.utils.output_capturing import resolve_hidden_states_indices, selected_hidden_states

STRIDES = (4, 8, 16, 32)


def check_images(pixel_values: torch.Tensor) -> None:
    """Refuse what is no batch of RGB images, or has a side shorter than the largest stride.

    Raises:
        ValueError: naming the shape found and what to do.
    """
    if pixel_values.dim() != 4 or pixel_values.shape[1] != 3:
        raise ValueError(f"pixel_values must be (batch, 3, height, width), got {tuple(pixel_values.shape)}")
    height, width = pixel_values.shape[2:]
    if min(height, width) < STRIDES[-1]:
        raise ValueError(
            f"pixel_values must be at least {STRIDES[-1]} pixels high and wide, got {height}x{width}: enlarge the "
            "image, as the image processor does with do_resize=True"
        )


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


__all__ = ["STRIDES", "check_images", "chosen_hidden_states"]
