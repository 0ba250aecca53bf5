# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Names that stand for models: "packaged" and the names of published models."""

from pathlib import Path

from .packaged import packaged_model_path
from .published.names import find_published

# the best single-scale mIoU on ADE20K among the published models with less than 150 MB of weights
SMALL_MODEL = "segmenter_vit-s_mask_8x1_512x512_160k_ade20k"


def model_folder(name: str) -> str:
    """Return the folder of a named model, or the name itself if it is a folder or may be a model on the Hub.

    Args:
        name: "packaged", a folder, a Hub id, or the name of a published model, full or shortened. A published model
            that is not in the cache is downloaded and converted. Existing folders go first.

    Raises:
        ValueError: if the name fits several published models.
        ConversionError: if a published model cannot be downloaded or converted.
    """
    if _is_path(name):
        return name
    if name == "packaged":
        return str(packaged_model_path())
    if find_published(name) is None:
        return name
    # imports torch, which other names do without
    from .conversion.published_model import published_model

    return str(published_model(name))


def full_model_name(name: str) -> str:
    """Return the full name of a published model, or the name itself if [`model_folder`] takes it for another model."""
    return name if _is_path(name) or name == "packaged" else find_published(name) or name


def _is_path(name: str) -> bool:
    return "/" in name or "\\" in name or Path(name).exists()


__all__ = ["SMALL_MODEL", "full_model_name", "model_folder"]
