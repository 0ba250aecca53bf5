# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Fine-tuning by the recipes of the papers: recipes as data, augmentation, optimizer, schedule and trainer."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .arguments import training_arguments
    from .augmentation import PhotometricDistortion, TrainingAugmentation
    from .bands import with_bands
    from .callbacks import EpochCallback
    from .layer_decay import create_optimizer, parameter_groups
    from .loss_settings import apply_losses
    from .parameter_efficient import (
        add_lora,
        freeze_trunk,
        lora_config,
        merge_lora,
        save_frozen_trunk,
        trunk_linears,
    )
    from .recipe_settings import (
        AugmentationSettings,
        OptimizerSettings,
        SamplingSettings,
        Schedule,
        WeightAverageSettings,
    )
    from .recipes import (
        KNOWN_ISSUES,
        Recipe,
        frozen_trunk_recipe_names,
        get_recipe,
        recipe_names,
        small_model_recipe_names,
    )
    from .samples import EvaluationDataset, JoinedDataset, TrainingDataset, collate
    from .schedule import poly_schedule
    from .starting_points import starting_model
    from .trainer import SegmentationTrainer
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "arguments": ("training_arguments",),
            "augmentation": ("PhotometricDistortion", "TrainingAugmentation"),
            "bands": ("with_bands",),
            "callbacks": ("EpochCallback",),
            "layer_decay": ("create_optimizer", "parameter_groups"),
            "parameter_efficient": (
                "add_lora",
                "freeze_trunk",
                "lora_config",
                "merge_lora",
                "save_frozen_trunk",
                "trunk_linears",
            ),
            "loss_settings": ("apply_losses",),
            "recipe_settings": (
                "AugmentationSettings",
                "OptimizerSettings",
                "SamplingSettings",
                "Schedule",
                "WeightAverageSettings",
            ),
            "recipes": (
                "KNOWN_ISSUES",
                "Recipe",
                "frozen_trunk_recipe_names",
                "get_recipe",
                "recipe_names",
                "small_model_recipe_names",
            ),
            "samples": ("EvaluationDataset", "JoinedDataset", "TrainingDataset", "collate"),
            "schedule": ("poly_schedule",),
            "starting_points": ("starting_model",),
            "trainer": ("SegmentationTrainer",),
        },
    )

__all__ = [
    "AugmentationSettings",
    "EpochCallback",
    "EvaluationDataset",
    "JoinedDataset",
    "KNOWN_ISSUES",
    "OptimizerSettings",
    "PhotometricDistortion",
    "Recipe",
    "SamplingSettings",
    "Schedule",
    "SegmentationTrainer",
    "TrainingAugmentation",
    "TrainingDataset",
    "WeightAverageSettings",
    "add_lora",
    "apply_losses",
    "collate",
    "create_optimizer",
    "freeze_trunk",
    "frozen_trunk_recipe_names",
    "get_recipe",
    "lora_config",
    "merge_lora",
    "parameter_groups",
    "poly_schedule",
    "recipe_names",
    "save_frozen_trunk",
    "small_model_recipe_names",
    "starting_model",
    "training_arguments",
    "trunk_linears",
    "with_bands",
]
