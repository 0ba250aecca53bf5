# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Progress of a training run: images per second, time left, and warnings about the loss and slow data loading."""

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

logger = logging.get_logger(__name__)

FEWEST_LOSSES = 8  # logged losses before anything can be said
LEAST_FALL = 0.01  # share of the first losses
RISE = 2.0  # factor on the lowest loss that counts as divergence
LONG_WAIT = 0.25  # share of the time of a run
LONGEST_UNNOTICED_WAIT = 30.0  # seconds


class Pace(TrainerCallback):
    """The speed of a run, from the start of its training, and a warning if data loading limits it.

    Args:
        clock: returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self.start(0)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.start(state.global_step)

    def start(self, step: int) -> None:
        """Begin to measure at this step."""
        self._began, self._first_step = self._clock(), step
        self._last, self._last_step, self._paused = self._began, step, 0.0
        self._waited = self._all_waited = self._all_paused = 0.0
        self._has_warned = False

    def pause(self, seconds: float) -> None:
        """Leave out the time of an evaluation from images per second."""
        self._paused += seconds
        self._all_paused += seconds

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        began = self._clock()
        yield
        seconds = self._clock() - began
        self._waited += seconds
        self._all_waited += seconds

    def figures(self, step: int, last_step: int, images_per_step: int) -> dict[str, float]:
        """Return figures of the training steps since the last call.

        Returns:
            `images_per_second`, `waiting_for_data` (a share of the time), and `minutes_left`, which includes
            evaluations as often as so far.
        """
        now = self._clock()
        seconds = max(now - self._last - self._paused, 1e-9)
        images, done = (step - self._last_step) * images_per_step, step - self._first_step
        waiting = min(self._waited / seconds, 1.0)
        self._last, self._last_step, self._paused, self._waited = now, step, 0.0, 0.0
        if done < 1:
            return {}
        left = (now - self._began) / done * max(last_step - step, 0)
        return {
            "images_per_second": round(images / seconds, 2),
            "waiting_for_data": round(waiting, 3),
            "minutes_left": round(left / 60, 1),
        }

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        share = self._all_waited / max(self._clock() - self._began - self._all_paused, 1e-9)
        if self._has_warned or self._all_waited < LONGEST_UNNOTICED_WAIT or share < LONG_WAIT:
            return
        self._has_warned = True
        if state.is_world_process_zero:
            logger.warning(
                f"step {state.global_step}: {share:.0%} of the time so far was spent waiting for images: raise "
                f"--dataloader_num_workers (now {args.dataloader_num_workers}; this machine has {os.cpu_count()} "
                "cores), or store images nearer to the size of the crops"
            )


class LossWatch(TrainerCallback):
    """Warn once if the loss does not fall, or if it rises far above its lowest value.

    Attributes:
        warning: the warning, or None.
    """

    def __init__(self) -> None:
        self.warning: str | None = None

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if self.warning is not None or not logs or "loss" not in logs:
            return
        losses = [float(entry["loss"]) for entry in state.log_history if "loss" in entry]
        scores = [float(entry["eval_mean_iou"]) for entry in state.log_history if "eval_mean_iou" in entry]
        advice = advice_on_losses(losses, args.learning_rate, scores)
        if advice is not None:
            self.warning = f"step {state.global_step}: {advice}"
            if state.is_world_process_zero:
                logger.warning(self.warning)


def advice_on_losses(losses: Sequence[float], learning_rate: float, scores: Sequence[float] = ()) -> str | None:
    """Return what is wrong with the losses that a run has logged, and what to do, or None.

    Args:
        losses: in the order of the steps.
        learning_rate: the highest one of the run.
        scores: mean IoU of the evaluations so far. A loss that hardly falls is no fault while they rise.
    """
    if len(losses) < FEWEST_LOSSES:
        return None
    third = len(losses) // 3
    first, last = statistics.mean(losses[:third]), statistics.mean(losses[-third:])
    lowest = min(statistics.mean(losses[index : index + third]) for index in range(len(losses) - third + 1))
    if last > RISE * lowest > 0:
        return (
            f"the loss has risen from {lowest:.3g} to {last:.3g}: lower --learning_rate (now {learning_rate:g}), to a "
            "third for example"
        )
    rises = len(scores) > 1 and max(scores[1:]) > scores[0]
    if last > (1 - LEAST_FALL) * first and not rises:
        return (
            f"the loss does not fall ({first:.3g} at first, {last:.3g} now): if it is not near its end, try a "
            f"--learning_rate three times as high or as low (now {learning_rate:g}), and check with `segtransformers "
            "check-data` that masks belong to their images"
        )
    return None


__all__ = ["LossWatch", "Pace", "advice_on_losses"]
