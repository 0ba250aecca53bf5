# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The published rows: the authors' results and files for each config, and its resolved settings for the conversion.

Sources: `segmentation/README.md` of each repository, and the configs that it links; for MMSegmentation's own zoo, the
metafiles of its packages 0.30.0 and 1.2.2.
"""

import functools
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

FAMILIES = (
    "vit_adapter",
    "internimage",
    "vit_comer",
    "segmenter",
    "mmseg_zoo",
    "dinov2",
    "dinov3",
    "flash_internimage",
    "eva01",
    "eva02",
    "one_peace",
)
# dataset: the data set of the checkpoint. miou, miou_ms: published percent, single scale and multi-scale + flip.
# parameters: as published. num_parameters: counted in the original code. crop_size: side in pixels, or [height, width].
# download: address of the authors' file, or a list of addresses of it. note: conflicts of sources, missing facts.
PUBLISHED_FIELDS = ("dataset", "miou", "miou_ms", "parameters", "num_parameters", "crop_size", "download", "note")


@functools.lru_cache
def published_rows(family: str) -> dict[str, dict[str, Any]]:
    """Return the rows of a family, one of `FAMILIES`, by config name.

    A row has `PUBLISHED_FIELDS`, mmseg's resolved `model` dict, its `test_pipeline`, and `multi_scale_pipeline`, which
    is the test pipeline of the authors' multi-scale config or None. Rows of models that the authors published as two
    files also have `trunk_download`, the address of the backbone's file, and `config_status`, the certainty of the
    config.
    """
    text = resources.files(__package__).joinpath(f"rows/{family}.json").read_text(encoding="utf-8")
    return json.loads(text)


def published_row(name: str) -> dict[str, Any]:
    """Return the row of a config of any family.

    Raises:
        ValueError: if no row has this name.
    """
    for family in FAMILIES:
        if name in published_rows(family):
            return published_rows(family)[name]
    raise ValueError(f"{name!r} is not a published config: `segtransformers models` lists them")


def published_table(family: str) -> str:
    """Return the rows of a family as a Markdown table with numbered notes below.

    Parameters are counted in the original code, and the size is that of the converted weights in float32.
    """
    lines = [
        "| name | data set | crop | mIoU | mIoU (multi-scale, flip) | parameters | size |",
        "|---|---|---|---|---|---|---|",
    ]
    notes: list[str] = []
    for name, row in published_rows(family).items():
        mark = ""
        if row["note"]:
            if row["note"] not in notes:
                notes.append(row["note"])
            mark = f" ({notes.index(row['note']) + 1})"
        addresses, crop, count = download_addresses(row), row["crop_size"], row["num_parameters"]
        shown = f"[`{name}`]({addresses[0]})" if addresses else f"`{name}`"
        crop = "x".join(map(str, crop)) if isinstance(crop, list) else crop
        counted = (f"{count / 1e6:.0f} M", _float32_size(count)) if count else (row["parameters"], None)
        values = (row["dataset"], crop, row["miou"], row["miou_ms"], *counted)
        lines.append(f"| {shown}{mark} | {' | '.join('-' if value is None else str(value) for value in values)} |")
    return "\n".join([*lines, "", *(f"{index}. {note}." for index, note in enumerate(notes, start=1))]).rstrip()


def _float32_size(count: int) -> str:
    size = 4 * count
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def download_addresses(row: dict[str, Any]) -> list[str]:
    """Return the addresses of a row's file: the authors' release, then other copies of the same file."""
    addresses = row["download"] or []
    return [addresses] if isinstance(addresses, str) else list(addresses)


def trunk_addresses(row: dict[str, Any]) -> list[str]:
    """Return the addresses of the backbone's file of a row whose authors published head and backbone as two files."""
    addresses = row.get("trunk_download") or []
    return [addresses] if isinstance(addresses, str) else list(addresses)


def published_outputs(row: dict[str, Any]) -> int:
    """Return the number of outputs of a row's model, which may exceed the number of classes in its data set."""
    model = row["model"]
    return declared_classes(model["decode_head"]) if "decode_head" in model else model["num_classes"]


def declared_classes(head: Mapping[str, Any]) -> Any:
    """Return the number of classes that a head's config declares. It is no whole number in some wrong configs.

    Only InternImage's Mask2Former has `num_classes`; its numbers of things and stuff are meaningless.
    """
    count = head.get("num_classes")
    numbers = [head.get("num_things_classes", 80), head.get("num_stuff_classes", 53)]
    if count is None and all(type(number) is int for number in numbers):
        return sum(numbers)
    return count


__all__ = [
    "FAMILIES",
    "PUBLISHED_FIELDS",
    "declared_classes",
    "download_addresses",
    "published_outputs",
    "published_row",
    "published_rows",
    "published_table",
    "trunk_addresses",
]
