# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The known data sets: their class names, palettes and folder layouts, read from JSON files."""

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
    "deepglobe_land_cover",
    "deepglobe_roads",
    "loveda",
    "mapillary",
    "mapillary_as_cityscapes",
    "nyu_depth_v2",
    "pascal_context_59",
    "pascal_context_60",
    "potsdam",
    "spacenet_buildings",
    "vaihingen",
    "voc2012",
)


@dataclass(frozen=True)
class Layout:
    """The places of images and masks within the folder of a data set.

    Attributes:
        images: folder of the images; `{split}` stands for the folder's name of the split.
        masks: folder of the masks, with the same sub-folders as the folder of the images.
        image_endings: endings of image files, in upper or lower case. The rest of the name is the name of the sample.
        mask_endings: endings of mask files, likewise.
        splits: the folder's names of the splits `train`, `validation` and `test`. Empty if it is not divided.
        list_file: a text file with the names of a split's samples, one per line. None takes all files.
        label_map: class index, or 255 for no class, of each value in the masks. None: the values are class indices.
        subfolders: folders within the folder of the data set that may have this layout instead.
        name_pattern: a regular expression for the names of the samples, by which the data set is recognised.
        image_prefix, mask_prefix: text before the name of the sample in the names of image and mask files.
        parts: folders that `{part}` stands for in `images` and `masks`; their samples are joined.
        bands: number of bands of the images.
    """

    images: str
    masks: str
    image_endings: Sequence[str]
    mask_endings: Sequence[str]
    splits: Mapping[str, str]
    list_file: str | None = None
    label_map: Mapping[int, int] | None = None
    subfolders: Sequence[str] = ()
    name_pattern: str | None = None
    image_prefix: str = ""
    mask_prefix: str = ""
    parts: Sequence[str] = ()
    bands: int = 3


@dataclass(frozen=True)
class DatasetInfo:
    """The classes of a known data set, and the layouts of its files.

    Attributes:
        classes: class names, in the order of the class indices.
        palette: `[red, green, blue]` of each class, 0 to 255.
        reduce_zero_label: whether value 0 in the masks means "no class" and all other values go down by one.
        ignore_index: the label of pixels without a class.
        source: the repository and file from which these facts were taken.
        layouts: layouts of the files on disk, the most common one first.
        hub: names of copies on the Hub, with the configuration of each.
        colour_masks: whether masks hold the colours of the palette. Masks with class indices are taken, too.
        no_class_colours: colours of pixels without a class.
        colour_threshold: value from which on a channel of a colour is 255, and else 0. None takes colours as they are.
        samples: names of the samples of each split, where folders do not divide them.
    """

    classes: list[str]
    palette: list[list[int]]
    reduce_zero_label: bool
    ignore_index: int
    source: str
    layouts: list[Layout] = field(default_factory=list)
    hub: dict[str, str] = field(default_factory=dict)
    colour_masks: bool = False
    no_class_colours: list[list[int]] = field(default_factory=list)
    colour_threshold: int | None = None
    samples: dict[str, list[str]] | None = None


@functools.lru_cache
def get_dataset_info(name: str) -> DatasetInfo:
    """Return the facts about the data set `name`, one of `DATASETS`.

    Raises:
        ValueError: for any other name.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}: choose one of {', '.join(DATASETS)}")
    facts = json.loads(resources.files(__package__).joinpath(f"{name}.json").read_text(encoding="utf-8"))
    facts["layouts"] = [_layout(**layout) for layout in facts.get("layouts", [])]
    return DatasetInfo(**facts)


def _layout(image_ending: str, mask_ending: str, label_map: dict[str, int] | None = None, **others) -> Layout:
    table = None if label_map is None else {int(value): label for value, label in label_map.items()}
    return Layout(image_endings=(image_ending,), mask_endings=(mask_ending,), label_map=table, **others)
