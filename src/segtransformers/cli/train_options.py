# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The options of `segtransformers train` as one object."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .common import sides
from .data_options import parse_bands
from .errors import UserError


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The options of the command. Their help texts are in `train.py`, which has a parameter for each field."""

    data: str
    recipe: str | None
    output: Path
    preset: str | None
    model: str | None
    trunk_weights: Path | None
    crop_size: str | None
    kind: str | None
    classes: str | None
    reduce_labels: bool | None
    label_map: str | None
    image_ending: str | None
    mask_ending: str | None
    columns: str | None
    subset: str | None
    bands: str | None
    colour_bands: str | None
    tile: int | None
    split: str
    eval_split: str
    limit: int | None
    pseudo_labels: Path | None
    pseudo_weight: float
    teacher: str | None
    teacher_weight: float
    teacher_temperature: float
    binary: bool
    multi_label: bool
    losses: str | None
    class_weights: str | None
    sampling: str | None
    ema: float | None
    batch_size: str | None
    precision: str | None
    keep_best: bool
    early_stopping: int | None
    cache_features: int | None
    freeze_trunk: bool
    whole: bool
    lora_rank: int | None
    prediction_images: int
    report: bool
    resume: bool

    @property
    def crop(self) -> tuple[int, int] | None:
        """Return (height, width) of the training crops, or None for those of the recipe."""
        return None if self.crop_size is None else sides("--crop-size", self.crop_size)

    @property
    def colours(self) -> list[int] | None:
        """Return the numbers of the bands that hold red, green and blue, or None if no option says so.

        Three bands hold them in this order.
        """
        if self.bands is None:
            return None
        if self.colour_bands is None:
            listed = [] if self.bands == "all" else parse_bands("--bands", self.bands)
            return listed if len(listed) == 3 else None
        colours = parse_bands("--colour-bands", self.colour_bands)
        if len(colours) != 3:
            raise UserError(f"--colour-bands {self.colour_bands}: expected three bands, of red, green and blue")
        return colours

    @property
    def reading(self) -> tuple[Any, ...]:
        """Return the options of reading data, as positional arguments of `load_data` after the split."""
        return (
            self.kind,
            self.classes,
            self.reduce_labels,
            self.label_map,
            self.image_ending,
            self.mask_ending,
            self.columns,
            self.subset,
            True,  # strict
            self.multi_label or None,
            self.bands,
            self.tile,
        )


def option_names() -> list[str]:
    """Return the options as they are typed, such as `--crop-size`."""
    return [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(TrainOptions)]
