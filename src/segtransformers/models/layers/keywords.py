# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Check the keyword arguments that transformers' own models hand to every backbone."""

from collections.abc import Mapping
from typing import Any

from transformers.utils import TransformersKwargs


def check_transformers_kwargs(kwargs: Mapping[str, Any]) -> None:
    """Refuse keyword arguments that are not in [`TransformersKwargs`], such as a misspelt name.

    transformers' heads pass all of these on. A backbone without attentions or text has no use for them.

    Raises:
        TypeError: naming the unknown argument.
    """
    for name in kwargs:
        if name not in TransformersKwargs.__annotations__:
            raise TypeError(f"forward() got an unexpected keyword argument {name!r}")


__all__ = ["check_transformers_kwargs"]
