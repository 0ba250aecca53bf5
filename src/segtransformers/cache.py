# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The user's cache folder and what it holds."""

import os
from pathlib import Path


def user_cache(name: str = "") -> Path:
    """Return a folder of the cache.

    The cache is `$SEGTRANSFORMERS_CACHE`; otherwise the folder `segtransformers` beside the cache of Hugging Face:
    `$HF_HOME`, `$XDG_CACHE_HOME/huggingface` or `~/.cache/huggingface`.
    """
    if own := os.environ.get("SEGTRANSFORMERS_CACHE"):
        return Path(own).expanduser().absolute() / name
    if hugging_face := os.environ.get("HF_HOME"):
        return Path(hugging_face).expanduser().absolute().parent / "segtransformers" / name
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "segtransformers" / name


def downloads_folder() -> Path:
    """Return the folder of the authors' files that were downloaded."""
    return user_cache("downloads")


def models_folder() -> Path:
    """Return the folder of the published models that were converted."""
    return user_cache("models")


def cached_model(name: str) -> Path:
    """Return the folder of a published model in the cache, which exists if the model was converted.

    Args:
        name: the full name.
    """
    return models_folder() / name
