# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Names and colours of a converted model's classes: from the checkpoint, or from a data set that is known."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from ..datasets import DATASETS, get_dataset_info
from ..published import published_outputs
from .checkpoint import Checkpoint
from .mapping import ConversionError, Settings


def name_classes(model: PreTrainedModel, checkpoint: Checkpoint, chosen: str | None, row: dict[str, Any]) -> str:
    """Name and colour the model's classes; returns where the names came from.

    Names come from the data set that the user names, else from the checkpoint, else from the published row's data set.
    A published checkpoint may name classes that it has no outputs for: then the row's data set is right. And some have
    outputs that were never trained, behind those of their data set.
    """
    config = model.config
    names, palette = checkpoint.meta.get("CLASSES"), checkpoint.meta.get("PALETTE")
    newer = checkpoint.meta.get("dataset_meta")  # of MMSegmentation 1.x
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
        return "without names: say --dataset to name them"
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ConversionError("the checkpoint's CLASSES are not a list of names")
    if len(names) != config.num_labels:
        advice = (
            "Choose another --dataset, or leave it out"
            if chosen
            else "Say --dataset to take names and colours from a data set"
        )
        raise ConversionError(
            f"the {origin} are {len(names)}, but the head has {config.num_labels} outputs: {', '.join(names[:4])}, ... "
            + advice
        )
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    if isinstance(palette, list | tuple | np.ndarray) and len(palette) != len(names):
        return f"{origin}, without its {len(palette)} colours for {len(names)} classes"
    if palette is not None:
        config.palette = _checked_palette(palette, len(names))
    return origin


def dataset_of_variant(variant: Mapping[str, Any]) -> str | None:
    """The data set that an official Segmenter was trained on, where it is a known one with as many classes."""
    name = Settings(variant.get("dataset_kwargs") or {}, "the variant's dataset_kwargs").take("dataset", None)
    outputs = variant["net_kwargs"]["n_cls"]
    return name if name in DATASETS and len(get_dataset_info(name).classes) == outputs else None


def reduces_labels(config: Mapping[str, Any], dataset: str | None, meta: Mapping[str, Any]) -> bool:
    """Whether label 0 means "no class": what the config loads labels with, or what the checkpoint says about its data
    set (`dataset_meta` of MMSegmentation 1.x), or else a habit of the data set."""
    steps = config.get("train_pipeline") or []
    loading = [step for step in steps if isinstance(step, dict) and step.get("type") == "LoadAnnotations"]
    newer = meta.get("dataset_meta")
    told = loading[0].get("reduce_zero_label") if loading else None
    if told is None and isinstance(newer, Mapping):
        told = newer.get("reduce_zero_label")
    if told is None and loading and not isinstance(newer, Mapping):
        return False  # the default of 0.x; 1.x asks the data set
    if told is not None:
        return bool(told)
    return dataset is not None and get_dataset_info(dataset).reduce_zero_label


def _checked_palette(palette: Any, count: int) -> list[list[int]]:
    """mmseg saves a list, or a numpy array where it drew the colours at random."""
    try:
        colours = [[int(value) for value in colour] for colour in palette]
    except (TypeError, ValueError, OverflowError) as error:
        raise ConversionError(f"the checkpoint's PALETTE is no list of colours: {error}") from error
    if len(colours) != count or any(
        len(colour) != 3 or not 0 <= min(colour) <= max(colour) <= 255 for colour in colours
    ):
        raise ConversionError(f"the checkpoint's PALETTE must hold {count} colours of three values from 0 to 255")
    return colours
