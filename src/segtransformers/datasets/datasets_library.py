# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Data sets that the library `datasets` loads, from the Hub or from a folder. The library is optional."""

from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from ..files import check_readable
from .class_names import Classes, classes_of_file
from .known import DATASETS, get_dataset_info
from .pairs import MissingSplitError, canonical_split
from .reading import DataError

if TYPE_CHECKING:
    import datasets

DATASETS_FILES = ("dataset_dict.json", "state.json")  # files in a folder that `datasets` saved
IMAGE_COLUMNS = ("image", "img", "pixel_values", "images")
MASK_COLUMNS = ("annotation", "label", "labels", "mask", "segmentation_mask", "semantic_segmentation", "segmentation")
METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # files that make a folder an image folder
CONVERTED = "refs/convert/parquet"  # the revision with a script's data as Parquet, one folder for each configuration


def import_datasets():
    """Import `datasets`, which is optional and slow to import."""
    try:
        import datasets
    except ImportError:
        raise ImportError("the library datasets is missing: pip install 'segtransformers[train]'") from None
    return datasets


def classes_on_hub(source: str, revision: str | None) -> Classes | None:
    for file in ("id2label.json", "classes.txt"):
        try:
            path = hf_hub_download(source, file, repo_type="dataset", revision=revision)
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError):
            continue
        return classes_of_file(Path(path))
    return None


def is_for_datasets(folder: Path) -> bool:
    """Return whether `datasets` can load the folder.

    Raises:
        DataError: if one of the files that it would read is a pipe or a device.
    """
    patterns = (*DATASETS_FILES, *METADATA_FILES, "*.parquet", "*.arrow")
    found = [path for deep in ("", "*/", "*/*/") for pattern in patterns for path in folder.glob(f"{deep}{pattern}")]
    try:
        for path in found:
            check_readable(path)
    except OSError as error:
        raise DataError(str(error)) from None
    return bool(found)


def rows_of_datasets(
    source: str, folder: Path, split: str, name: str | None, revision: str | None, datasets
) -> tuple["datasets.Dataset", str | None]:
    try:
        if any((folder / file).is_file() for file in DATASETS_FILES):
            loaded = datasets.load_from_disk(str(folder))
        else:
            loaded = _load_dataset(str(folder) if folder.is_dir() else source, name, revision, datasets)
    except Exception as error:  # the network, an unknown name, unknown files: each becomes one line
        reason = " ".join(str(error).split())
        note = "" if folder.exists() else " (no such folder exists here)"
        raise DataError(f"cannot load the data set {source}{note}: {reason[:300]}") from None
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded, None
    key = next((key for key in loaded if canonical_split(key) == canonical_split(split)), None)
    if key is None:
        raise MissingSplitError(f"{source} has no split {split!r}: it has {', '.join(loaded)}")
    return loaded[key], canonical_split(key)


def _load_dataset(path: str, name: str | None, revision: str | None, datasets) -> "datasets.DatasetDict":
    """Load a folder or a name on the Hub with `datasets`. Of a script, load the files that the Hub made from it."""
    if revision is None and any(path in get_dataset_info(kind).hub for kind in DATASETS):
        return datasets.load_dataset(_converted(path, name))
    try:
        return datasets.load_dataset(path, name, revision=revision)
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error) or revision is not None:
            raise
        return datasets.load_dataset(_converted(path, name))


def _converted(path: str, name: str | None) -> str:
    """Download the converted files of a configuration, and return their folder.

    `datasets` itself would not find its copy again without a network.
    """
    name = name or "default"
    return str(Path(snapshot_download(path, repo_type="dataset", revision=CONVERTED, allow_patterns=f"{name}/*"), name))


def image_and_mask_columns(
    rows: "datasets.Dataset", image_column: str | None, mask_column: str | None, source: str, datasets
) -> "datasets.Dataset":
    """Return only the columns of images and masks, named `image` and `mask`, undecoded."""
    columns = [column for column, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    listed = f"its image columns are {', '.join(columns) or 'none'}, all columns {', '.join(rows.column_names)}"
    for column, option in ((image_column, "image_column"), (mask_column, "mask_column")):
        if column is not None and column not in columns:
            raise DataError(f"{option}={column!r} is no image column of {source}: {listed}")
    mask_column = mask_column or next((column for column in MASK_COLUMNS if column in columns), None)
    image_column = image_column or next((column for column in IMAGE_COLUMNS if column in columns), None)
    if image_column is None or mask_column is None or image_column == mask_column:
        raise DataError(
            f"cannot tell images from masks in {source}: {listed}. Pass image_column=..., mask_column=... (--columns)"
        )
    rows = rows.select_columns([image_column, mask_column])
    if image_column != "image":
        rows = rows.rename_column(image_column, "image")
    if mask_column != "mask":
        rows = rows.rename_column(mask_column, "mask")
    undecoded = datasets.Image(decode=False)
    return rows.cast_column("image", undecoded).cast_column("mask", undecoded)


def names_of_rows(rows: "datasets.Dataset", split: str | None) -> list[str]:
    """Return the file names without endings if every image has a unique one, else names of split and row."""
    paths = rows.select_columns(["image"]).flatten()["image.path"][:]
    names = [Path(path).stem if path else "" for path in paths]
    if all(names) and len(set(names)) == len(names):
        return names
    return [f"{split or 'sample'}-{index:06d}" for index in range(len(paths))]


__all__ = [
    "METADATA_FILES",
    "classes_on_hub",
    "image_and_mask_columns",
    "import_datasets",
    "is_for_datasets",
    "names_of_rows",
    "rows_of_datasets",
]
