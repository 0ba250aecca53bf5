# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Load images with label maps, and look up the classes, palettes and folder layouts of the known data sets."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .checking import DataReport, check_dataset
    from .known import DATASETS, DatasetInfo, get_dataset_info
    from .loading import SegmentationDataset, SegmentationSample, load_segmentation_dataset
    from .reading import DataError
    from .scenes import SCENE_CLASSES, write_scenes
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "checking": ("DataReport", "check_dataset"),
            "known": ("DATASETS", "DatasetInfo", "get_dataset_info"),
            "loading": ("SegmentationDataset", "SegmentationSample", "load_segmentation_dataset"),
            "reading": ("DataError",),
            "scenes": ("SCENE_CLASSES", "write_scenes"),
        },
    )

__all__ = [
    "DATASETS",
    "DataError",
    "DataReport",
    "DatasetInfo",
    "SCENE_CLASSES",
    "SegmentationDataset",
    "SegmentationSample",
    "check_dataset",
    "get_dataset_info",
    "load_segmentation_dataset",
    "write_scenes",
]
