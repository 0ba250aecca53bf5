# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Draw the pictures of the documentation into `docs/_static`: `python scripts/draw_docs_pictures.py`."""

from pathlib import Path

import numpy as np
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

import segtransformers
from segtransformers.inference import segment_image, uncertainty_maps
from segtransformers.visualization import draw_comparison

FOLDER = Path(__file__).parent.parent / "docs" / "_static"
COLOURS = 128  # of a stored picture


def main() -> None:
    folder = segtransformers.packaged_model_path()
    model = AutoModelForSemanticSegmentation.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    with Image.open(segtransformers.example_image_path()) as file:
        image = file.convert("RGB")
    labels = np.asarray(segment_image(model, processor, image))
    compared = draw_comparison(image, {"classes": labels}, model.config.id2label, model.config.palette)
    compared.quantize(COLOURS).save(FOLDER / "example.png", optimize=True)
    _, maps = uncertainty_maps(model, processor, image, ["entropy"])
    grey = Image.fromarray((255 * np.asarray(maps["entropy"])).clip(0, 255).astype(np.uint8))
    grey.save(FOLDER / "entropy.png", optimize=True)


if __name__ == "__main__":
    main()
