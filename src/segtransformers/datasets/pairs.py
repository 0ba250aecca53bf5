# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Find the layout of a folder, and pair its images with their masks."""

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
DATASETS_FILES = ("dataset_dict.json", "state.json")  # files in a folder that `datasets` saved


class MissingSplitError(DataError):
    """A data set lacks the split asked for."""


class MissingMasksError(MissingSplitError):
    """A split has images, but no folder of masks."""


@dataclass
class Pairs:
    """Paired files.

    Attributes:
        names: names of the samples, sorted or in the order of the layout's list.
        images, masks: the files of the samples, in the same order.
        ignored: files that are neither images nor masks.
    """

    names: list[str]
    images: list[Path]
    masks: list[Path]
    ignored: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class FolderLayout:
    """A folder and the layout of its files.

    Attributes:
        root: the folder, or one of its sub-folders.
        layout: the layout of the files in `root`.
        split: the value of `{split}` in the layout.
        has_splits: whether the folder is divided into splits.
    """

    root: Path
    layout: Layout
    split: str
    has_splits: bool = True


def canonical_split(split: str) -> str:
    """Return `train`, `validation` or `test` for any usual spelling of it, and other names unchanged."""
    return next((name for name, others in SPLITS.items() if split.lower() in others), split)


def find_known(folder: Path, kind: str, split: str) -> FolderLayout | None:
    """Find the layout of the known data set `kind` that `folder` has. Return None if it has none of them.

    Raises:
        DataError: if the folder lacks the split, or the masks of the split.
    """
    layouts = get_dataset_info(kind).layouts
    present = [(root, layout) for layout in layouts for root in _roots(folder, layout) if _has_layout(root, layout)]
    if not present:
        return None
    root, layout = present[0]
    name = layout.splits.get(canonical_split(split), split if split in layout.splits.values() else None)
    if name is None:
        raise MissingSplitError(f"{kind} has no split {split!r}: it has {', '.join(layout.splits)}")
    images = root / layout.images.format(split=name)
    if not images.is_dir():
        raise MissingSplitError(f"{folder} has no split {split!r}: {images} is missing")
    for root, layout in present:  # several layouts differ in their masks only
        if _holds(root / layout.masks.format(split=name), layout.mask_endings):
            return FolderLayout(root, layout, name)
    endings = " or *".join(dict.fromkeys(ending for _, layout in present for ending in layout.mask_endings))
    folders = dict.fromkeys(str(root / layout.masks.format(split=name)) for root, layout in present)
    raise DataError(f"{' or '.join(folders)} must hold masks *{endings}, but no such file was found")


def expected_folders(kind: str) -> str:
    """Describe the folders that [`find_known`] looks for, as part of a message."""
    layouts = get_dataset_info(kind).layouts
    options = dict.fromkeys(f"{_shown(layout.images)} and {_shown(layout.masks)}" for layout in layouts)
    return f"{kind} has folders {' or '.join(options)}"


def recognise(folder: Path) -> str | None:
    """Return the known data set whose folders and file names `folder` has, or None.

    Raises:
        DataError: if several data sets match.
    """
    kinds = [
        kind
        for kind in DATASETS
        if any(
            _has_layout(root, layout) and _has_its_names(root, layout)
            for layout in get_dataset_info(kind).layouts
            for root in _roots(folder, layout)
        )
    ]
    if len(kinds) > 1:
        raise DataError(f"{folder} may be {' or '.join(kinds)}: choose one of them with kind=... (--kind)")
    return kinds[0] if kinds else None


