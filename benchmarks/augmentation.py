# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Measure how many images per second one core prepares for training, with recipes of three crop sizes.

    python benchmarks/augmentation.py                     # a synthetic image
    python benchmarks/augmentation.py --images FOLDER     # your JPEG and PNG files

It uses one thread and one seed per image, so that all runs draw the same scales, crops and colours. The synthetic image
has the usual size of ADE20K and is saved as JPEG with quality 90 for the decoding.
"""

import argparse
import io
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from segtransformers.training import Recipe, TrainingAugmentation, get_recipe

RECIPES = (
    "upernet_deit_adapter_tiny_512_160k_ade20k",
    "upernet_beit_adapter_large_640_160k_ade20k_ss",
    "mask2former_beit_adapter_large_896_80k_ade20k_ss",
)
SIZE = (512, 683)
READABLE = (".jpg", ".jpeg", ".png")


def synthetic_image() -> bytes:
    """Return a JPEG file of smooth areas with some noise, as in photos."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (16, 20, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(SIZE[::-1], Image.Resampling.BICUBIC)).astype(float)
    image = np.clip(smooth + random.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=90)
    return file.getvalue()


def labels_for(size: tuple[int, int]) -> np.ndarray:
    """Return a label map of blocks with 20 classes, so that most crops contain several."""
    blocks = np.random.default_rng(1).integers(0, 20, (6, 8), dtype=np.uint8)
    return np.asarray(Image.fromarray(blocks).resize(size[::-1], Image.Resampling.NEAREST))


def decoded(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file)).convert("RGB")


def seconds_per_image(function, count: int) -> float:
    """Return the mean CPU time of `count` calls."""
    function(0)
    begin = time.process_time()
    for index in range(count):
        function(index)
    return (time.process_time() - begin) / count


def measure(recipe: Recipe, files: list[bytes], count: int) -> dict[str, float]:
    """Return the seconds per image of each step."""
    images = [decoded(file) for file in files[:count]]
    labels = [labels_for((image.height, image.width)) for image in images]
    augment = TrainingAugmentation.from_recipe(recipe)
    without_colours = TrainingAugmentation.from_recipe(recipe)
    without_colours.photometric_distortion = None

    def run(augmentation: TrainingAugmentation, index: int) -> None:
        position = index % len(images)
        augmentation(images[position], labels[position], seed=(0, 0, index))

    decoding = seconds_per_image(lambda index: decoded(files[index % len(files)]), count)
    whole = seconds_per_image(lambda index: run(augment, index), count)
    rest = seconds_per_image(lambda index: run(without_colours, index), count)
    return {
        "decoding": decoding,
        "all but colours": rest,
        "colours": whole - rest,
        "augmentation": whole,
        "decoding and augmentation": decoding + whole,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder of JPEG and PNG files")
    parser.add_argument("--count", type=int, default=200, help="number of images per measurement")
    options = parser.parse_args()
    if options.images is None:
        files = [synthetic_image()]
    else:
        paths = sorted(path for path in options.images.rglob("*") if path.suffix.lower() in READABLE)
        if not paths:
            parser.error(f"{options.images} contains no images ({', '.join(READABLE)})")
        files = [path.read_bytes() for path in paths[: options.count]]
    torch.set_num_threads(1)
    for name in RECIPES:
        recipe = get_recipe(name)
        height, width = recipe.crop_size
        print(f"{name}, crop {height}x{width}")
        for step, seconds in measure(recipe, files, options.count).items():
            print(f"  {step:<26} {1000 * seconds:6.1f} ms   {1 / seconds:7.0f} images/s")


if __name__ == "__main__":
    main()
