# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Fine-tuning as the papers did it: recipes as data, what reads them, and a trainer that follows them."""

import importlib
from typing import TYPE_CHECKING, Any

from .augmentation import PhotometricDistortion, TrainingAugmentation
from .layer_decay import create_optimizer, parameter_groups
from .recipes import FAULTS, AugmentationSettings, OptimizerSettings, Recipe, Schedule, get_recipe, recipe_names
from .samples import EvaluationDataset, TrainingDataset, collate
from .schedule import poly_schedule

if TYPE_CHECKING:
    from .arguments import training_arguments
    from .callbacks import EpochCallback
    from .trainer import SegmentationTrainer
    from .trunks import add_lora, freeze_trunk, merge_lora, trunk_linears

# transformers' Trainer takes seconds to import: these wait until somebody asks for them
_LATER = {
    "EpochCallback": "callbacks",
    "SegmentationTrainer": "trainer",
    "add_lora": "trunks",
    "freeze_trunk": "trunks",
    "merge_lora": "trunks",
    "training_arguments": "arguments",
    "trunk_linears": "trunks",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_LATER[name]}", __name__), name)


__all__ = [
    "FAULTS",
    "AugmentationSettings",
    "EpochCallback",
    "EvaluationDataset",
    "OptimizerSettings",
    "PhotometricDistortion",
    "Recipe",
    "Schedule",
    "SegmentationTrainer",
    "TrainingAugmentation",
    "TrainingDataset",
    "add_lora",
    "collate",
    "create_optimizer",
    "freeze_trunk",
    "get_recipe",
    "merge_lora",
    "parameter_groups",
    "poly_schedule",
    "recipe_names",
    "training_arguments",
    "trunk_linears",
]
