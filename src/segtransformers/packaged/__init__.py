# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""What ships with the package: a small trained model and a picture to try it on."""

from pathlib import Path

_FOLDER = Path(__file__).parent


def packaged_model_path() -> Path:
    """Folder of the small ViT-Adapter with UperNet that ships with the package; `from_pretrained` loads it offline.

    It knows drawn scenes only and is there to try things out; its README.md says what was measured.
    """
    return _FOLDER / "scenes-vit-adapter"


def known_model(name: str) -> str:
    """A folder or Hub id as a command takes it: "packaged" is the model above, unless a folder is called so."""
    return str(packaged_model_path()) if name == "packaged" and not Path(name).exists() else name


def example_image_path() -> Path:
    """A drawn scene that the packaged model has not seen in training."""
    return _FOLDER / "example_scene.png"
