# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The published rows as data: for each config name what its authors say about it, and what conversion needs.

Sources: `segmentation/README.md` of each repository, and the configs that it links.
"""

import functools
import json
from importlib import resources
from typing import Any

FAMILIES = ("vit_adapter", "internimage", "vit_comer", "segmenter")
# dataset: what the checkpoint was trained for. miou, miou_ms: published percent, single scale and multi-scale + flip.
# parameters: as published. num_parameters: of the original's code, counted. crop_size: side in pixels, or [height,
# width]. download: where the authors keep the file. note: conflicts between sources, and what is missing.
PUBLISHED_FIELDS = ("dataset", "miou", "miou_ms", "parameters", "num_parameters", "crop_size", "download", "note")


@functools.lru_cache
def published_rows(family: str) -> dict[str, dict[str, Any]]:
    """Config name -> `PUBLISHED_FIELDS`, mmseg's resolved `model` dict, its `test_pipeline`, and
    `multi_scale_pipeline`, that of the authors' config for several scales or None; for one of `FAMILIES`."""
    text = resources.files(__package__).joinpath(f"rows/{family}.json").read_text(encoding="utf-8")
    return json.loads(text)


def published_row(name: str) -> dict[str, Any]:
    """The row of a config of any family.

    Raises:
        ValueError: if there is none of that name.
    """
    for family in FAMILIES:
        if name in published_rows(family):
            return published_rows(family)[name]
    raise ValueError(f"{name!r} is no published config: the tables in the README name them")


def published_table(family: str) -> str:
    """The rows of a family as a Markdown table, with footnotes for notes."""
    lines = [
        "| config | data set | crop | mIoU | mIoU (multi-scale, flip) | parameters | file |",
        "|---|---|---|---|---|---|---|",
    ]
    notes: list[str] = []
    for name, row in published_rows(family).items():
        mark = ""
        if row["note"]:
            if row["note"] not in notes:
                notes.append(row["note"])
            mark = f" [{notes.index(row['note']) + 1}]"
        file = row["download"] and f"[{row['download'].rpartition('/')[2]}]({row['download']})"
        crop = row["crop_size"]
        crop = "x".join(map(str, crop)) if isinstance(crop, list) else crop
        values = (row["dataset"], crop, row["miou"], row["miou_ms"], row["parameters"], file)
        lines.append(f"| `{name}`{mark} | {' | '.join('-' if value is None else str(value) for value in values)} |")
    return "\n".join([*lines, "", *(f"[{index}] {note}." for index, note in enumerate(notes, start=1))]).rstrip()


def published_outputs(row: dict[str, Any]) -> int:
    """How many outputs the model of a row has; that may be more than its data set has classes."""
    return row["model"]["decode_head"]["num_classes"]


__all__ = [
    "FAMILIES",
    "PUBLISHED_FIELDS",
    "published_outputs",
    "published_row",
    "published_rows",
    "published_table",
]
