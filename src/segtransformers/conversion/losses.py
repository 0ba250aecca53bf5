# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Losses of MMSegmentation's decode heads (`loss_decode` and `sampler`) as settings of ours."""

from collections.abc import Mapping
from typing import Any

from ..escaping import short_repr
from ..models.losses import build_losses
from .mapping import ConversionError

PLAIN_LOSSES = [{"name": "cross_entropy", "average_over": "all_pixels"}]
_IGNORED = ("type", "loss_name", "loss_weight", "reduction", "use_mask", "activate")


def read_losses(loss_decode: Any, sampler: Any = None, version: int = 0) -> list[dict[str, Any]]:
    """Translate a head's losses.

    Args:
        loss_decode: a mapping, or a list of them.
        sampler: the head's sampler of pixels, which MMSegmentation applies to cross entropy only.
        version: major version of MMSegmentation; Dice and weighted cross entropy differ between 0 and 1.

    Returns:
        settings for [`build_losses`].

    Raises:
        ConversionError: naming the loss or the setting that has no counterpart.
    """
    entries = loss_decode if isinstance(loss_decode, list | tuple) else [loss_decode]
    settings = []
    for entry in entries:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("type"), str):
            raise ConversionError(f"a loss must be a mapping with a type, got {short_repr(entry)}")
        # MMSegmentation adds the terms whose name contains "loss" and only logs the others
        if "loss" in str(entry.get("loss_name", "loss")):
            settings.append(_read(dict(entry), sampler, version))
    if not settings:
        raise ConversionError(
            f"no entry of loss_decode has a loss_name that contains 'loss': {short_repr(loss_decode)}"
        )
    try:
        return [loss.to_dict() for loss in build_losses(settings)]
    except ValueError as error:
        raise ConversionError(str(error)) from error


def _read(entry: dict[str, Any], sampler: Any, version: int) -> dict[str, Any]:
    kind = entry["type"]
    if entry.get("reduction", "mean") == "sum":
        raise ConversionError(f"{kind} has reduction='sum'; only a mean is supported")
    if entry.get("use_mask"):
        raise ConversionError(f"{kind} has use_mask=True, which is for instance masks")
    readers = {
        "CrossEntropyLoss": _read_cross_entropy,
        "OhemCrossEntropy": _read_ohem,
        "FocalLoss": _read_focal,
        "DiceLoss": _read_dice,
        "TverskyLoss": _read_tversky,
        "LovaszLoss": _read_lovasz,
    }
    if kind not in readers:
        raise ConversionError(f"the loss {short_repr(kind)} is not one of {', '.join(readers)}")
    values = {name: value for name, value in entry.items() if name not in _IGNORED}
    if kind in ("DiceLoss", "TverskyLoss") and values.pop("ignore_index", 255) != 255:
        raise ConversionError(f"{kind} has ignore_index={short_repr(entry['ignore_index'])}, which leaves out a class")
    if isinstance(values.get("class_weight"), str):
        raise ConversionError(f"{kind}.class_weight names the file {short_repr(values['class_weight'])}; give a list")
    result = readers[kind](values, sampler, version)
    if values:
        raise ConversionError(f"{kind} has unknown settings: {', '.join(short_repr(name) for name in values)}")
    weight = entry.get("loss_weight", 1.0)
    return result | ({} if weight == 1.0 else {"weight": weight})


def _read_cross_entropy(values: dict[str, Any], sampler: Any, version: int) -> dict[str, Any]:
    is_sigmoid, weights = values.pop("use_sigmoid", False), values.pop("class_weight", None)
    average_over = "valid_pixels" if values.pop("avg_non_ignore", False) else "all_pixels"
    if isinstance(sampler, Mapping):
        sampler = dict(sampler)
        if is_sigmoid or sampler.pop("type", None) != "OHEMPixelSampler":
            raise ConversionError(f"the sampler {short_repr(sampler)} is only supported for a softmax cross entropy")
        result = {
            "name": "ohem_cross_entropy",
            "definition": "mmseg",
            "threshold": sampler.pop("thresh", None),
            "min_kept": sampler.pop("min_kept", 100000),
            "class_weights": weights,
            "average_over": average_over,
        }
        if sampler:
            raise ConversionError(f"the sampler has unknown settings: {', '.join(map(short_repr, sampler))}")
        return result
    if is_sigmoid:
        return {"name": "binary_cross_entropy", "positive_weights": weights, "average_over": average_over}
    if weights is not None and version >= 1:
        average_over = "class_weights"
    return {"name": "cross_entropy", "class_weights": weights, "average_over": average_over}


def _read_ohem(values: dict[str, Any], sampler: Any, version: int) -> dict[str, Any]:
    values.pop("ignore_label", None)
    return {
        "name": "ohem_cross_entropy",
        "definition": "pidnet",
        "threshold": values.pop("thres", 0.7),
        "min_kept": values.pop("min_kept", 100000),
        "class_weights": values.pop("class_weight", None),
    }


def _read_focal(values: dict[str, Any], sampler: Any, version: int) -> dict[str, Any]:
    if not values.pop("use_sigmoid", True):
        raise ConversionError("FocalLoss has use_sigmoid=False, which MMSegmentation does not support either")
    return {
        "name": "focal",
        "gamma": values.pop("gamma", 2.0),
        "alpha": values.pop("alpha", 0.5),
        "class_weights": values.pop("class_weight", None),
        "average_over": "all_pixels",
    }


def _read_dice(values: dict[str, Any], sampler: Any, version: int) -> dict[str, Any]:
    if version >= 1 or values.keys() & {"use_sigmoid", "naive_dice", "eps"}:
        return {
            "name": "dice",
            "definition": "mmseg1",
            "softmax": not values.pop("use_sigmoid", True),
            "exponent": 1 if values.pop("naive_dice", False) else 2,
            "smooth": values.pop("eps", 1e-3),
        }
    return {
        "name": "dice",
        "definition": "mmseg",
        "smooth": values.pop("smooth", 1),
        "exponent": values.pop("exponent", 2),
        "class_weights": values.pop("class_weight", None),
    }


def _read_tversky(values: dict[str, Any], sampler: Any, version: int) -> dict[str, Any]:
    return {
        "name": "tversky",
        "definition": "mmseg",
        "alpha": values.pop("alpha", 0.3),
        "beta": values.pop("beta", 0.7),
        "smooth": values.pop("smooth", 1),
        "class_weights": values.pop("class_weight", None),
    }


def _read_lovasz(values: dict[str, Any], sampler: Any, version: int) -> dict[str, Any]:
    values.pop("loss_type", None)  # follows from the number of channels
    return {
        "name": "lovasz",
        "classes": values.pop("classes", "present"),
        "per_image": values.pop("per_image", False),
        "class_weights": values.pop("class_weight", None),
    }
