# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Folders and Hub repositories of transformers' own Mask2Former, such as `facebook/mask2former-swin-tiny-ade-semantic`.

Its parameters are those of our model under other names.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import Mask2FormerForUniversalSegmentation, PreTrainedConfig

from .configuration_seg_mask2former import SegMask2FormerConfig

# arguments of `from_pretrained` that say where to find files
LOCATION_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
_PREFIXES = {
    "model.pixel_level_module.encoder.": "backbone.",
    "model.pixel_level_module.decoder.": "pixel_decoder.",
    "model.transformer_module.": "transformer_module.",
    "class_predictor.": "class_predictor.",
}


def is_stock(name: str | Path, **location: Any) -> bool:
    """Return whether a folder or Hub repository holds transformers' own Mask2Former.

    Args:
        location: some of `LOCATION_ARGUMENTS`.
    """
    try:
        values, _ = PreTrainedConfig.get_config_dict(name, **location)
    except OSError:  # transformers' own loading reports it
        return False
    return values.get("model_type") == SegMask2FormerConfig.stock_model_type


def stock_weights(name: str | Path, **location: Any) -> dict[str, torch.Tensor]:
    """Load transformers' own Mask2Former and return its tensors under the names of our model.

    Args:
        location: some of `LOCATION_ARGUMENTS`.
    """
    model = Mask2FormerForUniversalSegmentation.from_pretrained(name, **location)
    return {
        new + key.removeprefix(old): tensor
        for key, tensor in model.state_dict().items()
        for old, new in _PREFIXES.items()
        if key.startswith(old)  # the weights of the loss have no prefix among these
    }


__all__ = ["LOCATION_ARGUMENTS", "is_stock", "stock_weights"]
