# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Names and colours of a converted model's classes, from the checkpoint or a known data set."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from ..datasets import DATASETS, get_dataset_info
from ..escaping import printable
from ..published import published_outputs
from .checkpoint import Checkpoint
from .mapping import ConversionError, Settings
from .pickle_objects import numbers_of

LONGEST_NAME = 1000  # characters of a class's name


def name_classes(model: PreTrainedModel, checkpoint: Checkpoint, chosen: str | None, row: dict[str, Any]) -> str:
    """Set the names and colours of the model's classes in its config, and return their origin in words.

    The names come from the user's data set, else from the checkpoint, else from the data set of the published config.
    The last is right for a published checkpoint whose names do not match its outputs. Some published checkpoints have
    more outputs than their data set has classes; the others were never trained and are named `unused`.

    Args:
        chosen: the user's data set, if any.
        row: the published config, or an empty dict.

    Raises:
        ConversionError: if the number of names is not the number of outputs, or names or colours are not valid.
    """
    config = model.config
    names, palette = checkpoint.meta.get("CLASSES"), checkpoint.meta.get("PALETTE")
    newer = checkpoint.meta.get("dataset_meta")  # MMSegmentation 1.x
    if names is None and isinstance(newer, Mapping):
        names, palette = newer.get("classes"), newer.get("palette")
    origin = "names from the checkpoint"
    fit = isinstance(names, list | tuple) and len(names) == config.num_labels
    dataset = chosen or (row["dataset"] if row and not fit else None)
    if dataset is not None:
        info = get_dataset_info(dataset)
        names, palette, origin = info.classes, info.palette, f"names of {dataset}"
        outputs = published_outputs(row) if row and dataset == row["dataset"] else 0
        surplus = outputs - len(names)
        if surplus > 0 and outputs == config.num_labels:
            names = [*names, *(f"unused {len(names) + index}" for index in range(surplus))]
            palette = [*palette, *([[0, 0, 0]] * surplus)]
    if names is None:
        return "without names: add --dataset to name them"
    if isinstance(names, list | tuple) and any(isinstance(name, str) and len(name) > LONGEST_NAME for name in names):
        raise ConversionError(f"the checkpoint's CLASSES has a name of more than {LONGEST_NAME} characters")
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ConversionError("the checkpoint's CLASSES must be a list of names")
    if len(names) != config.num_labels:
        advice = (
            "Choose another --dataset, or leave it out"
            if chosen
            else "Add --dataset to take names and colours from a data set"
        )
        raise ConversionError(
            f"the head has {config.num_labels} outputs, but there are {len(names)} {origin} "
            f"({', '.join(printable(name, 40) for name in names[:4])}, ...). {advice}"
        )
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    palette = numbers_of(palette) or palette  # mmseg draws colours with numpy
    if isinstance(palette, list | tuple) and len(palette) != len(names):
        return f"{origin}, without its {len(palette)} colours for {len(names)} classes"
    if palette is not None:
        config.palette = _checked_palette(palette, len(names))
    return origin


def dataset_of_variant(variant: Mapping[str, Any], outputs: int) -> str | None:
    """Return the data set of an official Segmenter if it is known and has as many classes as the model outputs."""
    name = Settings(variant.get("dataset_kwargs") or {}, "the variant's dataset_kwargs").take("dataset", None)
    return (
        name if isinstance(name, str) and name in DATASETS and len(get_dataset_info(name).classes) == outputs else None
    )


def reduces_labels(config: Mapping[str, Any], dataset: str | None, meta: Mapping[str, Any]) -> bool:
    """Return True if label 0 of the data set means "no class".

    This is a setting of the config's `LoadAnnotations`, else of the checkpoint's `dataset_meta` (MMSegmentation 1.x),
    else of the known data set.
    """
    steps = config.get("train_pipeline") or []
    loading = [step for step in steps if isinstance(step, dict) and step.get("type") == "LoadAnnotations"]
    newer = meta.get("dataset_meta")
    setting = loading[0].get("reduce_zero_label") if loading else None
    if setting is None and isinstance(newer, Mapping):
        setting = newer.get("reduce_zero_label")
    if setting is None and loading and not isinstance(newer, Mapping):
        return False  # the default of 0.x; in 1.x the data set decides
    if setting is not None:
        return bool(setting)
    return dataset is not None and get_dataset_info(dataset).reduce_zero_label


def _checked_palette(palette: Any, count: int) -> list[list[int]]:
    """Check mmseg's palette and return it as lists of integers.

    Raises:
        ConversionError: if it does not have `count` colours of three values from 0 to 255.
    """
    try:
        colours = [[int(value) for value in colour] for colour in palette]
    except (TypeError, ValueError, OverflowError) as error:
        raise ConversionError(f"the checkpoint's PALETTE is not a list of colours: {printable(error, 200)}") from error
    if len(colours) != count or any(
        len(colour) != 3 or not 0 <= min(colour) <= max(colour) <= 255 for colour in colours
    ):
        raise ConversionError(f"the checkpoint's PALETTE must have {count} colours of three values from 0 to 255")
    return colours
