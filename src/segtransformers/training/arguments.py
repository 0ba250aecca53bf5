# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""From a recipe to transformers' `TrainingArguments`, and from both to an optimizer and a schedule."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.utils import logging

from .layer_decay import parameter_groups
from .recipes import Recipe
from .schedule import poly_schedule

logger = logging.get_logger(__name__)

IMAGES_AT_ONCE = 2  # per process, where nobody says: most originals, and what fits 24 GB with large backbones
WORKERS = 4  # processes for each GPU that read and augment
EVALUATIONS = 10  # in a run, as the originals


def training_arguments(recipe: Recipe, output_dir: str | Path, **changes: Any) -> TrainingArguments:
    """What a recipe says, as `TrainingArguments`.

    Images per GPU and accumulation are chosen so that a step of the optimizer sees the recipe's `batch_size` on the
    GPUs that there are. In fewer steps, the warm-up becomes shorter, too.

    Args:
        changes: fields of `TrainingArguments` that shall be otherwise.

    Raises:
        ValueError: if the recipe's batch cannot be divided among the processes, or a field contradicts others.
    """
    steps = changes.get("max_steps", -1 if "num_train_epochs" in changes else recipe.schedule.steps)
    schedule = (recipe.with_steps(steps) if steps > 0 else recipe).schedule
    interval = max(steps // EVALUATIONS, 1) if steps > 0 else 1
    strategy = "steps" if steps > 0 else "epoch"
    settings: dict[str, Any] = {
        "learning_rate": recipe.optimizer.learning_rate,
        "weight_decay": recipe.optimizer.weight_decay,
        "max_steps": steps,
        "warmup_steps": schedule.warmup_steps,
        "max_grad_norm": recipe.gradient_clipping or 0.0,
        "dataloader_drop_last": True,
        "dataloader_num_workers": WORKERS if torch.cuda.is_available() else 0,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "per_device_eval_batch_size": 1,
        "eval_strategy": strategy,
        "eval_steps": interval,
        "save_strategy": strategy,
        "save_steps": interval,
        "save_total_limit": 2,
        "logging_steps": min(50, interval),
    }
    if recipe.optimizer.name == "sgd":
        settings |= {"optim": "sgd", "optim_args": f"momentum={recipe.optimizer.momentum}"}
    else:
        settings |= dict(zip(("adam_beta1", "adam_beta2"), recipe.optimizer.betas, strict=True))
    if recipe.gradient_checkpointing:
        settings["gradient_checkpointing"] = True
    if recipe.half_precision and torch.cuda.is_available() and not {"fp16", "bf16"} & changes.keys():
        settings["bf16" if torch.cuda.is_bf16_supported() else "fp16"] = True
    arguments = TrainingArguments(output_dir=str(output_dir), **{**settings, **changes})
    per_device, accumulation = fitted_batch(
        recipe.batch_size,
        arguments.world_size * max(arguments.n_gpu, 1),  # without a launcher, a process may share out its batch to GPUs
        changes.get("per_device_train_batch_size"),
        changes.get("gradient_accumulation_steps"),
    )
    arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps = per_device, accumulation
    return arguments


def fitted_batch(
    batch_size: int, processes: int, per_device: int | None = None, accumulation: int | None = None
) -> tuple[int, int]:
    """How many images each process takes at once, and how many times before a step of the optimizer.

    Args:
        batch_size: images for one step, of all processes together.
        per_device, accumulation: what is fixed; where both are, they are taken whatever the batch becomes.

    Raises:
        ValueError: if the batch cannot be divided so.
    """
    for option, count in (("per_device_train_batch_size", per_device), ("gradient_accumulation_steps", accumulation)):
        if count is not None and count < 1:
            raise ValueError(f"{option} must be at least 1, got {count}")
    if per_device is not None and accumulation is not None:
        actual = per_device * accumulation * processes
        if actual != batch_size:
            logger.warning(
                f"a step sees {actual} images, where the recipe has {batch_size}: its learning rate was made for that"
            )
        return per_device, accumulation
    share, rest = divmod(batch_size, processes)
    fixed = per_device or accumulation or 1
    if rest or share % fixed:
        of_each = f" of {fixed} images" if per_device else f" with {fixed} times accumulation" if accumulation else ""
        raise ValueError(
            f"the recipe's batch of {batch_size} images cannot be divided among {processes} processes{of_each}: choose "
            "both --per_device_train_batch_size and --gradient_accumulation_steps, and a learning rate for that batch"
        )
    if per_device is None and accumulation is None:
        per_device = max(count for count in range(1, min(IMAGES_AT_ONCE, share) + 1) if share % count == 0)
    if per_device is None:
        return share // fixed, fixed
    return per_device, share // per_device


def build_optimizer(model: nn.Module, recipe: Recipe, arguments: TrainingArguments) -> torch.optim.Optimizer:
    """The optimizer that the arguments name, for the recipe's groups of parameters.

    Raises:
        ValueError: for an optimizer that makes its own groups.
    """
    if arguments.learning_rate == TrainingArguments.learning_rate != recipe.optimizer.learning_rate:
        logger.warning(
            f"the learning rate is TrainingArguments' default {arguments.learning_rate:g}, not the recipe's "
            f"{recipe.optimizer.learning_rate:g}: make the arguments by training_arguments(recipe, ...)"
        )
    optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)  # type: ignore[arg-type]
    if not isinstance(optimizer_class, type) or {"params", "model", "optimizer_dict"} & options.keys():
        raise ValueError(f"optim={arguments.optim} makes its own groups of parameters: a recipe needs another one")
    settings = dataclasses.replace(
        recipe.optimizer, learning_rate=arguments.learning_rate, weight_decay=arguments.weight_decay
    )
    return optimizer_class(parameter_groups(model, dataclasses.replace(recipe, optimizer=settings)), **options)


def build_scheduler(
    optimizer: torch.optim.Optimizer, recipe: Recipe, arguments: TrainingArguments, steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """The recipe's schedule over `steps` steps, with the warm-up of the arguments."""
    warmup = arguments.get_warmup_steps(steps)
    if warmup == recipe.schedule.warmup_steps:  # made without knowing how many steps some epochs are
        warmup = recipe.with_steps(steps).schedule.warmup_steps
    return poly_schedule(optimizer, dataclasses.replace(recipe.schedule, steps=steps, warmup_steps=warmup))


__all__ = ["build_optimizer", "build_scheduler", "fitted_batch", "training_arguments"]
