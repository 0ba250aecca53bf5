# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The share of each class in an image or raster, as `segtransformers segment` prints it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..escaping import printable
from .output import result_table

LISTED_CLASSES = 12


def print_shares(title: str, areas: Mapping[int, float], config: Any, total: float) -> None:
    """Print the share of the classes with the largest areas.

    Args:
        title: a line above them.
        areas: pixels, or the share of them, of each class.
        config: of the model.
        total: all pixels, or 1.
    """
    from ..visualization import distinct_colours

    listed = shares(areas, config, total)
    shown = listed[:LISTED_CLASSES]
    palette = getattr(config, "palette", None) or distinct_colours(max(areas, default=0) + 1)
    rows = [(f"{100 * one['share']:.1f} %", printable(one["name"])) for one in shown]
    lines = [title, *(f"  {share:>7}  {name}" for share, name in rows)]
    if len(listed) > LISTED_CLASSES:
        more = f"and {len(listed) - LISTED_CLASSES} more classes"
        lines.append(f"  {more}")
        rows.append(("", more))
    white = (255, 255, 255)
    colours = [palette[one["index"]] if one["index"] < len(palette) else white for one in shown]
    swapped = [(name, share) for share, name in rows]
    result_table("\n".join(lines), ("", " "), swapped, title, colours=[*colours, white][: len(rows)])


def shares(areas: Mapping[int, float], config: Any, total: float) -> list[dict[str, Any]]:
    """Return index, name and share of each class, largest first. The arguments are those of [`print_shares`]."""
    from ..image_processing import label_map_classes

    names = label_map_classes(config)
    return [
        {"index": index, "name": str(names.get(index, index)), "share": areas[index] / total}
        for index in sorted(areas, key=lambda index: -areas[index])
    ]


def result_files(files: Mapping[str, Path]) -> dict[str, Any]:
    """Return the files of results by option, for a JSON document."""
    return {"files": {option.removeprefix("--"): str(path) for option, path in files.items()}}
