# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Class names and colours of the user's own data, from an argument or from a file beside the images."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .reading import DataError

CLASS_FILES = ("classes.json", "id2label.json", "classes.txt", "labels.txt")


@dataclass(frozen=True)
class Classes:
    """Class names and colours.

    Attributes:
        names: in the order of the class indices.
        palette: `[red, green, blue]` of each class, or None.
        no_class: colours of pixels without a class.
    """

    names: list[str]
    palette: list[list[int]] | None = None
    no_class: list[list[int]] = field(default_factory=list)


def read_classes(given: Any, where: str = "classes") -> Classes:
    """Read classes from a list of names, `{index: name}`, a list of `{"name": ..., "color": [r, g, b]}`, or a number.

    An entry `{"color": [r, g, b], "ignore": true}` holds a colour of pixels without a class.

    Args:
        given: one of these.
        where: name of `given` in error messages.

    Raises:
        DataError: if `given` is none of these.
    """
    if isinstance(given, int) and not isinstance(given, bool):
        if given < 1:
            raise DataError(f"{where}: there must be at least one class, got {given}")
        given = [f"class {index}" for index in range(given)]
    if isinstance(given, Mapping):
        try:
            by_index = {int(index): name for index, name in given.items()}
        except (TypeError, ValueError):
            raise DataError(f"{where}: class indices must be whole numbers, got {list(given)[:5]}") from None
        if sorted(by_index) != list(range(len(by_index))):
            raise DataError(f"{where}: class indices must be 0, 1, 2... without gaps, got {sorted(by_index)[:20]}")
        given = [by_index[index] for index in range(len(by_index))]
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise DataError(f"{where} must be a list of names, {{index: name}}, or a number, got {str(given)[:80]!r}")
    no_class = [item for item in given if isinstance(item, Mapping) and item.get("ignore")]
    classes = [item for item in given if item not in no_class]
    if not classes:
        raise DataError(f"{where} names no classes")
    if all(isinstance(item, str) for item in given):
        return Classes(_checked_names(list(given), where))
    if not all(isinstance(item, Mapping) and isinstance(item.get("name"), str) for item in classes):
        raise DataError(f'{where} must hold names, or {{"name": ..., "color": [r, g, b]}}, got {str(given[0])[:80]}')
    palette = [item.get("color") for item in classes]
    names = _checked_names([item["name"] for item in classes], where)
    if all(colour is None for colour in palette):
        return Classes(names)
    return Classes(
        names, checked_palette(palette, where), checked_palette([item.get("color") for item in no_class], where)
    )


def classes_of_folder(folder: Path) -> Classes | None:
    """Read the first of `CLASS_FILES` in `folder`. Return None if the folder has none of them.

    Raises:
        DataError: if the file cannot be read, or holds no classes.
    """
    for name in CLASS_FILES:
        path = folder / name
        if path.is_file():
            return classes_of_file(path)
    return None


def classes_of_file(path: Path) -> Classes:
    """Read classes from a text file with one name per line, or from a JSON file for [`read_classes`].

    Raises:
        DataError: if the file cannot be read, or holds no classes.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        given = json.loads(text) if path.suffix.lower() == ".json" else text.splitlines()
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read class names from {path}: {error}") from None
    if path.suffix.lower() != ".json":
        given = [line.strip() for line in given]
        while given and not given[-1]:
            given.pop()
    return read_classes(given, str(path))


def checked_palette(palette: Sequence[Any], where: str) -> list[list[int]]:
    """Return the colours as lists of three numbers from 0 to 255.

    Raises:
        DataError: if a colour is something else. `where` names the palette in the message.
    """
    checked = []
    for index, colour in enumerate(palette):
        values = list(colour) if isinstance(colour, Sequence) and not isinstance(colour, str) else []
        if len(values) != 3 or not all(isinstance(value, int) and 0 <= value <= 255 for value in values):
            raise DataError(
                f"{where}: the colour of class {index} must be [red, green, blue], 0 to 255, got {colour!r}"
            )
        checked.append(values)
    return checked


def _checked_names(names: list[str], where: str) -> list[str]:
    for index, name in enumerate(names):
        if not name:
            raise DataError(f"{where}: class {index} has no name")
        if names.index(name) != index:
            raise DataError(f"{where}: classes {names.index(name)} and {index} are both called {name!r}")
    return names
