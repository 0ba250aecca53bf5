# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Images with label maps: loading them, and what the known data sets call and colour their classes."""

from .checking import DataReport, check_dataset
from .known import DATASETS, DatasetInfo, get_dataset_info
from .loading import SegmentationDataset, SegmentationSample, load_segmentation_dataset
from .reading import DataError

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
