# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Which image of a folder belongs to which mask."""

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .known import DATASETS, Layout, get_dataset_info
from .reading import DataError

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "test": ("test", "testing"),
}
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "img_dir", "JPEGImages")
MASK_FOLDERS = ("masks", "mask", "labels", "label", "annotations", "annotation", "ann_dir", "SegmentationClass")
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
MASK_ENDINGS = (".png", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".jpg", ".jpeg")
DATASETS_FILES = ("dataset_dict.json", "state.json")  # of a folder that `datasets` saved


class MissingSplitError(DataError):
    """There is no such part of a data set."""


class MissingMasksError(MissingSplitError):
    """There are images of a part, and no folder of their masks."""


@dataclass
class Pairs:
    """Names, images and masks of the samples, in the order of the names; and files that are neither."""

    names: list[str]
    images: list[Path]
    masks: list[Path]
    ignored: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class Found:
    """A folder whose layout is known.

    Attributes:
        root: the folder, or one within it.
        layout: how its files lie.
        part: what stands for `{part}` in the layout.
        divided: whether there are parts at all.
    """

    root: Path
    layout: Layout
    part: str
    divided: bool = True


def canonical_split(split: str) -> str:
    """`train`, `validation` or `test` of any usual spelling; other names as they are."""
    return next((name for name, others in SPLITS.items() if split.lower() in others), split)


def find_known(folder: Path, kind: str, split: str) -> Found | None:
    """The layout of the data set `kind` that `folder` has, or None if it has none.

    Raises:
        DataError: if there is no such split, or it has no masks.
    """
    layouts = get_dataset_info(kind).layouts
    present = [(root, layout) for layout in layouts for root in _roots(folder, layout) if _is_there(root, layout)]
    if not present:
        return None
    root, layout = present[0]
    part = layout.parts.get(canonical_split(split), split if split in layout.parts.values() else None)
    if part is None:
        raise MissingSplitError(f"{kind} has no split {split!r}: it has {', '.join(layout.parts)}")
    if not (root / layout.images.format(part=part)).is_dir():
        raise MissingSplitError(f"{folder} has no split {split!r}: {root / layout.images.format(part=part)} is missing")
    for root, layout in present:  # the first whose masks are there
        if _holds(root / layout.masks.format(part=part), layout.mask_endings):
            return Found(root, layout, part)
    endings = " or *".join(dict.fromkeys(ending for _, layout in present for ending in layout.mask_endings))
    places = dict.fromkeys(str(root / layout.masks.format(part=part)) for root, layout in present)
    raise DataError(f"there are no masks *{endings} in {' or '.join(places)}")


def expected_folders(kind: str) -> str:
    """In words, what [`find_known`] looks for."""
    layouts = get_dataset_info(kind).layouts
    options = dict.fromkeys(f"{_shown(layout.images)} and {_shown(layout.masks)}" for layout in layouts)
    return f"{kind} has folders {' or '.join(options)}"


def recognise(folder: Path) -> str | None:
    """The known data set whose folders and names `folder` has, or None.

    Raises:
        DataError: if it may be several.
    """
    kinds = [
        kind
        for kind in DATASETS
        if any(
            _is_there(root, layout) and _has_its_names(root, layout)
            for layout in get_dataset_info(kind).layouts
            for root in _roots(folder, layout)
        )
    ]
    if len(kinds) > 1:
        raise DataError(f"{folder} may be {' or '.join(kinds)}: say which (kind=..., --kind)")
    return kinds[0] if kinds else None


def find_folders(
    folder: Path, split: str, image_ending: str | None = None, mask_ending: str | None = None
) -> Found | None:
    """The layout of a folder of images and a folder of masks, or None if `folder` has no such folders.

    `images/train`, `train/images` and plain `images` are all understood, and so are the other names above.

    Raises:
        DataError: if it has several of them, or no such split.
    """
    spellings = SPLITS.get(canonical_split(split), (split,))
    every = [spelling for several in SPLITS.values() for spelling in several]
    split_first = [spelling for spelling in every if _one_of(folder / spelling, IMAGE_FOLDERS, "images")]
    root, part, divided = folder, "", False
    if split_first:
        part = _part(folder, split, spellings, split_first)
        root, divided = folder / part, True
    images, masks = _one_of(root, IMAGE_FOLDERS, "images"), _one_of(root, MASK_FOLDERS, "masks")
    if images is None and masks is None:
        return None
    if images is None or masks is None:
        missing, names = ("images", IMAGE_FOLDERS) if images is None else ("masks", MASK_FOLDERS)
        raise DataError(f"{root} has no folder of {missing}: call it {' or '.join(names[:3])}; {what_is_in(root)}")
    if not divided:
        parts = [spelling for spelling in every if (root / images / spelling).is_dir()]
        if parts:
            part, divided = _part(root / images, split, spellings, parts), True
            images, masks = f"{images}/{{part}}", f"{masks}/{{part}}"
            if not (root / masks.format(part=part)).is_dir():
                place = root / masks.format(part=part)
                raise MissingMasksError(f"{place} is missing: masks lie in folders named like those of the images")
    layout = Layout(
        images=images,
        masks=masks,
        image_endings=IMAGE_ENDINGS if image_ending is None else (image_ending,),
        mask_endings=MASK_ENDINGS if mask_ending is None else (mask_ending,),
        parts={},
    )
    return Found(root, layout, part, divided)


