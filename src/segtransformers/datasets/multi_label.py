# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Masks of multi-label data: bit planes of one mask, or a folder of masks for each class."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .known import DATASETS
from .pairs import SPLITS, FolderLayout, Pairs, find_folders
from .reading import NO_CLASS, DataError, LabelRule, Mask
from .rows import ClassFolderRows
from .sample_names import files_by_name, listed_names, problem_with

MOST_PLANES = 31  # bits of a signed integer of 32 bits, the largest that image files hold
IGNORED_VALUES = (NO_CLASS, 65535)  # of bit planes, where they are no sum of classes


@dataclass(frozen=True)
class MultiLabelRule:
    """Map the values of masks to masks of the classes.

    Attributes:
        num_labels: number of classes.
        of_class: the rule for files that hold one class each, whose class 1 is the class. None reads bit planes: bit k
            of a value is 1 where class k is present. Then 255 and 65535 stand for pixels without labels, if they are
            no sum of classes.
    """

    num_labels: int
    of_class: LabelRule | None = None

    def __post_init__(self):
        if self.of_class is None and self.num_labels > MOST_PLANES:
            raise DataError(
                f"a mask has bits for at most {MOST_PLANES} classes, not for {self.num_labels}: write a folder of "
                "masks for each class"
            )

    def describe(self) -> dict[str, Any]:
        """Return the options that decide on labels, in a form that JSON can hold."""
        if self.of_class is None:
            return {"multi_label": "bit planes"}
        return {"multi_label": "class folders", "label_map": self.of_class.describe()["label_map"]}

    def apply(self, mask: Mask, name: str) -> np.ndarray:
        """Return the masks of all classes, `(num_labels, height, width)` uint8 of 0, 1 and 255, from bit planes.

        Args:
            name: of the file in messages.

        Raises:
            DataError: if a value has a bit that stands for no class, or the file holds colours.
        """
        if mask.values.ndim != 2:
            raise DataError(
                f"the mask {name} holds colours, but multi-label masks need one channel, whose bit k is 1 where class "
                "k is present: save whole numbers, or a folder of masks for each class"
            )
        values = mask.values.astype(np.int64)
        limit = 1 << self.num_labels
        ignored = np.isin(values, [value for value in IGNORED_VALUES if value >= limit])
        wrong = values[((values < 0) | (values >= limit)) & ~ignored]
        if wrong.size:
            found, counts = np.unique(wrong, return_counts=True)
            listed = ", ".join(f"{value} ({count} pixels)" for value, count in zip(found[:5], counts[:5], strict=True))
            allowed = [str(value) for value in IGNORED_VALUES if value >= limit]
            others = f", and {' or '.join(allowed)} for pixels without labels" if allowed else ""
            raise DataError(
                f"the mask {name} has values with bits of no class: {listed}; expected are 0 to {limit - 1}, where bit "
                f"k is 1 if class k is present{others}"
            )
        planes = np.empty((self.num_labels, *values.shape), np.uint8)
        for index, plane in enumerate(planes):
            plane[...] = values >> index & 1
            plane[ignored] = NO_CLASS
        return planes

    def join(self, masks: Sequence[tuple[Mask, str] | None], size: tuple[int, int]) -> np.ndarray:
        """Return the masks of all classes, as [`apply`], from one file for each class.

        Args:
            masks: the mask of each class and the name of its file; None where the class is absent.
            size: (height, width).

        Raises:
            DataError: if a file holds other values than 0, 1 and 255.
        """
        assert self.of_class is not None
        planes = np.zeros((self.num_labels, *size), np.uint8)
        for plane, found in zip(planes, masks, strict=True):
            if found is not None:
                plane[...] = self.of_class.apply(*found)
        return planes


def check_multi_label_options(kind: str | None, reduce_labels: bool | None, label_map: Any) -> None:
    """Refuse options that multi-label data do not have.

    Raises:
        ValueError: naming the option.
    """
    if kind in DATASETS:
        raise ValueError(f"a pixel of {kind} has one class: leave out multi_label (--multi-label), or kind")
    for name, option, value in (
        ("reduce_labels", "--reduce-labels", reduce_labels),
        ("label_map", "--label-map", label_map),
    ):
        if value:
            raise ValueError(f"leave out {name} ({option}): bits of multi-label masks are classes, starting with bit 0")


