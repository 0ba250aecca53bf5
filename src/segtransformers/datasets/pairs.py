# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Find the layout of a folder, and pair its images with their masks."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers.utils import logging

from ..rasters import RASTER_ENDINGS
from .known import DATASETS, Layout, get_dataset_info
from .polygons import POLYGON_ENDINGS
from .reading import DataError
from .sample_names import files_by_name, hint_about_names, listed_names, problem_with, walk_files, without_ending

logger = logging.get_logger(__name__)

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "test": ("test", "testing"),
}
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "img_dir", "JPEGImages")
ROBOFLOW = "_classes.csv"  # a file in each split of Roboflow's exports, beside images and their masks
ROBOFLOW_ENDING = "_mask.png"
MASK_FOLDERS = (
    "masks",
    "mask",
    "labels",
    "label",
    "annotations",
    "annotation",
    "ann_dir",
    "SegmentationClass",
    "SegmentationClassPNG",
)
LIST_FOLDERS = ("ImageSets/Segmentation", "ImageSets", "splits", ".")  # folders of lists such as train.txt
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
MASK_ENDINGS = (".png", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".jpg", ".jpeg")


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
        problems: what is wrong with the other files, which belong to no pair.
    """

    names: list[str]
    images: list[Path]
    masks: list[Path]
    ignored: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class FolderLayout:
    """A folder and the layout of its files.

    Attributes:
        root: the folder, or one of its sub-folders.
        layout: the layout of the files in `root`.
        split: the value of `{split}` in the layout.
        has_splits: whether the folder is divided into splits.
        samples: names of the samples of the split. None takes all.
    """

    root: Path
    layout: Layout
    split: str
    has_splits: bool = True
    samples: Sequence[str] | None = None

    def folders(self) -> list[tuple[Path, Path]]:
        """Return the folders of images and masks."""
        return _folders(self.root, self.layout, self.split)


def canonical_split(split: str) -> str:
    """Return `train`, `validation` or `test` for any usual spelling of it, and other names unchanged."""
    return next((name for name, others in SPLITS.items() if split.lower() in others), split)


def find_known(folder: Path, kind: str, split: str, bands: Sequence[int] | str | None = None) -> FolderLayout | None:
    """Find the layout of the known data set `kind` that `folder` has. Return None if it has none of them.

    Args:
        bands: the numbers of the bands that are wanted, or "all", which prefers the images with most bands. None is
            RGB.

    Raises:
        DataError: if the folder lacks the split, or the masks of the split.
    """
    info = get_dataset_info(kind)
    layouts = info.layouts
    present = [(root, layout) for layout in layouts for root in _roots(folder, layout) if _has_layout(root, layout)]
    if not present:
        return None
    if bands is not None:
        least = max((one.bands for _, one in present) if isinstance(bands, str) else bands)
        present.sort(key=lambda found: found[1].bands < least)
    root, layout = present[0]
    others = dict.fromkeys(other.images for _, other in present if other.images != layout.images)
    if others:
        logger.warning_once(
            f"images are read from {layout.images}, and not from {', '.join(others)} (see bands, --bands)"
        )
    if not layout.splits:
        return FolderLayout(root, layout, "", has_splits=False)
    name = layout.splits.get(canonical_split(split), split if split in layout.splits.values() else None)
    if name is None:
        raise MissingSplitError(f"{kind} has no split {split!r}: it has {', '.join(layout.splits)}")
    image_folders = [images for images, _ in _folders(root, layout, name)]
    if not any(images.is_dir() for images in image_folders):
        raise MissingSplitError(f"{folder} has no split {split!r}: {image_folders[0]} is missing")
    for root, layout in present:  # several layouts differ in their masks only
        if any(_holds(masks, layout.mask_endings) for _, masks in _folders(root, layout, name)):
            return FolderLayout(root, layout, name, samples=None if info.samples is None else info.samples[name])
    endings = " or *".join(dict.fromkeys(ending for _, layout in present for ending in layout.mask_endings))
    folders = dict.fromkeys(str(masks) for root, layout in present for _, masks in _folders(root, layout, name))
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
    folder: Path, split: str, image_ending: str | None = None, mask_ending: str | None = None, rasters: bool = False
) -> FolderLayout | None:
    """Find a folder of images and a folder of masks in `folder`. Return None if it has neither.

    The images may be in `images/train`, `train/images` or `images`. `IMAGE_FOLDERS` and `MASK_FOLDERS` list other names
    of the folders. If images and masks are not divided into folders, lists in one of `LIST_FOLDERS` define the splits,
    as in Pascal VOC.

    Args:
        image_ending, mask_ending: endings of the file names, or templates with one `*` for the name of the sample. None
            takes the usual endings.
        rasters: whether these include those of rasters that PIL does not read.

    Raises:
        DataError: if one of the two folders is missing, if several folders may be meant, or if the split is missing.
    """
    spellings = SPLITS.get(canonical_split(split), (split,))
    every = [spelling for several in SPLITS.values() for spelling in several]
    more = [ending for ending in RASTER_ENDINGS if ending not in IMAGE_ENDINGS] if rasters else []
    polygons = POLYGON_ENDINGS if rasters else ()
    image_prefix, image_endings = _template(image_ending, (*IMAGE_ENDINGS, *more))
    mask_prefix, mask_endings = _template(mask_ending, (*MASK_ENDINGS, *more, *polygons))
    split_first = [spelling for spelling in every if _one_of(folder / spelling, IMAGE_FOLDERS, "images", image_endings)]
    root, name, has_splits = folder, "", False
    if split_first:
        name = _present_spelling(folder, split, spellings, split_first)
        root, has_splits = folder / name, True
    images = _one_of(root, IMAGE_FOLDERS, "images", image_endings)
    masks = _one_of(root, MASK_FOLDERS, "masks", mask_endings)
    if images is None and masks is None:
        present = [spelling for spelling in every if (folder / spelling / ROBOFLOW).is_file()]
        if not present:
            return None
        endings = mask_endings if mask_ending else (ROBOFLOW_ENDING,)
        name = _present_spelling(folder, split, spellings, present)
        return FolderLayout(folder, Layout("{split}", "{split}", image_endings, endings, splits={}), name)
    if images is None or masks is None:
        missing, names = ("images", IMAGE_FOLDERS) if images is None else ("masks", MASK_FOLDERS)
        raise DataError(
            f"{root} has no folder of {missing}: name it {' or '.join(names[:3])}; {describe_contents(root)}"
        )
    list_file = None
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
        else:
            list_file, name, has_splits = _list_of_split(root, split, spellings, every)
    layout = Layout(
        images=images,
        masks=masks,
        image_endings=image_endings,
        mask_endings=mask_endings,
        splits={},
        list_file=list_file,
        image_prefix=image_prefix,
        mask_prefix=mask_prefix,
    )
    return FolderLayout(root, layout, name, has_splits)


def _template(ending: str | None, usual: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Return the text before the name of a sample in file names, and the endings after it."""
    if ending is None:
        return "", usual
    before, star, after = ending.rpartition("*")
    if "*" in before or "/" in ending or not ending:
        raise DataError(f"a template of file names must hold one * for the name of the sample, got {ending!r}")
    return (before, (after,) if after else usual) if star else ("", (ending,))


