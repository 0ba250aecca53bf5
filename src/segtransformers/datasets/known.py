# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Class names and palettes, as data."""

import functools
import json
from dataclasses import dataclass
from importlib import resources

DATASETS = (
    "ade20k",
    "cityscapes",
    "coco_stuff10k",
    "coco_stuff164k",
    "mapillary",
    "nyu_depth_v2",
    "pascal_context_59",
)


@dataclass(frozen=True)
class DatasetInfo:
    """What a data set calls and colours its classes.

    Attributes:
        classes: names, in the order of the class indices.
        palette: `[red, green, blue]` of each class, 0 to 255.
        reduce_zero_label: whether label 0 of the files means "no class" and all others are shifted down by one.
        ignore_index: the label of pixels without a class.
        source: where these were taken from.
    """

    classes: list[str]
    palette: list[list[int]]
    reduce_zero_label: bool
    ignore_index: int
    source: str


@functools.lru_cache
def get_dataset_info(name: str) -> DatasetInfo:
    """The data set `name`, one of `DATASETS`.

    Raises:
        ValueError: for any other name.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; known are {', '.join(DATASETS)}")
    text = resources.files(__package__).joinpath(f"{name}.json").read_text(encoding="utf-8")
    return DatasetInfo(**json.loads(text))
