# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The user's cache folder."""

import os
from pathlib import Path


def user_cache(name: str) -> Path:
    """Return the folder `segtransformers/<name>` in `$XDG_CACHE_HOME`, or in `~/.cache` if that is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "segtransformers" / name
