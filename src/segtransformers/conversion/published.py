# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The published rows: for each config name its data set, mmseg's resolved model dict and test pipeline, as data."""

import functools
import json
from importlib import resources
from typing import Any

FAMILIES = ("vit_adapter",)


@functools.lru_cache
def published_rows(family: str) -> dict[str, dict[str, Any]]:
    """Config name -> `{"dataset": ..., "model": ..., "test_pipeline": ...}` of one of `FAMILIES`."""
    text = resources.files(__package__).joinpath(f"published_rows/{family}.json").read_text(encoding="utf-8")
    return json.loads(text)
