# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Options of the commands that read a data set."""

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..datasets import DATASETS
from .common import check_input_file
from .errors import UserError

if TYPE_CHECKING:
    from ..datasets import SegmentationDataset

KindOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help=f"{', '.join(DATASETS)} or folders. By default known data sets are recognised."),
]
ClassesOption = Annotated[
    str | None,
    typer.Option(metavar="FILE_OR_NUMBER", help="Class names, one per line or as JSON, or the number of classes."),
]
ReduceLabelsOption = Annotated[
    bool | None,
    typer.Option(
        "--reduce-labels/--no-reduce-labels", help="Whether value 0 in masks means no class and classes start at 1."
    ),
]
LabelMapOption = Annotated[
    str | None,
    typer.Option(
        metavar="VALUE:CLASS,...", help="Classes of mask values, such as 0:0,255:1. Class 255 means no class."
    ),
]
ImageEndingOption = Annotated[
    str | None,
    typer.Option(
        metavar="ENDING", help="Ending of the file names of images, such as _sat.jpg, or a template such as img_*.jpg."
    ),
]
MaskEndingOption = Annotated[
    str | None,
    typer.Option(
        metavar="ENDING", help="Ending of the file names of masks, such as _mask.png, or a template such as mask_*.png."
    ),
]
ColumnsOption = Annotated[
    str | None,
    typer.Option(metavar="IMAGES,MASKS", help="Columns of a data set on the Hub. By default those with usual names."),
]
MultiLabelOption = Annotated[
    bool,
    typer.Option(
        "--multi-label",
        help="A pixel may have several classes or none: bit k of a mask is 1 where class k is. Folders of masks for "
        "each class are recognised.",
    ),
]
BandsOption = Annotated[
    str | None,
    typer.Option(
        metavar="NUMBERS", help="Bands of the image files, from 1 on, such as 4,3,2,8, or all. By default RGB images."
    ),
]
TileOption = Annotated[
    int | None, typer.Option(metavar="PIXELS", help="Read large images in square tiles of this side.")
]
SubsetOption = Annotated[str | None, typer.Option(metavar="NAME", help="Configuration of a data set on the Hub.")]


def load_data(
    source: str,
    split: str,
    kind: str | None = None,
    classes: str | None = None,
    reduce_labels: bool | None = None,
    label_map: str | None = None,
    image_ending: str | None = None,
    mask_ending: str | None = None,
    columns: str | None = None,
    subset: str | None = None,
    strict: bool = True,
    multi_label: bool | None = None,
    bands: "str | list[int] | None" = None,
    tile: int | None = None,
) -> "SegmentationDataset":
    """Load the data set that the options describe.

    `strict`, `multi_label` and `tile` are those of `load_segmentation_dataset`.


    Raises:
        UserError: if an option has a wrong value.
        ValueError: if the data cannot be loaded. [`DataError`] is a ValueError.
    """
    # both import torch, which takes seconds that --help and wrong options should not cost
    from transformers.utils import logging

    from ..datasets import load_segmentation_dataset
    from ..hub_names import check_hub_name, without_hub

    if classes is not None and not classes.isdigit():
        check_input_file(Path(classes), f"--classes {classes}", "an existing file or a number")
    image_column, mask_column = None, None
    if columns is not None:
        image_column, _, mask_column = columns.partition(",")
        if not image_column or not mask_column or "," in mask_column:
            raise UserError(f"--columns {columns}: expected two names, such as image,annotation")
    logging.disable_progress_bar()
    reachable = True
    try:
        if not Path(source).exists() and source.count("/") < 2:  # of a longer path the loader knows more
            reachable = check_hub_name(source, "dataset")
    except LookupError as error:
        raise UserError(f"cannot load the data set {source}: there is no such folder; {error}") from None
    with contextlib.nullcontext() if reachable else without_hub():
        return load_segmentation_dataset(
            source,
            split,
            kind,
            classes=int(classes) if classes is not None and classes.isdigit() else classes,
            reduce_labels=reduce_labels,
            label_map=_parse_label_map(label_map),
            image_ending=image_ending,
            mask_ending=mask_ending,
            image_column=image_column,
            mask_column=mask_column,
            name=subset,
            strict=strict,
            multi_label=multi_label,
            bands=parse_bands("--bands", bands) if isinstance(bands, str) and bands != "all" else bands,
            tile=tile,
        )


def parse_bands(option: str, text: str) -> list[int]:
    """Return the band numbers of an option.

    Raises:
        UserError: if they are no numbers from 1 on.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and part.isascii() and 1 <= int(part) <= 4096 for part in parts if len(part) < 6):
        raise UserError(f"{option} {text}: expected numbers of bands from 1 on, such as 4,3,2")
    if any(len(part) >= 6 for part in parts) or len(set(parts)) < len(parts):
        raise UserError(f"{option} {text}: expected different numbers of bands from 1 on, such as 4,3,2")
    return [int(part) for part in parts]


def _parse_label_map(text: str | None) -> dict[int, int] | None:
    if text is None:
        return None
    pairs = [re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", pair) for pair in text.split(",")]
    if not all(pairs):
        raise UserError(f"--label-map {text}: expected VALUE:CLASS,VALUE:CLASS, such as 0:0,255:1")
    return {int(pair[1]): int(pair[2]) for pair in pairs if pair is not None}
