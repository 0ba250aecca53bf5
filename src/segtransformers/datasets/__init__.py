# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Class names and palettes of the data sets that the published models were trained on."""

from .known import DATASETS, DatasetInfo, get_dataset_info

__all__ = ["DATASETS", "DatasetInfo", "get_dataset_info"]
