# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Class names, palettes and folder layouts, as data."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources

DATASETS = (
    "ade20k",
    "cityscapes",
    "coco_stuff10k",
    "coco_stuff164k",
    "mapillary",
    "mapillary_as_cityscapes",
    "nyu_depth_v2",
    "pascal_context_59",
    "pascal_context_60",
)


@dataclass(frozen=True)
class Layout:
    """Where a folder keeps images and masks.

    Attributes:
        images: folder of the images; `{part}` stands for the name of the split.
        masks: folder of the masks, with the same sub-folders as that of the images.
        image_endings: of the names of images, in any case. What stands before is the name of the sample.
        mask_endings: of the names of masks.
        parts: what the folder calls the splits `train`, `validation` and `test`.
        list: a text file with the names of the samples of a split, one a line. None: all files.
        label_map: class index or 255 of each value in the masks. None: the values are class indices.
        inside: folders within the one that the user names where to look, too.
        names: a regular expression for the names of the samples, by which the data set is recognised.
    """

    images: str
    masks: str
    image_endings: Sequence[str]
    mask_endings: Sequence[str]
    parts: Mapping[str, str]
    list: str | None = None
    label_map: Mapping[int, int] | None = None
    inside: Sequence[str] = ()
    names: str | None = None


@dataclass(frozen=True)
class DatasetInfo:
    """What a data set calls and colours its classes.

    Attributes:
        classes: names, in the order of the class indices.
        palette: `[red, green, blue]` of each class, 0 to 255.
        reduce_zero_label: whether label 0 of the files means "no class" and all others are shifted down by one.
        ignore_index: the label of pixels without a class.
        source: where these were taken from.
        layouts: of its files on disk, the usual one first.
        hub: names of copies on the Hub, and the configuration of each.
    """

    classes: list[str]
    palette: list[list[int]]
    reduce_zero_label: bool
    ignore_index: int
    source: str
    layouts: list[Layout] = field(default_factory=list)
    hub: dict[str, str] = field(default_factory=dict)


@functools.lru_cache
def get_dataset_info(name: str) -> DatasetInfo:
    """The data set `name`, one of `DATASETS`.

    Raises:
        ValueError: for any other name.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; known are {', '.join(DATASETS)}")
    facts = json.loads(resources.files(__package__).joinpath(f"{name}.json").read_text(encoding="utf-8"))
    facts["layouts"] = [_layout(**layout) for layout in facts.get("layouts", [])]
    return DatasetInfo(**facts)


def _layout(image_ending: str, mask_ending: str, label_map: dict[str, int] | None = None, **others) -> Layout:
    table = None if label_map is None else {int(value): label for value, label in label_map.items()}
    return Layout(image_endings=(image_ending,), mask_endings=(mask_ending,), label_map=table, **others)