def _list_of_split(
    root: Path, split: str, spellings: Iterable[str], every: Sequence[str]
) -> tuple[str | None, str, bool]:
    """Find the list of the samples of a split.

    Returns:
        its path in `root` or None, the name of the split in it, and whether the lists define splits. A list by another
        name than that of a split is taken if it is the only one, as CVAT writes `default.txt`.

    Raises:
        MissingSplitError: if there are lists, but not of this split.
    """
    for folder in LIST_FOLDERS:
        lists = {path.stem: path for path in sorted((root / folder).glob("*.txt"))}
        if folder == ".":  # other text files are beside the images, too
            lists = {name: path for name, path in lists.items() if name in every}
        file = str(Path(folder, "{split}.txt"))
        if split in lists:
            return file, split, True
        if any(name in every for name in lists):
            return file, _present_spelling(root / folder, split, spellings, list(lists)), True
        if len(lists) == 1:
            return file, next(iter(lists)), False
        if lists:
            raise MissingSplitError(f"{root / folder} has no list of the split {split!r}: it has {', '.join(lists)}")
    return None, "", False


def pair_files(found: FolderLayout) -> Pairs:
    """List the samples of a folder.

    Images that a list does not name need no mask. Files without a partner, missing files of a list, and files that
    differ only in their endings are left out, and are described in `problems`.

    Raises:
        DataError: if the folder holds no images.
        MissingMasksError: if no image of a list has a mask.
    """
    layout, root = found.layout, found.root
    if layout.parts:
        return _joined_parts(found)
    ((image_folder, mask_folder),) = found.folders()
    problems: list[str] = []
    images, no_images = files_by_name(image_folder, layout.image_endings, layout.image_prefix, problems)
    masks, no_masks = files_by_name(mask_folder, layout.mask_endings, layout.mask_prefix, problems)
    if image_folder == mask_folder:  # of Roboflow
        files = set(masks.values())
        images = {name: path for name, path in images.items() if path not in files}
        no_images, no_masks = [path for path in no_images if path not in files and path.name != ROBOFLOW], []
    if found.samples is not None:
        images, masks = (
            {name: path for name, path in files.items() if name in found.samples} for files in (images, masks)
        )
    if not images and not masks:
        endings = " ".join(f"*{ending}" for ending in layout.image_endings)
        raise DataError(f"{image_folder} holds no images (looked for {endings})")
    if layout.list_file is not None:
        path = root / layout.list_file.format(split=found.split)
        names = listed_names(path, images, problems)
        if names and not any(name in masks for name in names) and any(name in images for name in names):
            raise MissingMasksError(f"{mask_folder} has no mask for any of the {len(names)} samples in {path}")
        without_image = [name for name in names if name not in images]
        problems += problem_with(f"of {len(names)} samples in {path} have no image in", without_image, image_folder)
        without_mask = [name for name in names if name not in masks]
        problems += problem_with(f"of {len(names)} samples in {path} have no mask in", without_mask, mask_folder)
        names = [name for name in names if name in images and name in masks]
        return Pairs(names, [images[name] for name in names], [masks[name] for name in names], problems=problems)
    hint = hint_about_names(images, masks, layout)
    without_mask = [str(path.relative_to(image_folder)) for name, path in images.items() if name not in masks]
    problems += problem_with(
        f"of {len(images)} images in {image_folder} have no mask in", without_mask, mask_folder, hint
    )
    without_image = [str(path.relative_to(mask_folder)) for name, path in masks.items() if name not in images]
    problems += problem_with(
        f"of {len(masks)} masks in {mask_folder} have no image in", without_image, image_folder, hint
    )
    names = sorted(name for name in images if name in masks)
    ignored: list[Path] = []
    if not layout.splits:  # known data sets have other files beside the masks
        templates = [path for path in (layout.images, layout.masks) if path.endswith("/{split}")]
        above = [root / path.removesuffix("/{split}") for path in templates]
        outside = [path for folder in above for path in sorted(folder.iterdir()) if path.is_file()]
        ignored = [path for path in [*outside, *no_images, *no_masks] if not path.name.startswith(".")]
    return Pairs(names, [images[name] for name in names], [masks[name] for name in names], ignored, problems)


