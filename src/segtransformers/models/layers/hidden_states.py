# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Selection of a backbone's hidden states by the argument `output_hidden_states`."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel
from transformers.utils.output_capturing import resolve_hidden_states_indices, selected_hidden_states


def hidden_states_selection(
    model: PreTrainedModel, output_hidden_states: bool | int | list[int] | None
) -> bool | int | list[int]:
    """Return the argument, or the config's setting where it is None.

    The result may be the index 0: compare it with False by identity.
    """
    if output_hidden_states is None:
        output_hidden_states = model.config.output_hidden_states
    return False if output_hidden_states is None else output_hidden_states


def select_hidden_states(
    model: PreTrainedModel, hidden_states: Sequence[torch.Tensor] | None, selection: bool | int | list[int]
) -> tuple[torch.Tensor | None, ...] | None:
    """Return all hidden states, or those at the selected indices with None at the others, or None."""
    indices = selected_hidden_states(selection)
    if hidden_states is None:
        return None
    if indices is None:
        return tuple(hidden_states)
    chosen = resolve_hidden_states_indices(model, indices, num_hidden_states=len(hidden_states))
    return tuple(state if index in chosen else None for index, state in enumerate(hidden_states))


__all__ = ["hidden_states_selection", "select_hidden_states"]