def find_folders(
    folder: Path, split: str, image_ending: str | None = None, mask_ending: str | None = None
) -> FolderLayout | None:
    """Find a folder of images and a folder of masks in `folder`. Return None if it has neither.

    The images may be in `images/train`, `train/images` or `images`. `IMAGE_FOLDERS` and `MASK_FOLDERS` list other names
    of the folders.

    Raises:
        DataError: if one of the two folders is missing, if several folders may be meant, or if the split is missing.
    """
    spellings = SPLITS.get(canonical_split(split), (split,))
    every = [spelling for several in SPLITS.values() for spelling in several]
    split_first = [spelling for spelling in every if _one_of(folder / spelling, IMAGE_FOLDERS, "images")]
    root, name, has_splits = folder, "", False
    if split_first:
        name = _present_spelling(folder, split, spellings, split_first)
        root, has_splits = folder / name, True
    images, masks = _one_of(root, IMAGE_FOLDERS, "images"), _one_of(root, MASK_FOLDERS, "masks")
    if images is None and masks is None:
        return None
    if images is None or masks is None:
        missing, names = ("images", IMAGE_FOLDERS) if images is None else ("masks", MASK_FOLDERS)
        raise DataError(
            f"{root} has no folder of {missing}: name it {' or '.join(names[:3])}; {describe_contents(root)}"
        )
    if not has_splits:
        present = [spelling for spelling in every if (root / images / spelling).is_dir()]
        if present:
            name, has_splits = _present_spelling(root / images, split, spellings, present), True
            images, masks = f"{images}/{{split}}", f"{masks}/{{split}}"
            mask_folder = root / masks.format(split=name)
            if not mask_folder.is_dir():
                raise MissingMasksError(
                    f"{mask_folder} is missing: the folders of the masks must have the names of those of the images"
                )
    layout = Layout(
        images=images,
        masks=masks,
        image_endings=IMAGE_ENDINGS if image_ending is None else (image_ending,),
        mask_endings=MASK_ENDINGS if mask_ending is None else (mask_ending,),
        splits={},
    )
    return FolderLayout(root, layout, name, has_splits)


def pair_files(found: FolderLayout) -> Pairs:
    """List the samples of a folder.

    Raises:
        DataError: if the folder holds no images, if an image has no mask or a mask no image, or if two files have the
            same name.
    """
    layout, root = found.layout, found.root
    image_folder, mask_folder = (root / path.format(split=found.split) for path in (layout.images, layout.masks))
    images, no_images = _files_by_name(image_folder, layout.image_endings)
    masks, no_masks = _files_by_name(mask_folder, layout.mask_endings)
    if not images and not masks:
        endings = " ".join(f"*{ending}" for ending in layout.image_endings)
        raise DataError(f"{image_folder} holds no images (looked for {endings})")
    if layout.list_file is not None:
        names = _listed(root / layout.list_file.format(split=found.split))
        _refuse("are listed but have no image in", [name for name in names if name not in images], image_folder)
        _refuse("are listed but have no mask in", [name for name in names if name not in masks], mask_folder)
        return Pairs(names, [images[name] for name in names], [masks[name] for name in names])
    hint = _hint_about_endings(images, masks)
    without_mask = [str(path.relative_to(image_folder)) for name, path in images.items() if name not in masks]
    _refuse(f"of {len(images)} images in {image_folder} have no mask in", without_mask, mask_folder, hint)
    without_image = [str(path.relative_to(mask_folder)) for name, path in masks.items() if name not in images]
    _refuse(f"of {len(masks)} masks in {mask_folder} have no image in", without_image, image_folder, hint)
    names = sorted(images)
    ignored = []
    if not layout.splits:  # known data sets have other files beside the masks
        templates = [path for path in (layout.images, layout.masks) if "{split}" in path]
        above = [root / path.removesuffix("/{split}") for path in templates]
        outside = [path for folder in above for path in sorted(folder.iterdir()) if path.is_file()]
        ignored = [path for path in [*outside, *no_images, *no_masks] if not path.name.startswith(".")]
    return Pairs(names, [images[name] for name in names], [masks[name] for name in names], ignored)


def _roots(folder: Path, layout: Layout) -> list[Path]:
    return [folder, *(folder / subfolder for subfolder in layout.subfolders)]


def _has_layout(root: Path, layout: Layout) -> bool:
    names = layout.splits.values()
    if layout.list_file is not None and not any(
        (root / layout.list_file.format(split=name)).is_file() for name in names
    ):
        return False
    folders = (layout.images, layout.masks)
    return any(all((root / path.format(split=name)).is_dir() for path in folders) for name in names)


