# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Conversion of a recipe into transformers' `TrainingArguments`, an optimizer and a schedule."""

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

IMAGES_PER_DEVICE = 2  # default: as in most original configs, and large backbones fit 24 GB
WORKERS = 4  # data loader processes per GPU
EVALUATIONS = 10  # per run, as in the original configs
SHORTEST_INTERVAL = 50  # steps between evaluations: short trial runs evaluate less often


def training_arguments(recipe: Recipe, output_dir: str | Path, **changes: Any) -> TrainingArguments:
    """Create the `TrainingArguments` of a recipe.

    Batch size per device and gradient accumulation are chosen so that an optimizer step sees the recipe's `batch_size`
    on the GPUs of this run. A run with fewer steps also has a shorter warm-up.

    Args:
        recipe: a published or an own recipe.
        output_dir: folder for checkpoints.
        changes: fields of `TrainingArguments` that replace those of the recipe.

    Raises:
        ValueError: if the recipe's batch size cannot be divided among the processes, or fields contradict each other.
    """
    steps = changes.get("max_steps", -1 if "num_train_epochs" in changes else recipe.schedule.steps)
    schedule = (recipe.with_steps(steps) if steps > 0 else recipe).schedule
    interval = max(steps // EVALUATIONS, min(steps, SHORTEST_INTERVAL)) if steps > 0 else 1
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
        "logging_steps": min(50, max(steps // EVALUATIONS, 1)),
    }
    if recipe.optimizer.name == "sgd":
        settings |= {"optim": "sgd", "optim_args": f"momentum={recipe.optimizer.momentum}"}
    else:
        settings |= dict(zip(("adam_beta1", "adam_beta2"), recipe.optimizer.betas, strict=True))
    if recipe.gradient_checkpointing and not {"activation_checkpointing", "gradient_checkpointing"} & changes.keys():
        settings["activation_checkpointing"] = True
    if recipe.half_precision and torch.cuda.is_available() and not {"fp16", "bf16"} & changes.keys():
        settings["bf16" if torch.cuda.is_bf16_supported() else "fp16"] = True
    arguments = TrainingArguments(output_dir=str(output_dir), **{**settings, **changes})
    per_device, accumulation = fitted_batch(
        recipe.batch_size,
        arguments.world_size * max(arguments.n_gpu, 1),  # without a launcher, one process serves all GPUs
        changes.get("per_device_train_batch_size"),
        changes.get("gradient_accumulation_steps"),
    )
    arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps = per_device, accumulation
    return arguments


def fitted_batch(
    batch_size: int, processes: int, per_device: int | None = None, accumulation: int | None = None
) -> tuple[int, int]:
    """Return the batch size per device and the number of gradient accumulation steps.

    Args:
        batch_size: images per optimizer step, over all processes.
        processes: number of devices that share a batch.
        per_device, accumulation: fixed values. If both are fixed, the batch size follows from them.

    Raises:
        ValueError: if the batch cannot be divided evenly.
    """
    for option, count in (("per_device_train_batch_size", per_device), ("gradient_accumulation_steps", accumulation)):
        if count is not None and count < 1:
            raise ValueError(f"{option} must be at least 1, got {count}")
    if per_device is not None and accumulation is not None:
        actual = per_device * accumulation * processes
        if actual != batch_size:
            logger.warning(
                f"an optimizer step sees {actual} images, but the learning rate of the recipe is for {batch_size}"
            )
        return per_device, accumulation
    share, rest = divmod(batch_size, processes)
    fixed = per_device or accumulation or 1
    if rest or share % fixed:
        part = f" of {fixed} images" if per_device else f" with {fixed} accumulation steps" if accumulation else ""
        raise ValueError(
            f"the recipe's batch of {batch_size} images cannot be divided among {processes} processes{part}: "
            "choose both --per_device_train_batch_size and --gradient_accumulation_steps, and a learning rate for that "
            "batch"
        )
    if per_device is None and accumulation is None:
        per_device = max(count for count in range(1, min(IMAGES_PER_DEVICE, share) + 1) if share % count == 0)
    if per_device is None:
        return share // fixed, fixed
    return per_device, share // per_device


def build_optimizer(model: nn.Module, recipe: Recipe, arguments: TrainingArguments) -> torch.optim.Optimizer:
    """Create the optimizer that the arguments name, with the recipe's parameter groups.

    Raises:
        ValueError: if `args.optim` groups parameters itself, as GaLore does.
    """
    if arguments.learning_rate == TrainingArguments.learning_rate != recipe.optimizer.learning_rate:
        logger.warning(
            f"the learning rate is TrainingArguments' default {arguments.learning_rate:g} instead of the recipe's "
            f"{recipe.optimizer.learning_rate:g}: create the arguments with training_arguments(recipe, ...)"
        )
    optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)  # type: ignore[arg-type]
    if not isinstance(optimizer_class, type) or {"params", "model", "optimizer_dict"} & options.keys():
        raise ValueError(
            f"optim={arguments.optim} groups parameters itself and cannot follow a recipe: choose another optimizer"
        )
    settings = dataclasses.replace(
        recipe.optimizer, learning_rate=arguments.learning_rate, weight_decay=arguments.weight_decay
    )
    return optimizer_class(parameter_groups(model, dataclasses.replace(recipe, optimizer=settings)), **options)


def build_scheduler(
    optimizer: torch.optim.Optimizer, recipe: Recipe, arguments: TrainingArguments, steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Create the recipe's schedule over `steps` steps, with the warm-up of the arguments."""
    warmup = arguments.get_warmup_steps(steps)
    if warmup == recipe.schedule.warmup_steps:  # set by training_arguments, possibly before the length was known
        warmup = recipe.with_steps(steps).schedule.warmup_steps
    return poly_schedule(optimizer, dataclasses.replace(recipe.schedule, steps=steps, warmup_steps=warmup))


__all__ = ["build_optimizer", "build_scheduler", "fitted_batch", "training_arguments"]
