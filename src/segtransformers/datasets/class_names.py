# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Class names and colours of the user's own data, from an argument or from a file beside the images."""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..escaping import short_repr
from ..files import check_readable
from .pairs import ROBOFLOW, SPLITS
from .reading import NO_CLASS, DataError

# the last four are written by CVAT, labelme2voc, the tools of CamVid and DeepGlobe, and Roboflow
CLASS_FILES = (
    "classes.json",
    "id2label.json",
    "classes.txt",
    "labels.txt",
    "labelmap.txt",
    "class_names.txt",
    "class_dict.csv",
    ROBOFLOW,
)

CVAT_LINE = re.compile(r"(?P<name>.+?):(?P<colour>\d{1,3},\d{1,3},\d{1,3}):[^:]*:[^:]*")


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
    """Read classes from a number, a list of names, `{index: name}`, `{name: index}`, `{name: colour}`, or a list of
    `{"name": ..., "color": colour}`.

    A colour is `[red, green, blue]` or `"#rrggbb"`. An entry `{"color": colour, "ignore": true}` holds a colour of
    pixels without a class.

    Args:
        given: the classes in one of these forms.
        where: name of `given` in error messages.

    Raises:
        DataError: if `given` is none of these.
    """
    if isinstance(given, int) and not isinstance(given, bool):
        if not 1 <= given <= NO_CLASS:
            raise DataError(f"{where}: the number of classes must be 1 to {NO_CLASS}, got {short_repr(given)}")
        given = [f"class {index}" for index in range(given)]
    if isinstance(given, Mapping) and given and all(map(_is_colour, given.values())):
        given = [{"name": str(name), "color": colour} for name, colour in given.items()]
    elif isinstance(given, Mapping) and given and all(map(_is_index, given.values())):
        given = {index: str(name) for name, index in given.items()}
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
    classes = [item for item in given if not isinstance(item, Mapping) or not item.get("ignore")]
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
    """Read the first of `CLASS_FILES` in `folder`, or Roboflow's in the folder of a split. Return None if none exists.

    Raises:
        DataError: if the file cannot be read, or holds no classes.
    """
    spellings = [spelling for several in SPLITS.values() for spelling in several]
    for path in (*(folder / name for name in CLASS_FILES), *(folder / name / ROBOFLOW for name in spellings)):
        if path.exists() and not path.is_dir():
            return classes_of_file(path)
    return None


def classes_of_file(path: Path) -> Classes:
    """Read classes from a JSON file for [`read_classes`], a table, or a text file with one name per line.

    A table `.csv` has columns of names and of red, green and blue values, or of pixel values and classes. CVAT's
    `labelmap.txt` has lines `name:red,green,blue:parts:actions`. A first line `__ignore__`, of labelme, stands for
    pixels without a class.

    Raises:
        DataError: if the file cannot be read, or holds no classes.
    """
    try:
        check_readable(path)
        text = path.read_text(encoding="utf-8-sig")
        given: Any = json.loads(text) if path.suffix.lower() == ".json" else text.splitlines()
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read class names from {path}: {error}") from None
    if path.suffix.lower() != ".json":
        given = [line.strip() for line in given]
        while given and not given[-1]:
            given.pop()
        if path.suffix.lower() == ".csv":
            given = _rows_of_table(given, str(path))
        elif given[:1] == ["__ignore__"]:
            given = given[1:]
        elif any(map(CVAT_LINE.fullmatch, given)):
            lines = [line for line in given if line and not line.startswith("#")]
            given = [_class_of_cvat(line, str(path)) for line in lines]
    return read_classes(given, str(path))


def _class_of_cvat(line: str, where: str) -> dict[str, Any]:
    match = CVAT_LINE.fullmatch(line)
    if match is None:
        raise DataError(f"{where}: expected name:red,green,blue:parts:actions, got {line[:80]!r}")
    return {"name": match["name"], "color": [int(value) for value in match["colour"].split(",")]}


def _rows_of_table(lines: list[str], where: str) -> Any:
    """Return the name and the colour, or `{value: name}`, of the rows of a table whose first row names the columns."""
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines) if row]
    except csv.Error as error:
        raise DataError(f"cannot read class names from {where}: {error}") from None
    header = [cell.lower() for cell in rows[0]] if rows else []
    if header == ["pixel value", "class"]:
        values = {row[0]: row[1] for row in rows[1:] if len(row) == 2}
        if len(values) != len(rows) - 1:
            raise DataError(f"{where}: each line must hold another pixel value and the name of its class")
        return values
    name = next((header.index(column) for column in ("name", "class", "class_name", "label") if column in header), None)
    colours = next((names for names in (("r", "g", "b"), ("red", "green", "blue")) if set(names) <= set(header)), None)
    if name is None or colours is None:
        raise DataError(
            f"{where}: the first line must name the columns name, r, g and b, got {','.join(header)[:80]!r}"
        )
    places = [header.index(column) for column in colours]
    try:
        return [{"name": row[name], "color": [int(row[place]) for place in places]} for row in rows[1:]]
    except (IndexError, ValueError):
        raise DataError(f"{where}: each line must hold a name and whole numbers for red, green and blue") from None


def checked_palette(palette: Sequence[Any], where: str) -> list[list[int]]:
    """Return the colours as lists of three numbers from 0 to 255.

    Raises:
        DataError: if a colour is something else. `where` names the palette in the message.
    """
    checked = []
    for index, colour in enumerate(palette):
        if not _is_colour(colour):
            raise DataError(
                f"{where}: the colour of class {index} must be [red, green, blue], 0 to 255, got {colour!r}"
            )
        checked.append(
            [int(colour[start : start + 2], 16) for start in (1, 3, 5)] if isinstance(colour, str) else list(colour)
        )
    return checked


def _is_colour(value: Any) -> bool:
    if isinstance(value, str):
        return re.fullmatch("#[0-9a-fA-F]{6}", value) is not None
    parts = list(value) if isinstance(value, Sequence) else []
    return len(parts) == 3 and all(_is_index(part) and 0 <= part <= 255 for part in parts)


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _checked_names(names: list[str], where: str) -> list[str]:
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        if not name:
            raise DataError(f"{where}: class {index} has no name")
        if first.setdefault(name, index) != index:
            raise DataError(f"{where}: classes {first[name]} and {index} are both called {name!r}")
    return names
