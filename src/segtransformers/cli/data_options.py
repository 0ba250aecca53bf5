# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The options of the commands that read a data set."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from transformers.utils import logging

from ..datasets import DATASETS, SegmentationDataset, load_segmentation_dataset
from .common import UserError

KindOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help=f"{', '.join(DATASETS)} or folders; by default what the data look like."),
]
ClassesOption = Annotated[
    str | None,
    typer.Option(metavar="FILE_OR_NUMBER", help="Class names, one a line or as JSON, or how many there are."),
]
ReduceLabelsOption = Annotated[
    bool | None,
    typer.Option(
        "--reduce-labels/--no-reduce-labels", help="Whether 0 in masks means no class and classes start at 1."
    ),
]
LabelMapOption = Annotated[
    str | None,
    typer.Option(metavar="VALUE:CLASS,...", help="Classes of values in masks, such as 0:0,255:1; 255 means no class."),
]
MaskEndingOption = Annotated[
    str | None, typer.Option(metavar="ENDING", help="What the names of masks end in, such as _mask.png.")
]

ColumnsOption = Annotated[
    str | None,
    typer.Option(metavar="IMAGES,MASKS", help="Columns of a data set of the Hub; by default those with usual names."),
]
SubsetOption = Annotated[str | None, typer.Option(metavar="NAME", help="Configuration of a data set of the Hub.")]


def load_data(
    source: str,
    split: str,
    kind: str | None = None,
    classes: str | None = None,
    reduce_labels: bool | None = None,
    label_map: str | None = None,
    mask_ending: str | None = None,
    columns: str | None = None,
    subset: str | None = None,
) -> SegmentationDataset:
    """The data set that the options describe.

    Raises:
        UserError: if an option cannot be understood.
        ValueError: if the data cannot be loaded ([`DataError`] is one).
    """
    logging.disable_progress_bar()
    if classes is not None and not classes.isdigit() and not Path(classes).is_file():
        raise UserError(f"--classes {classes}: there is no such file, and it is no number")
    pictures: Sequence[str | None] = (None, None) if columns is None else columns.split(",")
    if len(pictures) != 2 or "" in pictures:
        raise UserError(f"--columns {columns}: expected two names, such as image,annotation")
    return load_segmentation_dataset(
        source,
        split,
        kind,
        classes=int(classes) if classes is not None and classes.isdigit() else classes,
        reduce_labels=reduce_labels,
        label_map=_parsed_map(label_map),
        mask_ending=mask_ending,
        image_column=pictures[0],
        mask_column=pictures[1],
        name=subset,
    )


def _parsed_map(text: str | None) -> dict[int, int] | None:
    if text is None:
        return None
    pairs = [re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", pair) for pair in text.split(",")]
    if not all(pairs):
        raise UserError(f"--label-map {text}: expected VALUE:CLASS,VALUE:CLASS, such as 0:0,255:1")
    return {int(pair[1]): int(pair[2]) for pair in pairs if pair is not None}
