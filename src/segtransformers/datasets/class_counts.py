# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Pixels of each class in each sample of a data set, counted once and cached."""

import hashlib
import io
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from transformers.utils import logging

from ..cache import user_cache
from ..files import complete_file
from .raster_loading import RasterRows

if TYPE_CHECKING:
    from .loading import SegmentationDataset

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class ClassCounts:
    """Pixels of each class in each sample.

    Attributes:
        per_sample: `(samples, num_labels)` int64.
        valid: pixels that have a label for each class, in the same shape; of multi-label data only.
    """

    per_sample: np.ndarray
    valid: np.ndarray | None = None

    @property
    def pixels(self) -> np.ndarray:
        """Pixels of each class, `(num_labels,)`."""
        return self.per_sample.sum(0)

    @property
    def samples(self) -> np.ndarray:
        """Number of samples that hold each class, `(num_labels,)`."""
        return (self.per_sample > 0).sum(0)

    @property
    def pixels_of_holders(self) -> np.ndarray:
        """Pixels with a class in the samples that hold each class, `(num_labels,)`."""
        return (self.per_sample > 0).T @ self.per_sample.sum(1)


def cached_counts(data: "SegmentationDataset") -> ClassCounts | None:
    """Return the counts of a data set that are in the user's cache, or None."""
    path = _cache_file(data)
    if path is None:
        return None
    try:
        with np.load(path, allow_pickle=False) as saved:
            counts = saved["per_sample"]
            valid = saved["valid"] if data.multi_label else None
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
        # no file, or a damaged one; zipfile raises RuntimeError for flags and versions it does not know
        return None
    for array in (counts,) if valid is None else (counts, valid):
        if array.shape != (len(data), data.num_labels) or array.dtype != np.int64 or array.min(initial=0) < 0:
            return None
    return ClassCounts(counts, valid)


def save_counts(data: "SegmentationDataset", counts: ClassCounts) -> None:
    """Write counts into the user's cache. A cache that cannot be written is left as it is."""
    path = _cache_file(data)
    if path is None:
        return
    content = io.BytesIO()
    others = {} if counts.valid is None else {"valid": counts.valid}
    np.savez_compressed(content, per_sample=counts.per_sample, **others)  # type: ignore[arg-type]
    try:
        with complete_file(path) as partial:
            partial.write_bytes(content.getvalue())
    except OSError as error:
        logger.warning(f"the counts of the classes are not cached: {error}")


def _cache_file(data: "SegmentationDataset") -> Path | None:
    """Return the file for a data set of files, or None for other sources.

    Its name depends on the names, sizes and times of the masks and on the rule that maps their values to classes; of
    rasters, whose pixels without data have no class, also on the images, bands and tiles.
    """
    masks = getattr(data.rows, "masks", None)
    if masks is None:
        return None
    subject: tuple = (data.num_labels, data.rule)
    if isinstance(data.rows, RasterRows):
        subject, masks = (*subject, data.rows.bands, data.rows.tiles), [*data.rows.images, *masks]
    digest = hashlib.sha256(repr(subject).encode())
    try:
        for path in masks:
            status = os.stat(path)
            digest.update(os.fsencode(os.path.abspath(path)))
            digest.update(f"|{status.st_size}|{status.st_mtime_ns}|".encode())
    except OSError:  # a mask was removed
        return None
    return user_cache("class_counts") / f"{digest.hexdigest()[:32]}.npz"


__all__ = ["ClassCounts", "cached_counts", "save_counts"]
