# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Find published models by full or shortened names."""

import difflib
import re
from collections.abc import Collection

from ..escaping import short_repr
from . import FAMILIES, published_rows

SUGGESTIONS = 5


def published_names() -> dict[str, str]:
    """Return the names of all published models, each with its family."""
    return {name: family for family in FAMILIES for name in published_rows(family)}


def find_published(name: str, names: Collection[str] | None = None) -> str | None:
    """Return the full name of a published model, out of `names` (all published names by default).

    A shortened name has some words of one full name, in any order, with `-` or `_` between them:
    `deit-adapter-tiny-ade20k` is `upernet_deit_adapter_tiny_512_160k_ade20k`.

    Returns:
        None if no full name has these words.

    Raises:
        ValueError: if several full names have them.
    """
    names = published_names() if names is None else names
    if name in names:
        return name
    words = _words(name)
    found = [full for full in names if words and words <= _words(full)]
    if len(found) > 1:
        shown = ", ".join(found[:SUGGESTIONS]) + (f" and {len(found) - SUGGESTIONS} more" * (len(found) > SUGGESTIONS))
        raise ValueError(f"{short_repr(name)} may be {len(found)} published models: {shown}")
    return found[0] if found else None


def published_name(name: str) -> str:
    """Return the full name of a published model, see [`find_published`].

    Raises:
        ValueError: if no published model, or more than one, has this name, or it is no text.
    """
    if not isinstance(name, str):
        raise ValueError(f"the name of a published model must be a text, got {short_repr(name)}")
    found = find_published(name)
    if found is None:
        similar = similar_names(name)
        hint = f"did you mean {' or '.join(similar)}?" if similar else "`segtransformers models` lists them"
        raise ValueError(f"{short_repr(name)} is no published model: {hint}")
    return found


def similar_names(name: str) -> list[str]:
    """Return the names of published models that resemble an unknown name, whose words may be misspelt."""
    known = {word for full in published_names() for word in _words(full)}
    words = {(difflib.get_close_matches(word, known, 1, cutoff=0.75) or [word])[0] for word in _words(name)}
    shared = {full: len(words & _words(full)) for full in published_names()}
    close = difflib.get_close_matches(name, shared, SUGGESTIONS, cutoff=0.6)
    most = max(shared.values(), default=0)
    by_words = [full for full, count in shared.items() if count == most and count * 2 > len(words)]
    return list(dict.fromkeys([*close, *by_words]))[:SUGGESTIONS]


def _words(name: str) -> set[str]:
    return {word for word in re.split("[-_]", name.lower()) if word}


__all__ = ["find_published", "published_name", "published_names", "similar_names"]
