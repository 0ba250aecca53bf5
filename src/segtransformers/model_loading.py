# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Load trained models of anybody: no code of theirs runs, and names from their files are printed in one line."""

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

from transformers import AutoModelForSemanticSegmentation, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from .escaping import printable
from .models.mask2former import SegMask2FormerForSemanticSegmentation
from .models.mask2former.stock_mask2former import LOCATION_ARGUMENTS
from .models.upernet import SegUperNetForSemanticSegmentation

logger = logging.get_logger(__name__)

NO_REMOTE_CODE: dict[str, Any] = {"trust_remote_code": False}  # code that comes with a model is never run


def load_trained_model(name: str, **options: Any) -> PreTrainedModel:
    """Load a model for semantic segmentation as `from_pretrained` does, in evaluation mode.

    Checkpoints of transformers' own UperNet and Mask2Former become our models, with the same outputs. Tensors that the
    file lacks, and tensors that the model has no place for, are named in a warning of one line.

    Args:
        name: a folder or a name on the Hub.
        options: of `from_pretrained`.

    Raises:
        ValueError: naming the tensors that have other shapes than in the model.
    """
    model_class: Any = (None if "config" in options else our_class(name, **options)) or AutoModelForSemanticSegmentation
    with without_load_report():
        model, info = model_class.from_pretrained(
            name, ignore_mismatched_sizes=True, output_loading_info=True, **{**NO_REMOTE_CODE, **options}
        )
    different = {key: (stored, expected) for key, stored, expected in info["mismatched_keys"]}
    if different:
        key = min(different)
        stored, expected = (tuple(shape) for shape in different[key])
        more = f", and {len(different) - 1} other tensors" if len(different) > 1 else ""
        raise ValueError(
            f"its weights do not fit its config.json: {printable(key)} is {stored}, expected {expected}{more}"
        )
    shown = printable(name, 200)
    if info["missing_keys"]:
        logger.warning(f"{shown} lacks {_listed(info['missing_keys'])}: these parameters are random")
    if info["unexpected_keys"]:
        logger.warning(f"{shown} holds {_listed(info['unexpected_keys'])}, for which the model has no use")
    return model


def our_class(name: str, **options: Any) -> type[PreTrainedModel] | None:
    """Return our model class for a checkpoint of transformers' own UperNet or Mask2Former, or None for any other."""
    location = {key: options[key] for key in LOCATION_ARGUMENTS if key in options}
    try:
        values, _ = PreTrainedConfig.get_config_dict(name, **location)
    except OSError:  # loading reports it
        return None
    classes: dict[Any, type[PreTrainedModel]] = {
        "mask2former": SegMask2FormerForSemanticSegmentation,
        "upernet": SegUperNetForSemanticSegmentation,
    }
    return classes.get(values.get("model_type"))


@contextlib.contextmanager
def without_load_report() -> Iterator[None]:
    """Silence transformers' table of tensors that do not fit; the caller describes them in one line."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _listed(names: Collection[str]) -> str:
    more = f" and {len(names) - 3} others" if len(names) > 3 else ""
    return ", ".join(printable(name) for name in sorted(names)[:3]) + more


__all__ = ["NO_REMOTE_CODE", "load_trained_model", "our_class", "without_load_report"]
