# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Models for images with another number of channels, from models that were trained on RGB images."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

REPEAT, COLOURS = "repeat", "colours"  # rules of `with_input_channels`


def input_channels(config: Any) -> int:
    """Return the number of channels that a model or a backbone takes.

    Raises:
        ValueError: if its config does not have the number.
    """
    count = getattr(_input_config(config), "num_channels", None)
    if count is None:
        raise ValueError(f"the config of {config.model_type} does not have the number of input channels")
    return int(count)


def with_input_channels(
    model: PreTrainedModel, num_channels: int, colours: Sequence[int] | None = None, random: bool = False
) -> Any:
    """Return a model with the weights of `model` that takes another number of channels.

    The convolutions that read the image get new weights. All others stay as they are. Rules:

    - `repeat`, if `colours` is None: channel `i` gets the weights of channel `i % 3`, times `3 / num_channels`. One
      channel gets the sum of red, green and blue. timm adapts its models like this.
    - `colours`: the channels named by `colours` get the weights of red, green and blue, and all others start at zero.
      The model then computes exactly what it computed from these three alone, until it is trained.

    The rule is saved as `input_inflation` in the config.

    Args:
        model: any model or backbone whose config has `num_channels`. It stays as it is.
        num_channels: number of channels wanted.
        colours: positions of red, green and blue among the channels, from 0 on.
        random: whether the new model starts at random weights, for a `model` that was not trained.

    Raises:
        ValueError: if `model` does not take three channels, or `colours` are not three different channels.
    """
    found = input_channels(model.config)
    if found != 3:
        raise ValueError(f"the model takes {found} channels: only a model that takes RGB images can be widened")
    if num_channels < 1:
        raise ValueError(f"num_channels must be at least 1, got {num_channels}")
    if colours is not None and (len(set(colours)) != 3 or not all(0 <= one < num_channels for one in colours)):
        raise ValueError(
            f"colours must name three different channels, 0 to {num_channels - 1}, as red, green and blue, got "
            f"{list(colours)}"
        )
    config: Any = copy.deepcopy(model.config)
    _input_config(config).num_channels = num_channels
    for part in (config, _input_config(config)):
        if getattr(part, "trunk_weights", None) is not None:  # the trunk is no longer the one of that name
            part.trunk_weights = part.trunk_samples = None
    config.input_inflation = None if random else _described(colours)
    widened = type(model)(config)
    if not random:
        expected = widened.state_dict()
        widened.load_state_dict(
            {
                name: tensor if tensor.shape == expected[name].shape else _inflated(tensor, num_channels, colours)
                for name, tensor in model.state_dict().items()
            }
        )
    return widened.to(device=model.device, dtype=model.dtype).train(model.training)


def _input_config(config: Any) -> Any:
    backbone = getattr(config, "backbone_config", None)
    return config if backbone is None else backbone


def _described(colours: Sequence[int] | None) -> dict[str, Any]:
    if colours is None:
        return {"rule": REPEAT}
    return {"rule": COLOURS, "channels": [int(one) for one in colours]}


def _inflated(weight: torch.Tensor, num_channels: int, colours: Sequence[int] | None) -> torch.Tensor:
    """Return weights `(out, num_channels, ...)` of a convolution from those of three channels."""
    if colours is not None:
        wide = weight.new_zeros(weight.shape[0], num_channels, *weight.shape[2:])
        wide[:, list(colours)] = weight
        return wide
    if num_channels == 1:
        return weight.sum(1, keepdim=True)
    return weight[:, [index % 3 for index in range(num_channels)]] * (3 / num_channels)


__all__ = ["input_channels", "with_input_channels"]
