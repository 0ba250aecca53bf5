# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The learning-rate schedule of mmcv: polynomial decay with a linear warm-up.

Source: `PolyLrUpdaterHook` and `LrUpdaterHook` in `mmcv/runner/hooks/lr_updater.py`. transformers' polynomial schedule
differs: it warms up from zero and starts to decay after the warm-up.
"""

import functools

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from .recipe_settings import Schedule


def poly_schedule(optimizer: Optimizer, schedule: Schedule) -> LambdaLR:
    """Create a schedule that decays from step 0 on and is multiplied by a linear warm-up.

    In step `t` of `T`, a group with the learning rate `b` has the rate `(b - min_lr) * (1 - t / T) ** power + min_lr`;
    during the `W` warm-up steps this is multiplied by `1 - (1 - t / W) * (1 - warmup_ratio)`. After `T` steps the rate
    stays at `min_lr`.

    Args:
        optimizer: its groups may have different learning rates, as those of [`parameter_groups`] do.
        schedule: a recipe's schedule.

    Returns:
        a scheduler; call its `step` after each optimizer step.
    """
    bases = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
    # Partial functions can be pickled. They store no state in a checkpoint, so a resumed run uses its own schedule.
    return LambdaLR(optimizer, [functools.partial(_factor, base, schedule) for base in bases])


def _factor(base: float, schedule: Schedule, step: int) -> float:
    """Return the factor on a group's learning rate `base` in a step."""
    decayed = (1 - min(step, schedule.steps) / schedule.steps) ** schedule.power
    floor = schedule.min_lr / base if base else 0.0
    factor = (1 - floor) * decayed + floor
    if step < schedule.warmup_steps:
        factor *= 1 - (1 - step / schedule.warmup_steps) * (1 - schedule.warmup_ratio)
    return factor


__all__ = ["poly_schedule"]
