# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints and models that `segtransformers train` writes: complete ones, and what a failure or a kill left."""

import json
import shutil
from pathlib import Path
from typing import Any

from ..files import check_readable, remove_leftovers, staging_folder
from .errors import UserError

STATE = "trainer_state.json"  # of a checkpoint, written last
# endings of the files in a checkpoint; a folder with others is not deleted
SUFFIXES = (".json", ".py", ".bin", ".pt", ".pth", ".safetensors", ".txt", ".tmp", "")


def last_checkpoint(output: Path, network: Any) -> str | None:
    """Return the newest complete checkpoint of this model, or None to start from the beginning.

    Raises:
        UserError: if it is of another model.
    """
    for path in sorted(_checkpoints(output), key=_step, reverse=True):
        saved = _read(path / "config.json")
        if saved is None or not _is_complete(path):
            continue
        own = json.loads(network.config.to_json_string())
        if any(saved.get(name) != own.get(name) for name in ("model_type", "id2label")):
            raise UserError(
                f"{path} has another model or other classes: --resume needs the same --data, --model and --recipe as "
                "before; or choose another folder"
            )
        return str(path)
    return None


def remove_incomplete(output: Path) -> None:
    """Delete checkpoints that were not written to their end, and temporary folders, in the folder of a run."""
    remove_leftovers(output)
    for path in _checkpoints(output):
        if not _is_complete(path) and all(file.is_file() and file.suffix in SUFFIXES for file in path.iterdir()):
            shutil.rmtree(path, ignore_errors=True)


def has_checkpoints(output: Path) -> bool:
    """Return whether the folder of a run holds a checkpoint."""
    return bool(_checkpoints(output))


def save_model(trainer: Any, output: Path) -> None:
    """Save the model of a trainer in `output`. Its files appear there when all of them are complete."""
    arguments = trainer.args
    if not arguments.should_save or arguments.push_to_hub:  # a push takes the files of the output folder
        trainer.save_model()
        return
    with staging_folder(output / "model") as folder:
        trainer.save_model(str(folder))
        for file in sorted(folder.iterdir(), key=lambda file: file.name == "config.json"):  # the config last
            file.replace(output / file.name)


def _checkpoints(output: Path) -> list[Path]:
    return [path for path in output.glob("checkpoint-*") if path.is_dir() and _step(path) >= 0]


def _step(path: Path) -> int:
    number = path.name.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() else -1


def _is_complete(path: Path) -> bool:
    return _read(path / STATE) is not None


def _read(file: Path) -> dict[str, Any] | None:
    """Return the content of a JSON file, or None if it is missing, incomplete or holds no object."""
    try:
        check_readable(file)
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
