# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Load a data set of images and label maps from a folder or from the Hub. Files are decoded on access."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import torch
from transformers.utils import logging

from ..escaping import printable
from .class_names import Classes, checked_palette, classes_of_file, classes_of_folder, read_classes
from .datasets_library import (
    METADATA_FILES,
    classes_on_hub,
    image_and_mask_columns,
    import_datasets,
    is_for_datasets,
    names_of_rows,
    rows_of_datasets,
)
from .known import DATASETS, get_dataset_info
from .multi_label import (
    MultiLabelRule,
    check_multi_label_options,
    class_folders,
    names_of_class_folders,
    pair_class_folders,
)
from .pairs import (
    Pairs,
    canonical_split,
    describe_contents,
    expected_folders,
    find_folders,
    find_known,
    pair_files,
    recognise,
)
from .polygons import POLYGON_ENDINGS
from .raster_loading import RasterRows, raster_rows
from .reading import (
    NO_CLASS,
    DataError,
    ImageFacts,
    LabelRule,
    Mask,
    colour_table,
    open_entry,
    read_facts,
    read_image,
    read_mask,
)
from .rows import ClassFolderRows, FileRows

if TYPE_CHECKING:
    import datasets

    from ..rasters import BandImage

logger = logging.get_logger(__name__)

FOLDERS = "folders"  # the kind of the user's own data


class MissingClassesError(DataError):
    """The classes of a data set are unknown."""


@dataclass(frozen=True)
class SegmentationSample:
    """An image and its label map.

    Attributes:
        name: name, unique within the split.
        image: RGB image, or a [`~rasters.BandImage`] of data that are read with `bands`.
        labels: class indices `(height, width)` uint8, 255 for pixels without a class. Of multi-label data masks
            `(num_labels, height, width)` uint8 of 0 and 1, 255 for pixels of a class that do not count.
    """

    name: str
    image: "PIL.Image.Image | BandImage"
    labels: np.ndarray


