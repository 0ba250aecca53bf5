# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Registries' names in configs of MMSegmentation 1.x, and of 0.x with parts of MMClassification."""

from typing import Any

# the prefix of a type, or the value of `_scope_`
_SCOPES = ("mmengine", "mmcv", "mmdet", "mmpretrain", "mmseg", "mmsegextension", "mmsegext")
# the same name in two registries means two computations
_SCOPED_TYPES = ("mmcls.ConvNeXt", "mmpretrain.ConvNeXt")


def without_scopes(value: Any) -> Any:
    """Return a config without the names of registries, which MMSegmentation 0.x does not write."""
    if isinstance(value, list | tuple):
        return type(value)(without_scopes(item) for item in value)
    if not isinstance(value, dict):
        return value
    cleaned = {key: without_scopes(item) for key, item in value.items() if key != "_scope_"}
    kind = cleaned.get("type")
    if isinstance(kind, str) and kind not in _SCOPED_TYPES and kind.partition(".")[0] in _SCOPES:
        cleaned["type"] = kind.rpartition(".")[2]
    return cleaned