def class_folders(found: FolderLayout) -> list[str]:
    """Return the names of the folders of masks, if there is one for each class, or nothing for other layouts.

    The folder of masks then holds no files, only folders, none of which is a folder of images, too, and a file in one
    of them has the name of an image.
    """
    layout = found.layout
    image_folder, mask_folder = (found.root / path.format(split=found.split) for path in (layout.images, layout.masks))
    if layout.splits or not mask_folder.is_dir() or image_folder == mask_folder:
        return []
    with os.scandir(mask_folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    names = sorted(entry.name for entry in visible if entry.is_dir())
    if not names or len(names) < len(visible) or any((image_folder / name).is_dir() for name in names):
        return []
    images, _ = files_by_name(image_folder, layout.image_endings, layout.image_prefix, [])
    for name in names:
        masks, _ = files_by_name(mask_folder / name, layout.mask_endings, layout.mask_prefix, [])
        if masks.keys() & images.keys():
            return names
    return []


def names_of_class_folders(folder: Path, image_ending: str | None, mask_ending: str | None) -> list[str]:
    """Return the names of the folders of classes in all splits, because a split may lack a class.

    Args:
        image_ending, mask_ending: as of `find_folders`.
    """
    names: set[str] = set()
    for split in SPLITS:
        try:
            found = find_folders(folder, split, image_ending, mask_ending)
        except DataError:  # the split is missing, or another is meant
            continue
        names.update(class_folders(found) if found is not None else ())
    return sorted(names)


def pair_class_folders(
    found: FolderLayout, folders: Sequence[str], classes: Sequence[str]
) -> tuple[ClassFolderRows, Pairs, list[str]]:
    """Pair images with their masks in the folders of the classes.

    Args:
        folders: of [`class_folders`].
        classes: names of the classes. Names of folders may differ from them in case, blanks and punctuation.

    Returns:
        the rows; their names, ignored files and problems; and the classes without a folder, which are absent.

    Raises:
        DataError: if a folder has the name of no class.
    """
    layout = found.layout
    image_folder, mask_folder = (found.root / path.format(split=found.split) for path in (layout.images, layout.masks))
    by_name = {_plain(name): index for index, name in enumerate(classes)}
    unknown = [name for name in folders if name not in classes and _plain(name) not in by_name]
    if unknown:
        raise DataError(
            f"the folder {mask_folder / unknown[0]} has the name of no class: rename it, or add the class to the "
            f"classes, which are {', '.join(list(classes)[:8])}"
        )
    problems: list[str] = []
    images, ignored = files_by_name(image_folder, layout.image_endings, layout.image_prefix, problems)
    if not images:
        raise DataError(f"{image_folder} holds no images")
    names = sorted(images)
    if layout.list_file is not None:
        path = found.root / layout.list_file.format(split=found.split)
        listed = listed_names(path, images, problems)
        problems += problem_with(
            f"of {len(listed)} samples in {path} have no image in", [n for n in listed if n not in images], image_folder
        )
        names = [name for name in listed if name in images]
    of_class: list[dict[str, Path]] = [{} for _ in classes]
    for folder in folders:
        index = list(classes).index(folder) if folder in classes else by_name[_plain(folder)]
        masks, others = files_by_name(mask_folder / folder, layout.mask_endings, layout.mask_prefix, problems)
        of_class[index] |= masks
        ignored += others
        strangers = [f"{folder}/{masks[name].name}" for name in masks if name not in images]
        problems += problem_with(
            f"of {len(masks)} masks in {mask_folder / folder} have no image in", strangers, image_folder
        )
    without = [name for name in names if not any(name in masks for masks in of_class)]
    problems += problem_with(
        f"of {len(names)} images in {image_folder} have no mask in any folder of", without, mask_folder
    )
    names = [name for name in names if name not in set(without)]
    rows = ClassFolderRows(
        [images[name] for name in names], [[masks.get(name) for masks in of_class] for name in names]
    )
    used = {name for folder in folders for name in (folder, _plain(folder))}
    absent = [name for name in classes if name not in used and _plain(name) not in used]
    pairs = Pairs(names, [], [], [path for path in ignored if not path.name.startswith(".")], problems)
    return rows, pairs, absent


def _plain(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum())


__all__ = [
    "MultiLabelRule",
    "check_multi_label_options",
    "class_folders",
    "names_of_class_folders",
    "pair_class_folders",
]
