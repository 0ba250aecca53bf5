# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Fine-tuning as the papers did it: recipes as data, and what reads them."""

from .augmentation import PhotometricDistortion, TrainingAugmentation
from .layer_decay import create_optimizer, parameter_groups
from .recipes import FAULTS, AugmentationSettings, OptimizerSettings, Recipe, Schedule, get_recipe, recipe_names
from .schedule import poly_schedule

__all__ = [
    "FAULTS",
    "AugmentationSettings",
    "OptimizerSettings",
    "PhotometricDistortion",
    "Recipe",
    "Schedule",
    "TrainingAugmentation",
    "create_optimizer",
    "get_recipe",
    "parameter_groups",
    "poly_schedule",
    "recipe_names",
]
