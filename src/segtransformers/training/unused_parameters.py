# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""A check whether the training loss of a model depends on all its parameters, as plain data-parallel training needs."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.training_args import ParallelMode

from ..models.input_channels import input_channels

PROBE_SIDE = 64  # pixels; every model of this package accepts such images


def uses_all_parameters(model: Any) -> bool:
    """Return whether the loss is known to depend on every trainable parameter.

    The check computes the gradients of two small images, which is exact for any combination of options and costs a
    fraction of a training step. It is made only for models and backbones of this package, because these use the same
    parameters in each step. Others may skip layers at random, as with LayerDrop, so for them the answer is False.

    Args:
        model: any model. Its parameters, gradients, buffers and modes stay as they are, and so do torch's generators.
    """
    package = __package__.partition(".")[0] + "."
    parts = (model, getattr(model, "backbone", None))
    if not isinstance(model, PreTrainedModel) or not all(type(part).__module__.startswith(package) for part in parts):
        return False
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}  # batch norms update these copies
    images = torch.zeros(
        2, input_channels(model.config), PROBE_SIDE, PROBE_SIDE, dtype=model.dtype, device=model.device
    )
    labels = torch.zeros(2, PROBE_SIDE, PROBE_SIDE, dtype=torch.long, device=model.device)
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []), torch.enable_grad():
            model.train()
            batch = {"pixel_values": images, "labels": labels}
            loss = torch.func.functional_call(model, buffers, (), batch).loss
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    except Exception:  # a user's change to the model may refuse these images with any error, which tells nothing
        return False
    finally:
        for module, mode in modes.items():
            module.training = mode
    return all(gradient is not None for gradient in gradients)


@contextlib.contextmanager
def unused_parameters_decided(args: Any, model: Any) -> Iterator[None]:
    """Set `args.ddp_find_unused_parameters` for plain DDP inside this context, if the user left it open."""
    is_open = (
        args is not None
        and model is not None
        and args.ddp_find_unused_parameters is None
        and args.parallel_mode == ParallelMode.DISTRIBUTED
        and not (args.fsdp or args.deepspeed)
        # reentrant checkpointing cannot look for unused parameters: Trainer decides
        and not (args.activation_checkpointing and (args.activation_checkpointing_kwargs or {}).get("use_reentrant"))
    )
    if not is_open:
        yield
        return
    args.ddp_find_unused_parameters = not uses_all_parameters(model)
    try:
        yield
    finally:
        args.ddp_find_unused_parameters = None  # the next model with these arguments may differ


__all__ = ["unused_parameters_decided", "uses_all_parameters"]
