# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Automatic choices of `segtransformers train`: made from data and machine, printed, and kept for `--resume`."""

import dataclasses
import inspect
import json
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import complete_file
from .errors import UserError, note
from .output import message
from .train_options import TrainOptions

if TYPE_CHECKING:
    from ..datasets import SegmentationDataset
    from ..training.choices import Choices, DataSummary

CHOICES = "choices.json"  # in the output folder
MEASURED_IMAGES = 25
# Functions import numpy and the parts of this package that load torch, so that --help is fast.


def check_preset(name: str) -> None:
    """Raise UserError for an unknown preset, before the data are read."""
    from ..training.choices import PRESETS

    if name not in PRESETS:
        raise UserError(f"--preset must be one of {', '.join(PRESETS)}, got {name}")


def with_choices(
    options: TrainOptions,
    changes: dict[str, Any],
    words: Sequence[str],
    parts: "list[SegmentationDataset]",
    command: Callable[..., Any],
) -> tuple[TrainOptions, list[str]]:
    """Return the options with everything that the user left open chosen, and chosen arguments of transformers.

    The choices are printed with their reasons and with the full command. With `--resume` they are those of the run
    that is continued.

    Args:
        changes: fields of `TrainingArguments` that the user gave as `words`.
        command: the function whose parameters are the options, with their defaults.
    """
    from ..training.choices import TRUNKS, choose
    from ..training.machine import describe_machine

    is_main = int(os.environ.get("RANK", "0")) == 0
    file = options.output / CHOICES
    if options.resume and file.is_file():
        chosen = _read(file)
        if is_main:
            message("with the choices of the run that is continued: " + shlex.join(chosen))
        return _applied(options, chosen)
    data = summary_of(parts)
    machine = describe_machine(TRUNKS, use_gpu=not changes.get("use_cpu"))
    choices = choose(data, machine, options.preset or "balanced", _fixed(options, changes))
    result = _applied(options, choices.words())
    if is_main:
        _print(choices, options.preset, command_line(result[0], [*words, *result[1]], command))
        options.output.mkdir(parents=True, exist_ok=True)
        with complete_file(file) as partial:
            partial.write_text(json.dumps(choices.words()) + "\n", encoding="utf-8")
    return result


def summary_of(parts: "list[SegmentationDataset]") -> "DataSummary":
    """Describe the data of a run. Sizes are those of some images, evenly spread."""
    import numpy as np

    from ..datasets.scenes import SCENE_CLASSES
    from ..training.choices import DataSummary

    data = parts[0]
    indices = np.unique(np.linspace(0, len(data) - 1, MEASURED_IMAGES).astype(int)).tolist()
    sizes = np.array([np.asarray(data[index].labels).shape[-2:] for index in indices])
    height, width = (int(side) for side in np.median(sizes, axis=0))
    return DataSummary(
        images=len(data),
        evaluation_images=len(parts[1]) if len(parts) > 1 else 0,
        classes=data.num_labels,
        height=height,
        width=width,
        multi_label=data.multi_label,
        are_packaged_classes=[*data.id2label.values()] == [*SCENE_CLASSES],
    )


def command_line(options: TrainOptions, words: Sequence[str], command: Callable[..., Any]) -> list[str]:
    """Return the words of a command with these options.

    Args:
        words: arguments of transformers, as they are typed.
        command: see [`with_choices`].
    """
    line = ["segtransformers", "train", "--data", options.data, "--output", str(options.output)]
    defaults = {name: parameter.default for name, parameter in inspect.signature(command).parameters.items()}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name in ("data", "output", "preset", "resume") or value == defaults[field.name]:
            continue
        name = field.name.replace("_", "-")
        line += [f"--{name}"] if value is True else [f"--no-{name}"] if value is False else [f"--{name}", str(value)]
    return [*line, *words]


def _fixed(options: TrainOptions, changes: dict[str, Any]) -> dict[str, Any]:
    """Return the options that the user gave, among those that can be chosen."""
    fixed: dict[str, Any] = {}
    for name in ("model", "batch_size", "precision", "early_stopping", "cache_features"):
        if getattr(options, name) is not None:
            fixed[f"--{name.replace('_', '-')}"] = getattr(options, name)
    if options.cache_features is None and (options.lora_rank is not None or options.teacher is not None):
        fixed["--cache-features"] = None  # low-rank updates change the features, and a teacher needs the images
    if options.keep_best:
        fixed["--keep-best"] = True
    if options.crop is not None:
        fixed["--crop-size"] = min(options.crop)
    fixed |= {f"--{name}": value for name, value in changes.items()}
    if "per_device_train_batch_size" in changes or "gradient_accumulation_steps" in changes:
        fixed["--batch-size"] = None
    if changes.get("bf16") or changes.get("fp16"):
        fixed["--precision"] = None
    if changes.get("eval_strategy") == "no":
        fixed |= {"--keep-best": None, "--early-stopping": None}
    return fixed


def _applied(options: TrainOptions, chosen: Sequence[str]) -> tuple[TrainOptions, list[str]]:
    """Return options with chosen words, and the chosen arguments of transformers."""
    values: dict[str, Any] = {}
    rest: list[str] = []
    remaining = list(chosen)
    kinds = {field.name: field.type for field in dataclasses.fields(TrainOptions)}
    while remaining:
        word = remaining.pop(0)
        name = word.removeprefix("--").replace("-", "_")
        if word == "--keep-best":
            values[name] = True
        elif name in kinds:
            text = remaining.pop(0)
            values[name] = int(text) if "int" in str(kinds[name]) else text
        else:
            rest += [word, remaining.pop(0)]
    return dataclasses.replace(options, **values), rest


def _read(file: Path) -> list[str]:
    try:
        words = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(words, list) and words and all(isinstance(word, str) for word in words):
            return words
    except ValueError:
        pass
    raise UserError(f"{file} does not hold the choices of a run: pass --recipe and the other options of that run")


def _print(choices: "Choices", preset: str | None, line: Sequence[str]) -> None:
    message(f"chosen for this data and machine (--preset {preset or 'balanced'}):")
    for choice in choices.choices:
        value = "" if choice.value is None else f" {choice.value}"
        message(f"  {choice.option + value:<40} {choice.reason}")
    message(f"the same as: {shlex.join(line)}")
    for text in choices.notes:
        note(text)
