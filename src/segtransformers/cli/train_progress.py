# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Progress of `segtransformers train` on a terminal: a bar of the steps, with the log above it."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..terminal import Bar, is_terminal, progress_bar
from .output import is_quiet, message


class TerminalProgress(TrainerCallback):
    """Update a bar at each step, and print the log above it."""

    def __init__(self, bar: Bar):
        self.bar = bar
        self._shown: dict[str, str] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.bar.restart(state.max_steps, state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.bar.restart(state.max_steps, state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        figures = {name: value for name, value in (logs or {}).items() if name not in ("total_flos", "epoch")}
        shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in figures.items()}
        message(f"step {state.global_step}: {', '.join(f'{name} {text}' for name, text in shown.items())}")
        if "loss" in figures:
            self._shown["loss"] = f"loss {float(figures['loss']):.3g}"
        if "eval_mean_iou" in figures:
            self._shown["mIoU"] = f"mIoU {100 * float(figures['eval_mean_iou']):.2f}"
        self.bar.note(", ".join(self._shown.values()))


@contextlib.contextmanager
def training_progress(trainer: Trainer) -> Iterator[None]:
    """Show the progress of training in the block: a bar on a terminal, lines elsewhere, nothing with `--quiet`.

    `--disable_tqdm false` gives transformers' own bars.
    """
    if not trainer.args.disable_tqdm:
        yield
    elif is_quiet():
        trainer.remove_callback(PrinterCallback)
        yield
    elif is_terminal(sys.stderr) and trainer.is_world_process_zero():
        trainer.remove_callback(PrinterCallback)
        with progress_bar(None, "step") as bar:
            trainer.add_callback(TerminalProgress(bar))
            yield
    else:
        yield