class SegmentationDataset(torch.utils.data.Dataset):
    """A split of a data set whose items are [`SegmentationSample`]s, made by [`load_segmentation_dataset`].

    Attributes:
        names: names of the samples, in order.
        id2label: name of each class.
        palette: `[red, green, blue]` of each class, or None.
        rule: the mapping of mask values to class indices, or to masks of multi-label data.
        kind: a known data set, or `"folders"` for the user's own data.
        source: the folder, or the name on the Hub.
        split: the split. None if the source has no splits and these are all samples.
        ignored_files: files beside the images and masks that are neither.
        problems: what is wrong with files that belong to no sample, if the data set was loaded with `strict=False`.
    """

    ignore_index = NO_CLASS

    def __init__(
        self,
        rows: "datasets.Dataset | FileRows | ClassFolderRows | RasterRows",
        names: Sequence[str],
        classes: Classes,
        rule: LabelRule | MultiLabelRule,
        kind: str,
        source: str,
        split: str | None,
        ignored_files: Sequence[Path] = (),
        problems: Sequence[str] = (),
    ):
        self.rows, self.names, self.rule = rows, list(names), rule
        self.kind, self.source, self.split = kind, source, split
        self.id2label = dict(enumerate(classes.names))
        self.palette = classes.palette
        self.ignored_files, self.problems = list(ignored_files), list(problems)

    @property
    def num_labels(self) -> int:
        return len(self.id2label)

    @property
    def multi_label(self) -> bool:
        """Return whether a pixel may belong to several classes or to none."""
        return isinstance(self.rule, MultiLabelRule)

    @property
    def bands(self) -> list[int] | None:
        """Return the numbers of the bands of the images, from 1 on, or None for RGB images."""
        return self.rows.bands if isinstance(self.rows, RasterRows) else None

    @property
    def band_dtype(self) -> str | None:
        """Return the type of the values of the bands, or None for RGB images."""
        return self.rows.band_dtype if isinstance(self.rows, RasterRows) else None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> SegmentationSample:
        """
        Raises:
            DataError: if a file is damaged, if image and mask differ in size, or if a label is no class.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        index = int(index) % len(self)
        if isinstance(self.rows, RasterRows):
            return SegmentationSample(self.names[index], *self.rows.sample(index, self.rule))
        row = self.rows[index]
        image_file = self.file_name(row["image"], index)
        entries = row["mask"] if isinstance(row["mask"], list) else [row["mask"]]
        masks: list[tuple[Mask, str] | None] = []
        try:
            image = read_image(open_entry(row["image"]), image_file)
            for entry in entries:
                name = None if entry is None else self.file_name(entry, index)
                masks.append(None if name is None else (read_mask(open_entry(entry), name), name))
        except FileNotFoundError as error:
            raise DataError(f"{error.filename} was removed after the data set was loaded") from None
        for found in masks:
            if found is not None:
                self._check_size(row, image, image_file, *found)
        if isinstance(row["mask"], list):
            assert isinstance(self.rule, MultiLabelRule)
            labels = self.rule.join(masks, (image.height, image.width))
        else:
            assert masks[0] is not None
            labels = self.rule.apply(*masks[0])
        return SegmentationSample(self.names[index], image, labels)

    @staticmethod
    def _check_size(
        row: Mapping[str, Any], image: PIL.Image.Image, image_file: str, mask: Mask, mask_file: str
    ) -> None:
        height, width = mask.values.shape[:2]
        if image.size == (width, height):
            return
        turned = image.size == (height, width) and read_facts(open_entry(row["image"])).orientation >= 5
        reason = (
            ": its EXIF data turn the image, but masks are not turned. Save the image upright, or turn the mask"
            if turned
            else " (width x height): both must have the same size"
        )
        sizes = f"{image.size[0]} x {image.size[1]}, its mask {mask_file} {width} x {height}"
        raise DataError(f"the image {image_file} is {sizes}{reason}")

    def select(self, indices: Sequence[int]) -> "SegmentationDataset":
        """Return the samples with these indices, in this order."""
        indices = [int(index) for index in indices]
        selected = copy.copy(self)
        selected.rows, selected.names = self.rows.select(indices), [self.names[index] for index in indices]
        return selected

    def shard(self, num: int, index: int) -> "SegmentationDataset":
        """Return every `num`-th sample from `index` on: the samples of one of `num` processes."""
        if not 0 <= index < num:
            raise ValueError(f"shard {index} of {num} does not exist: the index must be 0 to {num - 1}")
        return self.select(range(index, len(self), num))

    def __repr__(self) -> str:
        split = "" if self.split is None else f", {self.split}"
        return (
            f"SegmentationDataset({self.source!r}{split}: {len(self)} samples, {self.num_labels} classes, {self.kind})"
        )

    def facts(self, index: int) -> ImageFacts:
        """Return what the header of an image file says about turning, bands and depth. Rasters use all of it."""
        if isinstance(self.rows, RasterRows):
            return ImageFacts()
        return read_facts(open_entry(self.rows[index]["image"]))

    def file_name(self, entry: Mapping[str, Any], index: int) -> str:
        """Return the name of an image or mask in messages."""
        if entry["bytes"] is None:
            return str(entry["path"])
        return f"{entry['path'] or 'unnamed'} (row {index} of {self.source})"


def load_segmentation_dataset(
    source: str | Path,
    split: str = "validation",
    kind: str | None = None,
    *,
    classes: Any = None,
    palette: Sequence[Sequence[int]] | None = None,
    reduce_labels: bool | None = None,
    label_map: Mapping[int, int] | None = None,
    image_ending: str | None = None,
    mask_ending: str | None = None,
    image_column: str | None = None,
    mask_column: str | None = None,
    name: str | None = None,
    revision: str | None = None,
    strict: bool = True,
    multi_label: bool | None = None,
    bands: "Sequence[int] | str | None" = None,
    tile: int | None = None,
) -> SegmentationDataset:
    """Load a split of a data set of images and label maps.

    Args:
        source: a folder, or a name on the Hub. A folder has the layout of a known data set, or a folder of images and a
            folder of masks with the same names (`images/train/a.jpg`, `masks/train/a.png`; or `train/images`), or
            files that `datasets` loads (Parquet, `save_to_disk`, an image folder with `metadata.jsonl`).
        split: `train`, `validation` or `test`, or the source's own name of a split.
        kind: a known data set (one of `DATASETS`), which fixes the classes and the meaning of mask values, or
            `"folders"`. None recognises known data sets by their folders.
        classes: classes of the user's own data: names, `{index: name}`, a list of `{"name": ..., "color": [r, g, b]}`,
            a JSON file with one of these, a text file with one name per line, a table `.csv` of names and colours, or
            the number of classes. None reads the first file of `CLASS_FILES` in the source, such as `classes.txt`.
        palette: a colour for each class, needed for masks that hold colours.
        reduce_labels: whether value 0 of the masks means "no class" and classes start at 1. None takes the rule of the
            known data set, and False for the user's own data.
        label_map: class index, or 255 for no class, of values in the masks that are exceptions to this.
        image_ending, mask_ending: endings of the file names in folders, for example `"_mask.png"`, or templates with
            one `*` for the name of the sample, such as `"mask_*.png"`. None takes all image files.
        image_column, mask_column: columns of a `datasets` source. None looks for the usual names.
        name, revision: configuration and revision of a source on the Hub.
        strict: whether images without a mask and masks without an image are an error. If not, they are left out and
            listed in the data set's `problems`.
        multi_label: whether a pixel may belong to several classes or to none. The masks then are bit planes (bit k of a
            value is 1 where class k is present, 255 or 65535 stands for pixels without labels), or there is a folder of
            masks for each class (`masks/train/car/a.png`; 1 where the class is present, 255 where that is unknown, no
            file where it is absent), whose names are the classes if these are unknown. None recognises such folders.
        bands: numbers of the bands of image files, from 1 on, in the order wanted, or `"all"`. Then images may be
            GeoTIFF, TIFF, `.npy`, `.npz` and DICOM files of any type of values, the samples' images are
            [`~rasters.BandImage`]s, and pixels without data have no class. None reads RGB images. For folders of files.
        tile: side in pixels of the tiles that become the samples. They are read one by one, so that rasters may be
            huge. None takes whole images. For folders of files.

    Raises:
        DataError: if files are missing or do not match. The message says what to do.
        ValueError: if the kind is unknown, or options exclude each other.
    """
    if kind is not None and kind != FOLDERS:
        get_dataset_info(kind)
    folder = Path(source).expanduser()
    found = None
    if folder.is_dir():
        if kind is None and classes is None and classes_of_folder(folder) is None:
            kind = recognise(folder)
            if kind is not None:
                logger.info(f"{folder} looks like {kind}")
        if kind in DATASETS:
            found = find_known(folder, str(kind), split, bands)
        if found is None and not any((folder / file).exists() for file in METADATA_FILES):
            found = find_folders(folder, split, image_ending, mask_ending, rasters=bands is not None)
        if found is None and not is_for_datasets(folder):
            raise DataError(f"{folder} holds no data set: {_expected_contents(kind)}; {describe_contents(folder)}")
    elif folder.exists() or str(source).startswith((".", "/", "~")) or str(source).count("/") > 1:
        raise DataError(f"the folder {source} does not exist")
    elif kind is None:
        kind = next((known for known in DATASETS if str(source) in get_dataset_info(known).hub), None)
    if name is None and kind in DATASETS:
        name = get_dataset_info(str(kind)).hub.get(str(source))

    is_own = found is not None and kind not in DATASETS
    folders = class_folders(found) if found is not None and is_own and multi_label is not False else []
    is_multi_label = bool(multi_label or folders)
    if is_multi_label:
        check_multi_label_options(kind, reduce_labels, None if folders else label_map)
    chosen: Classes | None = None
    if found is not None and folders:
        if classes is None and classes_of_folder(folder) is None:
            classes = names_of_class_folders(folder, image_ending, mask_ending)
        chosen = _classes(None, classes, palette, folder, str(source), None)
        rows: Any
        rows, pairs, absent = pair_class_folders(found, folders, chosen.names)
        if absent:
            logger.warning(f"{printable(folder, 200)} has no masks of {', '.join(map(printable, absent[:8]))}: absent")
    elif found is not None:
        pairs = pair_files(found)
        rows = FileRows(pairs.images, pairs.masks)
    if found is not None:
        if strict and pairs.problems:
            raise DataError("; ".join(pairs.problems))
        _warn_of_ignored(pairs)
        if not found.has_splits:
            logger.warning(f"{printable(folder, 200)} has no splits: all samples are taken for {split!r}")
        names, ignored, problems = pairs.names, pairs.ignored, pairs.problems
        if bands is None and tile is None and any(path.suffix in POLYGON_ENDINGS for path in pairs.masks[:1]):
            raise DataError(f"the masks of {source} are polygons, which need bands, such as bands='all' (--bands all)")
        loaded_split = canonical_split(split) if found.has_splits else None
    else:
        datasets = import_datasets()
        rows, loaded_split = rows_of_datasets(str(source), folder, split, name, revision, datasets)
        rows = image_and_mask_columns(rows, image_column, mask_column, str(source), datasets)
        names, ignored, problems = names_of_rows(rows, loaded_split), [], []

    if bands is not None or tile is not None:
        if found is None:
            raise DataError(
                f"bands and tiles are read from files, but {source} is loaded by the library datasets: save its images "
                "and masks as files of the same names in two folders, images and masks"
            )
        if folders:
            raise DataError(
                f"bands and tiles need one mask file for each image, but {source} has a folder of masks for each "
                "class: join them to bit planes (bit k of a value is 1 where class k is present)"
            )
        rows, names = raster_rows(pairs.images, pairs.masks, names, bands, tile)
    if chosen is None:
        chosen = _classes(kind, classes, palette, folder if folder.is_dir() else None, str(source), revision)
    if is_multi_label:
        of_class = LabelRule(num_labels=2, label_map=label_map) if folders else None
        multi_label_rule = MultiLabelRule(len(chosen.names), of_class)
        return SegmentationDataset(
            rows, names, chosen, multi_label_rule, FOLDERS, str(source), loaded_split, ignored, problems
        )
    original_ids = found.layout.label_map if found is not None and found.layout.splits else _original_ids(kind)
    if reduce_labels is None:
        reduce_labels = kind in DATASETS and get_dataset_info(str(kind)).reduce_zero_label
    info = get_dataset_info(str(kind)) if kind in DATASETS else None
    holds_colours = chosen.palette is not None and (info is None or info.colour_masks)
    no_class = chosen.no_class if info is None else info.no_class_colours
    rule = LabelRule(
        num_labels=len(chosen.names),
        reduce_labels=reduce_labels,
        label_map={**(original_ids or {}), **(label_map or {})} or None,
        label_map_only=original_ids is not None,
        colours=colour_table(chosen.palette or (), no_class) if holds_colours else None,
        colour_threshold=None if info is None else info.colour_threshold,
        strict_binary=kind not in DATASETS,
    )
    return SegmentationDataset(rows, names, chosen, rule, kind or FOLDERS, str(source), loaded_split, ignored, problems)


def _original_ids(kind: str | None) -> Mapping[int, int] | None:
    """Return the label map of a known data set whose files never hold class indices, else None."""
    layouts = get_dataset_info(str(kind)).layouts if kind in DATASETS else []
    return layouts[0].label_map if layouts and all(layout.label_map for layout in layouts) else None


def _expected_contents(kind: str | None) -> str:
    if kind in DATASETS:
        return expected_folders(str(kind))
    return (
        f"expected are folders images and masks, the folders of a known data set ({', '.join(DATASETS)}), or files "
        "that the library datasets loads"
    )


def _classes(
    kind: str | None, given: Any, palette: Any, folder: Path | None, source: str, revision: str | None
) -> Classes:
    if kind in DATASETS:
        if given is not None or palette is not None:
            raise ValueError(f"the classes and colours of {kind} are known: leave out classes and palette, or kind")
        info = get_dataset_info(str(kind))
        return Classes(info.classes, info.palette)
    if given is None:
        found = classes_of_folder(folder) if folder is not None else classes_on_hub(source, revision)
        if found is None:
            raise MissingClassesError(
                f"the classes of {source} are unknown: add a file classes.txt with one name per line, in the order of "
                "the labels, or pass classes=[...] or their number (--classes)"
            )
    elif isinstance(given, Path) or (isinstance(given, str) and Path(given).exists()):
        found = classes_of_file(Path(given))
    else:
        found = read_classes(given)
    if palette is None:
        return found
    colours = checked_palette(palette, "palette")
    if len(colours) != len(found.names):
        raise DataError(f"palette has {len(colours)} colours for {len(found.names)} classes")
    return Classes(found.names, colours, found.no_class)


def _warn_of_ignored(pairs: Pairs) -> None:
    if pairs.ignored:
        listed = ", ".join(printable(path, 200) for path in pairs.ignored[:5])
        logger.warning(
            f"{len(pairs.ignored)} files are left out, because their names are not those of images or they lie outside "
            f"the splits: {listed}{', ...' if len(pairs.ignored) > 5 else ''}"
        )