def _joined_parts(found: FolderLayout) -> Pairs:
    """Return the samples of all parts of a layout that exist, with the part before their names."""
    joined = Pairs([], [], [])
    for part, (images, _) in zip(found.layout.parts, found.folders(), strict=True):
        if not images.is_dir():
            continue
        paths = {name: getattr(found.layout, name).replace("{part}", part) for name in ("images", "masks")}
        pairs = pair_files(replace(found, layout=replace(found.layout, parts=(), **paths)))
        joined.names += [f"{part}/{name}" for name in pairs.names]
        for field_name in ("images", "masks", "ignored", "problems"):
            getattr(joined, field_name).extend(getattr(pairs, field_name))
    return joined


def _folders(root: Path, layout: Layout, split: str) -> list[tuple[Path, Path]]:
    """Return the folders of images and masks of a split, of each part."""
    return [
        (root / layout.images.format(split=split, part=part), root / layout.masks.format(split=split, part=part))
        for part in layout.parts or ("",)
    ]


def _roots(folder: Path, layout: Layout) -> list[Path]:
    return [folder, *(folder / subfolder for subfolder in layout.subfolders)]


def _has_layout(root: Path, layout: Layout) -> bool:
    names = list(layout.splits.values()) or [""]
    if layout.list_file is not None and not any(
        (root / layout.list_file.format(split=name)).is_file() for name in names
    ):
        return False
    return any(all(path.is_dir() for path in pair) for name in names for pair in _folders(root, layout, name))


def _has_its_names(root: Path, layout: Layout) -> bool:
    """Return whether the first image matches the layout's pattern of names."""
    if layout.name_pattern is None:
        return True
    for split in layout.splits.values():
        folder = _folders(root, layout, split)[0][0]
        if folder.is_dir():
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = without_ending(entry.name, layout.image_endings)
                    if name is not None and not entry.name.startswith("."):
                        return re.fullmatch(layout.name_pattern, name) is not None
    return False


def _holds(folder: Path, endings: Sequence[str]) -> bool:
    return any(without_ending(path.name, endings) is not None for path in walk_files(folder))


def _one_of(folder: Path, names: Sequence[str], content: str, endings: Sequence[str]) -> str | None:
    """Return the one of `names` that is a folder in `folder`, or None. Of several, it is the one with such files.

    Args:
        content: describes the files in the message.
    """
    present = [name for name in names if (folder / name).is_dir()]
    if len(present) > 1:  # labelme has a folder of arrays beside that of masks, Pascal VOC one of boxes
        present = [name for name in present if _holds(folder / name, endings)] or present
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


def _shown(path: str) -> str:
    return path.replace("{split}", "(split)").replace("{part}", "(part)")


def describe_contents(folder: Path) -> str:
    """List the first files of a folder, as part of a message."""
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    return f"it holds {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}" if names else "it is empty"
