# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The data of `segtransformers train`: parts for training and evaluation, and a check of every sample."""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..escaping import one_line
from ..terminal import progress_bar
from .data_options import load_data
from .errors import UserError, error_line, note
from .output import message

if TYPE_CHECKING:
    from ..datasets import SegmentationDataset

MAX_LISTED_ERRORS = 10
HELD_OUT = 10  # every tenth sample is held out for evaluation if the data has no parts
# Functions import the parts of this package that load torch, so that --help is fast.


def load_parts(
    data: str, split: str, eval_split: str, limit: int | None, options: tuple[Any, ...]
) -> "list[SegmentationDataset]":
    """Load the training data and, if there are any, the evaluation data.

    Args:
        split, eval_split: names of the parts. Of data without parts, every tenth sample is for evaluation.
        limit: number of samples to use of each part.
        options: other arguments of [`load_data`].
    """
    from ..datasets.pairs import MissingSplitError

    with _without_warning_of_missing_parts():  # what is held out is said below
        parts = [load_data(data, split, *options)]
    if parts[0].split is None:
        parts = _divided(parts[0])
    else:
        try:
            parts.append(load_data(data, eval_split, *options))
        except MissingSplitError as error:
            message(f"no evaluation: {one_line(error)}", err=True)
    return parts if limit is None else [part.select(range(min(limit, len(part)))) for part in parts]


def check_samples(parts: "list[SegmentationDataset]") -> None:
    """Read every sample once, each process its share, because a bad one would end the run hours later.

    Raises:
        UserError: if a sample cannot be used; the first are named.
    """
    from ..datasets import check_dataset

    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    errors: list[str] = []
    with progress_bar(sum(len(part) for part in parts), "sample", "checking", shown=rank == 0) as bar:
        for part in parts:
            if rank < len(part):
                report = check_dataset(part.shard(world, rank), lambda count: bar.update(world * count))
                errors += report.sample_errors
                if report.empty:
                    found = f"{report.empty} of {report.samples} masks have no pixel with a class"
                    note(f"{found}, such as that of {report.first_empty}")
                if part.multi_label and part.num_labels > 1 and report.samples and not report.overlap:
                    note("no pixel has more than one class: --multi-label is for masks of bits, not of class indices")
    for error in errors[: MAX_LISTED_ERRORS - 1] if len(errors) > 1 else []:
        error_line(error)
    if errors:
        raise UserError(errors[0] if len(errors) == 1 else f"{len(errors)} samples cannot be used")


@contextlib.contextmanager
def _without_warning_of_missing_parts() -> Iterator[None]:
    logger = logging.getLogger("segtransformers.datasets.loading")

    def is_other(record: logging.LogRecord) -> bool:
        return "has no splits" not in record.getMessage()

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def _divided(data: "SegmentationDataset") -> "list[SegmentationDataset]":
    """Hold out every tenth sample of data without parts for evaluation; of rasters, every tenth raster."""
    from ..datasets.raster_loading import RasterRows, held_out_area

    what = "every tenth image is"
    held_out: Sequence[int] = range(0, len(data), HELD_OUT)
    if isinstance(data.rows, RasterRows):
        held_out, what = held_out_area(data.rows), "an area that shares no raster with the rest is"
        if len(set(data.rows.images)) == 1:
            what = "the lowest part of the raster is"
    others = sorted(set(range(len(data))) - set(held_out))
    if not others or not held_out:
        return [data]
    message(f"the data has no parts: {what} held out for evaluation, {len(held_out)} of {len(data)}", err=True)
    return [data.select(others), data.select(held_out)]
