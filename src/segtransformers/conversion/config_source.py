# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Where an original's config comes from: a file, the checkpoint's own text, or a file beside it."""

import json
from pathlib import Path
from typing import Any

from ..published import published_rows
from .checkpoint import Checkpoint
from .config_text import parse_config, parse_variant
from .mapping import ConversionError

VARIANT = "variant.yml"  # what an official Segmenter calls its config, and where it looks for it
CONFIG_VARIABLES = ("model", "test_pipeline", "train_pipeline")
# where configs put the pipelines that have no variable of their own: of 0.x, and of 1.x
_INSIDE = {
    "test_pipeline": ("data.test.pipeline", "test_dataloader.dataset.pipeline"),
    "train_pipeline": ("data.train.pipeline", "train_dataloader.dataset.pipeline"),
}
# registries of MMSegmentation 1.x, which may stand in front of a type, or beside it under `_scope_`
_SCOPES = ("mmengine", "mmcv", "mmdet", "mmpretrain", "mmseg", "mmsegextension", "mmsegext")


def read_config(name: str, family: str) -> dict[str, Any]:
    """The config in a `.py`, `.json` or `.yml` file."""
    path = Path(name)
    suffix = path.suffix.lower()
    if not path.is_file():
        rows = ", ".join(published_rows(family))
        raise ConversionError(f"--config {name!r} is neither a file nor a published config. Published are: {rows}")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if suffix in (".yml", ".yaml"):
            config = parse_variant(text)
        else:
            config = json.loads(text) if suffix == ".json" else _parsed(text)
    except (OSError, ValueError, RecursionError) as error:  # json raises a plain ValueError for huge integers
        hint = (
            ""
            if suffix in (".py", ".json", ".yml", ".yaml")
            else (". It was read as Python text; what holds JSON must be called .json, and a variant.yml .yml or .yaml")
        )
        raise ConversionError(f"{path} cannot be read as a config: {error}{hint}") from error
    return _checked_config(config, str(path))


def config_of(checkpoint: Checkpoint, path: Path) -> dict[str, Any]:
    """The config that a training run saved in the checkpoint, or an official Segmenter's variant beside it."""
    text = checkpoint.meta.get("config", checkpoint.meta.get("cfg"))  # mmcv's name, and mmengine's
    if not isinstance(text, str):
        if path.with_name(VARIANT).is_file():
            return read_config(str(path.with_name(VARIANT)), "segmenter")
        raise ConversionError("the checkpoint does not hold its config: say --config NAME or --config FILE")
    return _checked_config(_parsed(text), "the config in the checkpoint")


def _parsed(text: str) -> dict[str, Any]:
    """The variables wanted; pipelines are looked for inside the data sets where they have no variable."""
    config = parse_config(text, CONFIG_VARIABLES)
    for name, places in _INSIDE.items():
        found = list(parse_config(text, places).values()) if name not in config else []
        if found:
            config[name] = found[0]
    return config


def _checked_config(config: Any, where: str) -> dict[str, Any]:
    """A whole config; a lone model dict becomes one that has nothing else."""
    config = _without_scopes(config)
    if isinstance(config, dict) and "model" not in config:
        config = {"model": config}
    model = config["model"] if isinstance(config, dict) else None
    if not isinstance(model, dict) or not {"type", "model_type", "net_kwargs"} & model.keys():
        raise ConversionError(f"{where} has no model dict with a type")
    return config


def _without_scopes(value: Any) -> Any:
    """The config as 0.x would write it, where registries are not named."""
    if isinstance(value, list | tuple):
        return type(value)(_without_scopes(item) for item in value)
    if not isinstance(value, dict):
        return value
    cleaned = {key: _without_scopes(item) for key, item in value.items() if key != "_scope_"}
    kind = cleaned.get("type")
    if isinstance(kind, str) and kind.partition(".")[0] in _SCOPES:
        cleaned["type"] = kind.rpartition(".")[2]
    return cleaned
