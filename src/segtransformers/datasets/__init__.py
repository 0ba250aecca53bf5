# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Load images with label maps, and look up the classes, palettes and folder layouts of the known data sets."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .bands import BandStatistics, band_statistics
    from .checking import DataReport, check_dataset
    from .known import DATASETS, DatasetInfo, get_dataset_info
    from .loading import SegmentationDataset, SegmentationSample, load_segmentation_dataset
    from .reading import DataError
    from .scenes import SCENE_CLASSES, write_scenes
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "bands": ("BandStatistics", "band_statistics"),
            "checking": ("DataReport", "check_dataset"),
            "known": ("DATASETS", "DatasetInfo", "get_dataset_info"),
            "loading": ("SegmentationDataset", "SegmentationSample", "load_segmentation_dataset"),
            "reading": ("DataError",),
            "scenes": ("SCENE_CLASSES", "write_scenes"),
        },
    )

__all__ = [
    "BandStatistics",
    "DATASETS",
    "DataError",
    "DataReport",
    "DatasetInfo",
    "SCENE_CLASSES",
    "SegmentationDataset",
    "SegmentationSample",
    "band_statistics",
    "check_dataset",
    "get_dataset_info",
    "load_segmentation_dataset",
    "write_scenes",
]
