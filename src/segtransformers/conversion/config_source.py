# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Read an original's config from a file, from the checkpoint, or from a file beside the checkpoint."""

import json
from pathlib import Path
from typing import Any

from ..escaping import printable
from ..files import check_readable
from ..published import published_rows
from .checkpoint import Checkpoint
from .config_text import LARGEST_TEXT, check_values, parse_config, parse_variant
from .mapping import ConversionError
from .scopes import without_scopes

VARIANT = "variant.yml"  # name of the config that the official Segmenter writes beside its checkpoints
CONFIG_VARIABLES = ("model", "test_pipeline", "train_pipeline")
# paths of pipelines that have no variable of their own, in MMSegmentation 0.x and 1.x
_PIPELINE_PATHS = {
    "test_pipeline": ("data.test.pipeline", "test_dataloader.dataset.pipeline"),
    "train_pipeline": ("data.train.pipeline", "train_dataloader.dataset.pipeline"),
}


def read_config(name: str, family: str) -> dict[str, Any]:
    """Read a config from a `.py`, `.json` or `.yml` file.

    Args:
        name: path of the file, as given by the user.
        family: one of `published.FAMILIES`, for the error message.

    Raises:
        ConversionError: if the file does not exist, cannot be read, or has no model dict.
    """
    path = Path(name)
    suffix = path.suffix.lower()
    try:
        check_readable(path)
        is_file = path.is_file()
    except (OSError, ValueError) as error:  # a path that is too long, or has a zero byte
        reason = getattr(error, "strerror", None) or error
        raise ConversionError(f"--config {printable(name)}: {reason}") from error
    if not is_file:
        rows = ", ".join(published_rows(family))
        raise ConversionError(
            f"--config '{printable(name)}' is neither a file nor a published config. Published configs: {rows}"
        )
    shown = printable(path, 200)
    try:
        if path.stat().st_size > LARGEST_TEXT:
            raise ConversionError(
                f"{shown} has {path.stat().st_size} bytes; a config of at most {LARGEST_TEXT} is read"
            )
        text = path.read_text(encoding="utf-8-sig")
        if suffix in (".yml", ".yaml"):
            config = parse_variant(text)
        else:
            config = json.loads(text) if suffix == ".json" else _parsed(text)
    except (OSError, ValueError, RecursionError) as error:  # json raises ValueError for huge integers
        hint = (
            ""
            if suffix in (".py", ".json", ".yml", ".yaml")
            else ". It was read as Python; a file with JSON must be named .json, and a variant file .yml or .yaml"
        )
        raise ConversionError(f"{shown} cannot be read as a config: {printable(error, 400)}{hint}") from error
    return _checked_config(config, shown)


def config_of(checkpoint: Checkpoint, path: Path) -> dict[str, Any]:
    """Read the config that a training run saved in the checkpoint, or the official Segmenter's variant beside it.

    Raises:
        ConversionError: if neither exists, or it cannot be read or has no model dict.
    """
    text = checkpoint.meta.get("config", checkpoint.meta.get("cfg"))  # keys of mmcv and mmengine
    if not isinstance(text, str):
        if path.with_name(VARIANT).exists():
            return read_config(str(path.with_name(VARIANT)), "segmenter")
        raise ConversionError("the checkpoint does not hold its config: add --config NAME or --config FILE")
    return _checked_config(_parsed(text), "the config in the checkpoint")


def _parsed(text: str) -> dict[str, Any]:
    """Parse a config's variables; a pipeline without a variable is searched in the data set and data loader."""
    config = parse_config(text, CONFIG_VARIABLES)
    for name, paths in _PIPELINE_PATHS.items():
        found = list(parse_config(text, paths).values()) if name not in config else []
        if found:
            config[name] = found[0]
    return config


def _checked_config(config: Any, where: str) -> dict[str, Any]:
    """Return the config as a dict with the key `model`; a model dict alone becomes its value."""
    check_values(config, where)
    config = without_scopes(config)
    if isinstance(config, dict) and "model" not in config:
        config = {"model": config}
    model = config["model"] if isinstance(config, dict) else None
    if not isinstance(model, dict) or not {"type", "model_type", "net_kwargs"} & model.keys():
        raise ConversionError(f"{where} has no model dict with a type")
    return config