def _has_its_names(root: Path, layout: Layout) -> bool:
    """Whether the first image matches the layout's pattern of names."""
    if layout.name_pattern is None:
        return True
    for split in layout.splits.values():
        folder = root / layout.images.format(split=split)
        if folder.is_dir():
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = _without_ending(entry.name, layout.image_endings)
                    if name is not None and not entry.name.startswith("."):
                        return re.fullmatch(layout.name_pattern, name) is not None
    return False


def _holds(folder: Path, endings: Sequence[str]) -> bool:
    return any(_without_ending(path.name, endings) is not None for path in _walk(folder))


def _one_of(folder: Path, names: Sequence[str], content: str) -> str | None:
    """Return the one of `names` that is a folder in `folder`, or None. `content` describes its files in the message."""
    present = [name for name in names if (folder / name).is_dir()]
    if len(present) > 1 and len({os.path.realpath(folder / name) for name in present}) > 1:
        raise DataError(
            f"{folder} has several folders that may hold the {content}: {', '.join(present)}. Keep one of them"
        )
    return present[0] if present else None


def _present_spelling(folder: Path, split: str, spellings: Iterable[str], present: list[str]) -> str:
    """Return the first of `spellings` of a split that is among the `present` folders of `folder`."""
    for spelling in spellings:
        if spelling in present:
            return spelling
    raise MissingSplitError(f"{folder} has no split {split!r}: it has {', '.join(present)}")


def _files_by_name(folder: Path, endings: Sequence[str]) -> tuple[dict[str, Path], list[Path]]:
    """Return the files below `folder` by their path without ending, and the files with other endings."""
    if not folder.is_dir():
        raise DataError(f"the folder {folder} does not exist")
    found: dict[str, Path] = {}
    others = []
    for path in _walk(folder):
        stem = _without_ending(path.name, endings)
        if stem is None:
            others.append(path)
            continue
        name = _composed((path.relative_to(folder).parent / stem).as_posix())
        if name in found:
            raise DataError(f"{found[name]} and {path} differ in their endings only: keep one of them")
        found[name] = path
    return found, others


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files below `folder` in order. Links are followed, hidden files and folders are skipped."""
    seen = set()
    for current, folders, files in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(current))
        for name in sorted(files):
            if not name.startswith("."):
                yield Path(current, name)
        # a link to a folder above would never end
        folders[:] = [
            name
            for name in sorted(folders)
            if not name.startswith(".") and os.path.realpath(os.path.join(current, name)) not in seen
        ]


def _without_ending(file: str, endings: Sequence[str]) -> str | None:
    """Return the file name without the first of `endings` that it has, or None."""
    for ending in endings:
        if file.lower().endswith(ending.lower()) and len(file) > len(ending):
            return file[: -len(ending)]
    return None


def _composed(name: str) -> str:
    """Return the composed Unicode form of a name: file systems differ in the form of letters with accents."""
    return unicodedata.normalize("NFC", name)


def _listed(path: Path) -> list[str]:
    if not path.is_file():
        raise DataError(f"the list of the samples {path} does not exist")
    names = [_composed(line.strip()) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not names:
        raise DataError(f"{path} lists no samples")
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    _refuse("are listed twice in", twice, path)
    return names


def _refuse(problem: str, names: list[str], path: Path, hint: str = "") -> None:
    """Raise a `DataError` that lists `names`, if there are any."""
    if names:
        listed = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        raise DataError(f"{len(names)} {problem} {path}: {listed}. {hint or 'Add the missing files, or remove these'}")


def _hint_about_endings(images: dict[str, Path], masks: dict[str, Path]) -> str:
    """Return a hint where the names of masks are those of images with text appended, such as `_mask`."""
    for name in list(images)[:1]:
        longer = [path.name for mask, path in masks.items() if mask.startswith(name) and len(mask) > len(name)]
        if name not in masks and longer:
            appended = longer[0][len(Path(name).name) :]
            return f"If the names of masks end in {appended}, pass mask_ending={appended!r} (--mask-ending)"
    return ""


def _shown(path: str) -> str:
    return path.replace("{split}", "(split)")


def describe_contents(folder: Path) -> str:
    """List the first files of a folder, as part of a message."""
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    return f"it holds {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}" if names else "it is empty"
