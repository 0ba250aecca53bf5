# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Settings of the published recipes, assembled from the files in `published/` and from the published rows.

A family's file has the settings that its recipes share (`common`) and the changes and additions of each recipe
(`recipes`). The published row with the recipe's name supplies the settings that it determines, such as test protocol,
normalisation and drop path. Three entries shorten the files: `row` names another row of the family to read instead,
`weights_folder` goes before `initial_weights`, and `{dataset}` and `{name}` in `source` are replaced by the recipe's.
`frozen_trunks.json` and `small_model.json` have the recipes that belong to no published row.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from ..datasets.known import get_dataset_info
from ..published import FAMILIES, published_rows

AUG_TEST_SCALES = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]  # of the originals' `test.py --aug-test`
_FREE_LONG_SIDE = 10**6  # pixels; a larger limit of the long side is written to leave it free
_WHOLE_VALUES = ("size", "multi_scale")  # mappings that are replaced as a whole


@functools.cache
def published_settings() -> dict[str, dict[str, Any]]:
    """Return the settings of each published recipe by its name, as `Recipe.from_dict` takes them."""
    return {
        name: _assembled(name, family, merged_settings(data["common"], own))
        for family in sorted(FAMILIES)
        for data in [_family_file(family)]
        for name, own in data["recipes"].items()
    }


@functools.cache
def frozen_trunk_settings() -> dict[str, dict[str, Any]]:
    """Return the settings of each recipe for a frozen trunk and any data, as [`published_settings`] does."""
    text = resources.files(__package__).joinpath("frozen_trunks.json").read_text(encoding="utf-8")
    data = json.loads(text)
    return {name: {**merged_settings(data["common"], own), "name": name} for name, own in data["recipes"].items()}


@functools.cache
def small_model_settings() -> dict[str, dict[str, Any]]:
    """Return the settings of each recipe for a small model and any data, as [`published_settings`] does."""
    text = resources.files(__package__).joinpath("small_model.json").read_text(encoding="utf-8")
    return {name: {**own, "name": name} for name, own in json.loads(text).items()}


def merged_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings `old` with the changes `new`. Parts such as `optimizer` change setting by setting."""
    return {**old} | {
        name: merged_settings(old[name], value)
        if isinstance(value, Mapping) and isinstance(old.get(name), Mapping) and name not in _WHOLE_VALUES
        else value
        for name, value in new.items()
    }


def _family_file(family: str) -> dict[str, Any]:
    file = resources.files(__package__).joinpath("published", f"{family}.json")
    return json.loads(file.read_text(encoding="utf-8"))


def _assembled(name: str, family: str, settings: dict[str, Any]) -> dict[str, Any]:
    row, folder = published_rows(family).get(settings.pop("row", name)), settings.pop("weights_folder", "")
    if row is not None:
        settings = merged_settings(_row_settings(row), settings)
    dataset = settings["dataset"]
    reduce_labels = get_dataset_info(dataset).reduce_zero_label
    settings["augmentation"] = {"reduce_labels": reduce_labels, **settings["augmentation"]}
    return {
        **settings,
        "name": name,
        "family": family,
        "initial_weights": folder + settings["initial_weights"],
        "source": settings["source"].format(dataset=dataset, name=name),
    }


def _row_settings(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a recipe that its published row determines.

    Training resizes images to the test protocol's size before the random factor, unless the recipe says otherwise.
    """
    model, crop_size = row["model"], row["crop_size"]
    protocol = _test_protocol(row)
    normalize = _steps(row["test_pipeline"]).get("Normalize") or model["data_preprocessor"]  # MMSegmentation 1.x
    return {
        "dataset": row["dataset"],
        "augmentation": {
            **protocol["size"],
            "crop_size": [crop_size, crop_size] if isinstance(crop_size, int) else crop_size,
            "image_mean": [round(level / 255, 6) for level in normalize["mean"]],
            "image_std": [round(level / 255, 6) for level in normalize["std"]],
        },
        "test_protocol": protocol,
        "gradient_checkpointing": model["backbone"].get("with_cp", False),
        "drop_path_rate": model["backbone"].get("drop_path_rate", 0.0),
        "initial_weights": model.get("pretrained"),
    }


def _test_protocol(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `conversion.protocol` reads from a row, without importing the models and the image processor."""
    windows, single_scale = row["model"]["test_cfg"], _steps(row["test_pipeline"])
    multi_scale = _steps(row["multi_scale_pipeline"] or row["test_pipeline"])
    scales = multi_scale.get("MultiScaleFlipAug", {})
    # the second is where MMSegmentation 1.x has the size
    size = single_scale.get("MultiScaleFlipAug", {}).get("img_scale") or single_scale["Resize"]["scale"]
    return {
        "inference_mode": windows["mode"],
        "window_size": windows.get("crop_size"),
        "window_stride": windows.get("stride"),
        "size": _size(size),
        "size_divisor": _size_divisor(single_scale),
        "multi_scale": {
            "scales": scales.get("img_ratios", AUG_TEST_SCALES),
            "flip": scales["flip"] if "img_ratios" in scales else True,
            "size_divisor": _size_divisor(multi_scale),
            "shortest_edge_at_least": multi_scale.get("SETR_Resize", {}).get("crop_size", [None])[0],
            "pad_shortest_edge": multi_scale.get("PadShortSide", {}).get("size"),
        },
    }


def _size(img_scale: Sequence[int]) -> dict[str, int]:
    if max(img_scale) > _FREE_LONG_SIDE:
        return {"shortest_edge": min(img_scale)}
    return {"shortest_edge": min(img_scale), "longest_edge": max(img_scale)}


def _size_divisor(steps: Mapping[str, Mapping[str, Any]]) -> int:
    return steps["ResizeToMultiple"].get("size_divisor", 32) if "ResizeToMultiple" in steps else 0


def _steps(pipeline: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the steps of an mmseg test pipeline by type, those inside `MultiScaleFlipAug` included."""
    return {step["type"]: step for outer in pipeline for step in (outer, *outer.get("transforms", ()))}


__all__ = ["frozen_trunk_settings", "merged_settings", "published_settings", "small_model_settings"]
