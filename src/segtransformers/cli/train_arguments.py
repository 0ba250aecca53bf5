# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Arguments of `segtransformers train` that are fields of transformers' `TrainingArguments`."""

import argparse
import difflib
from collections.abc import Sequence
from typing import Any

from .errors import UserError
from .train_options import option_names

# options of other tools
HINTS = {
    "--lr": "use --learning_rate",
    "--base-lr": "use --learning_rate",
    "--epochs": "use --num_train_epochs",
    "--steps": "use --max_steps",
    "--iters": "use --max_steps",
    "--batch_size": "use --batch-size, the number of images at once on a device",
    "--device": "a GPU is used if there is one; --use_cpu true keeps to the CPU, CUDA_VISIBLE_DEVICES chooses GPUs",
    "--workers": "use --dataloader_num_workers",
    "--num-workers": "use --dataloader_num_workers",
}
# transformers is imported inside functions, so that --help is fast.


def parse_training_arguments(words: Sequence[str]) -> dict[str, Any]:
    """Return the fields of `TrainingArguments` on a command line, with their values.

    Raises:
        UserError: for an unknown option or an invalid value.
    """
    from transformers import HfArgumentParser, TrainingArguments

    class Parser(HfArgumentParser):
        def error(self, message: str):
            raise UserError(message)

    parser = Parser(TrainingArguments, allow_abbrev=False, add_help=False)  # type: ignore[arg-type]
    for action in parser._actions:
        action.default, action.required = argparse.SUPPRESS, False
    found, rest = parser.parse_known_args(list(words))
    if rest:
        option = rest[0].partition("=")[0]
        if option in HINTS:
            raise UserError(f"{option} is not an option: {HINTS[option]}")
        known = [option for action in parser._actions for option in action.option_strings] + option_names()
        close = difflib.get_close_matches(option, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else " of this command or of transformers' TrainingArguments"
        raise UserError(f"{rest[0]} is not an option{hint}")
    changes = vars(found)
    if str(changes.get("fsdp")).lower() == "true":
        changes["fsdp"] = True  # transformers reads the text "true" as a deprecated option string
    for length in ("max_steps", "num_train_epochs"):
        if changes.get(length) == 0:
            raise UserError(f"--{length} must not be 0; leave the option out for the recipe's length")
    if "output_dir" in changes:
        raise UserError("--output_dir is not an option of this command: use --output")
    return changes


def with_batch_and_precision(changes: dict[str, Any], batch_size: str | None, precision: str | None) -> dict[str, Any]:
    """Return fields of `TrainingArguments` with those of `--batch-size` and `--precision`.

    Args:
        batch_size: a number, or "auto", which is resolved when the model is known.
        precision: "auto", "fp32", "bf16" or "fp16".

    Raises:
        UserError: for other values, or if `changes` already has such fields.
    """
    changes = dict(changes)
    if batch_size is not None:
        _refuse_both(changes, "--batch-size", "per_device_train_batch_size")
        if batch_size == "auto":
            _refuse_both(changes, "--batch-size auto", "gradient_accumulation_steps")
        elif batch_size.isdecimal() and int(batch_size) > 0:
            changes["per_device_train_batch_size"] = int(batch_size)
        else:
            raise UserError(f"--batch-size must be auto or a number of images from 1 on, got {batch_size}")
    if precision is not None:
        _refuse_both(changes, "--precision", "bf16", "fp16")
        changes |= _precision_fields(precision, bool(changes.get("use_cpu")))
    return changes


def _precision_fields(precision: str, use_cpu: bool) -> dict[str, bool]:
    import torch

    from ..training.machine import fast_precision

    if precision not in ("auto", "fp32", "bf16", "fp16"):
        raise UserError(f"--precision must be auto, fp32, bf16 or fp16, got {precision}")
    on_gpu = torch.cuda.is_available() and not use_cpu
    if precision == "auto":
        precision = fast_precision() if on_gpu else "fp32"
    if precision == "fp16" and not on_gpu:
        raise UserError("--precision fp16 needs a GPU: a CPU trains in fp32 or bf16")
    return {"bf16": precision == "bf16", "fp16": precision == "fp16"}


def _refuse_both(changes: dict[str, Any], option: str, *fields: str) -> None:
    for field in fields:
        if field in changes:
            raise UserError(f"{option} and --{field} exclude each other: leave out one of them")