def pair_files(found: Found) -> Pairs:
    """The samples of a folder.

    Raises:
        DataError: if an image has no mask or a mask no image, if two files have one name, or if there are none.
    """
    layout, root = found.layout, found.root
    image_folder, mask_folder = (root / path.format(part=found.part) for path in (layout.images, layout.masks))
    images, no_images = _files_by_name(image_folder, layout.image_endings)
    masks, no_masks = _files_by_name(mask_folder, layout.mask_endings)
    if not images and not masks:
        endings = " ".join(f"*{ending}" for ending in layout.image_endings)
        raise DataError(f"there are no images in {image_folder} (looked for {endings})")
    if layout.list is not None:
        names = _listed(root / layout.list.format(part=found.part))
        _complain("are listed but have no image in", [name for name in names if name not in images], image_folder)
        _complain("are listed but have no mask in", [name for name in names if name not in masks], mask_folder)
        return Pairs(names, [images[name] for name in names], [masks[name] for name in names])
    hint = _hint_of_endings(images, masks)
    without_mask = [str(path.relative_to(image_folder)) for name, path in images.items() if name not in masks]
    _complain(f"of {len(images)} images in {image_folder} have no mask in", without_mask, mask_folder, hint)
    without_image = [str(path.relative_to(mask_folder)) for name, path in masks.items() if name not in images]
    _complain(f"of {len(masks)} masks in {mask_folder} have no image in", without_image, image_folder, hint)
    names = sorted(images)
    ignored = []
    if not layout.parts:  # known data sets have other files beside the masks
        beside = (root / path.removesuffix("/{part}") for path in (layout.images, layout.masks) if "{part}" in path)
        loose = [path for place in beside for path in sorted(place.iterdir()) if path.is_file()]
        ignored = [path for path in [*loose, *no_images, *no_masks] if not path.name.startswith(".")]
    return Pairs(names, [images[name] for name in names], [masks[name] for name in names], ignored)


def _roots(folder: Path, layout: Layout) -> list[Path]:
    return [folder, *(folder / inside for inside in layout.inside)]


def _is_there(root: Path, layout: Layout) -> bool:
    folders = (layout.images, layout.masks)
    if layout.list is not None and not any(
        (root / layout.list.format(part=x)).is_file() for x in layout.parts.values()
    ):
        return False
    return any(all((root / path.format(part=part)).is_dir() for path in folders) for part in layout.parts.values())


def _has_its_names(root: Path, layout: Layout) -> bool:
    if layout.names is None:
        return True
    for part in layout.parts.values():
        folder = root / layout.images.format(part=part)
        if folder.is_dir():
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = _without_ending(entry.name, layout.image_endings)
                    if name is not None and not entry.name.startswith("."):
                        return re.fullmatch(layout.names, name) is not None
    return False


def _holds(folder: Path, endings: Sequence[str]) -> bool:
    return any(_without_ending(path.name, endings) is not None for path in _walk(folder))


def _one_of(folder: Path, names: Sequence[str], what: str) -> str | None:
    there = [name for name in names if (folder / name).is_dir()]
    if len(there) > 1 and len({os.path.realpath(folder / name) for name in there}) > 1:
        raise DataError(f"{folder} has several folders that may hold the {what}: {', '.join(there)}. Keep one of them")
    return there[0] if there else None


def _part(folder: Path, split: str, spellings: Iterable[str], there: list[str]) -> str:
    for spelling in spellings:
        if spelling in there:
            return spelling
    raise MissingSplitError(f"{folder} has no split {split!r}: it has {', '.join(there)}")


def _files_by_name(folder: Path, endings: Sequence[str]) -> tuple[dict[str, Path], list[Path]]:
    """Files below `folder` by their path without ending, and those with other endings."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    found: dict[str, Path] = {}
    others = []
    for path in _walk(folder):
        stem = _without_ending(path.name, endings)
        if stem is None:
            others.append(path)
            continue
        name = _same_form((path.relative_to(folder).parent / stem).as_posix())
        if name in found:
            raise DataError(f"{found[name]} and {path} have the same name but for their endings: keep one of them")
        found[name] = path
    return found, others


def _walk(folder: Path) -> Iterator[Path]:
    """The files below `folder`, links followed, in order. Hidden ones do not count."""
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(place))
        for name in sorted(files):
            if not name.startswith("."):
                yield Path(place, name)
        # a link to a folder above would go round for ever
        folders[:] = [
            name
            for name in sorted(folders)
            if not name.startswith(".") and os.path.realpath(os.path.join(place, name)) not in seen
        ]


def _without_ending(file: str, endings: Sequence[str]) -> str | None:
    for ending in endings:
        if file.lower().endswith(ending.lower()) and len(file) > len(ending):
            return file[: -len(ending)]
    return None


def _same_form(name: str) -> str:
    """Letters with accents have two spellings in Unicode, and file systems differ in which they give."""
    return unicodedata.normalize("NFC", name)


def _listed(path: Path) -> list[str]:
    if not path.is_file():
        raise DataError(f"there is no {path}, the list of the samples")
    names = [_same_form(line.strip()) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not names:
        raise DataError(f"{path} lists no samples")
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    _complain("are listed twice in", twice, path)
    return names


def _complain(problem: str, names: list[str], place: Path, hint: str = "") -> None:
    if names:
        listed = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        raise DataError(f"{len(names)} {problem} {place}: {listed}. {hint or 'Add what is missing, or take them away'}")


def _hint_of_endings(images: dict[str, Path], masks: dict[str, Path]) -> str:
    """What to do where masks are called like the images but for something that all of them append."""
    for name in list(images)[:1]:
        longer = [path.name for mask, path in masks.items() if mask.startswith(name) and len(mask) > len(name)]
        if name not in masks and longer:
            appended = longer[0][len(Path(name).name) :]
            return f"If the names of masks end in {appended}, pass mask_ending={appended!r} (--mask-ending)"
    return ""


def _shown(path: str) -> str:
    return path.replace("{part}", "(split)")


def what_is_in(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    return f"it holds {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}" if names else "it is empty"
