# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""A small trained model and an image, which come with the package."""

from pathlib import Path

_FOLDER = Path(__file__).parent


def packaged_model_path() -> Path:
    """Return the folder of the packaged model, a small ViT-Adapter with UperNet that `from_pretrained` loads offline.

    The model segments drawn scenes only and is meant for trying things out. Its README.md has its figures.
    """
    return _FOLDER / "scenes-vit-adapter"


def example_image_path() -> Path:
    """Return the file of a drawn scene that was not in the training data of the packaged model."""
    return _FOLDER / "example_scene.png"
