# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Load images with label maps, and look up the classes, palettes and folder layouts of the known data sets."""

import importlib
from typing import TYPE_CHECKING, Any

from .known import DATASETS, DatasetInfo, get_dataset_info

if TYPE_CHECKING:
    from .checking import DataReport, check_dataset
    from .loading import SegmentationDataset, SegmentationSample, load_segmentation_dataset
    from .reading import DataError

# torch takes seconds to import, and the commands list the data sets without it
_LAZY = {
    "DataError": "reading",
    "DataReport": "checking",
    "SegmentationDataset": "loading",
    "SegmentationSample": "loading",
    "check_dataset": "checking",
    "load_segmentation_dataset": "loading",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)


__all__ = [
    "DATASETS",
    "DataError",
    "DataReport",
    "DatasetInfo",
    "SegmentationDataset",
    "SegmentationSample",
    "check_dataset",
    "get_dataset_info",
    "load_segmentation_dataset",
]
