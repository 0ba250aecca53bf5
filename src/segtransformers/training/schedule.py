# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The learning-rate schedule of mmcv: polynomial decay with a linear warm-up.

Source: `PolyLrUpdaterHook` and `LrUpdaterHook` in `mmcv/runner/hooks/lr_updater.py`. transformers' polynomial schedule
is another one: it begins to decay when the warm-up is over, and warms up from zero.
"""

import functools

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from .recipes import Schedule


def poly_schedule(optimizer: Optimizer, schedule: Schedule) -> LambdaLR:
    """Decay from step 0 on, multiplied by a linear warm-up over the first steps.

    In step `t` of `T`, a group with the learning rate `b` learns at `(b - min_lr) * (1 - t / T) ** power + min_lr`;
    during the `W` steps of warm-up this is multiplied by `1 - (1 - t / W) * (1 - warmup_ratio)`. After `T` steps it
    stays at `min_lr`.

    Args:
        optimizer: each of its groups with its own learning rate, as [`parameter_groups`] makes them.
        schedule: of a recipe.

    Returns:
        a scheduler to be stepped after each step of the optimizer.
    """
    bases = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
    # partial functions can be pickled, and leave nothing in a checkpoint: a run that goes on has its own schedule
    return LambdaLR(optimizer, [functools.partial(_factor, base, schedule) for base in bases])


def _factor(base: float, schedule: Schedule, step: int) -> float:
    """What one group's learning rate is multiplied by."""
    decayed = (1 - min(step, schedule.steps) / schedule.steps) ** schedule.power
    floor = schedule.min_lr / base if base else 0.0
    factor = (1 - floor) * decayed + floor
    if step < schedule.warmup_steps:
        factor *= 1 - (1 - step / schedule.warmup_steps) * (1 - schedule.warmup_ratio)
    return factor


__all__ = ["poly_schedule"]
