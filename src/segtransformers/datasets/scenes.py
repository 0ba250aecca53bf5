# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Procedurally drawn landscapes with exact labels: a data set that needs no download.

Colours overlap between the classes on purpose (a roof, a tree and a car may all have the same red). Texture, shape and
position tell the classes apart. The same seed gives the same pixels on every machine.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..image_processing import resize_image, resize_labels
from .scene_drawing import (
    Canvas,
    PortableRandom,
    add_light_and_noise,
    draw_balloon,
    draw_car,
    draw_house,
    draw_meadow,
    draw_mountains,
    draw_road,
    draw_sky,
    draw_tree,
    draw_water,
)

SCENE_CLASSES = ("sky", "mountain", "meadow", "water", "road", "wall", "roof", "tree", "car", "balloon")
PALETTE = [
    [135, 190, 235],
    [130, 110, 150],
    [140, 200, 80],
    [30, 90, 190],
    [90, 90, 95],
    [215, 140, 90],
    [165, 40, 40],
    [20, 110, 50],
    [245, 210, 40],
    [230, 70, 190],
]

IMAGE_MEAN = (123.675, 116.28, 103.53)
IMAGE_STD = (58.395, 57.12, 57.375)

FIRST_TRAINING_SEED = 1_000_000  # seeds below this are for evaluation


def draw_scene(seed: int, size: Sequence[int] = (128, 192)) -> tuple[np.ndarray, np.ndarray]:
    """Draw one landscape and its labels.

    Args:
        seed: not negative; below `FIRST_TRAINING_SEED` for evaluation.
        size: height and width in pixels, each at least 32.

    Returns:
        image `(H, W, 3)` uint8 RGB and labels `(H, W)` uint8, indices into `SCENE_CLASSES`.

    Raises:
        ValueError: if the seed is negative, or a side is shorter than 32 pixels.
    """
    height, width = size
    if seed < 0 or min(height, width) < 32:
        raise ValueError(f"seed must be at least 0 and both sides at least 32 pixels, got {seed} and {tuple(size)}")
    random = PortableRandom(seed)
    canvas = Canvas(random, height, width)
    unit = canvas.unit
    horizon = random.uniform(0.28, 0.55) * height
    ground = height - horizon
    draw_sky(canvas, horizon)
    if random.chance(0.75):
        draw_mountains(canvas, horizon)
    draw_meadow(canvas, horizon)
    if random.chance(0.7):
        draw_water(canvas, horizon)
    cars = draw_road(canvas, horizon) if random.chance(0.75) else []
    if random.chance(0.3):
        cars.append((random.uniform(0, width), horizon + random.uniform(0.2, 0.95) * ground))

    # wider scenes hold more objects; an object lower in the image is nearer, so it is drawn later
    relative_width = width / (128 * unit)
    objects = [(y, draw_car, x) for x, y in cars]
    for draw, most in ((draw_house, 2.4), (draw_tree, 5.0)):
        for _ in range(int(random.uniform(0, most) * relative_width + 0.3)):
            objects.append((horizon + random.uniform(0.02, 0.95) * ground, draw, random.uniform(0, width)))
    objects.sort(key=lambda item: item[0])
    count = int(random.uniform(0, 2.6) * relative_width)
    balloons = [(random.uniform(0, width), random.uniform(0.1, 1.05) * horizon) for _ in range(count)]
    in_front = random.chance(0.3)
    for x, y in () if in_front else balloons:
        draw_balloon(canvas, x, y)
    for base, draw, x in objects:
        draw(canvas, x, base)
    for x, y in balloons if in_front else ():
        draw_balloon(canvas, x, y)
    return add_light_and_noise(canvas), canvas.labels


def write_scenes(
    folder: str | Path, count: int, seed: int = 0, size: Sequence[int] = (128, 192), split: str | None = None
) -> Path:
    """Write scenes as a folder of images and a folder of masks for [`load_segmentation_dataset`].

    Args:
        folder: parent folder of `images`, `masks` and `classes.json`. Several calls may add several splits.
        count: number of scenes.
        seed: seed of the first scene; the following scenes have the following seeds.
        size: height and width in pixels.
        split: sub-folder of `images` and `masks`, for example `train`. None writes no sub-folder.

    Returns:
        `folder`.
    """
    folder = Path(folder)
    folders = [folder / name / (split or "") for name in ("images", "masks")]
    for subfolder in folders:
        subfolder.mkdir(parents=True, exist_ok=True)
    classes = [{"name": name, "color": colour} for name, colour in zip(SCENE_CLASSES, PALETTE, strict=True)]
    (folder / "classes.json").write_text(json.dumps(classes), encoding="utf-8")
    for scene in range(seed, seed + count):
        for subfolder, pixels in zip(folders, draw_scene(scene, size), strict=True):
            Image.fromarray(pixels).save(subfolder / f"scene_{scene:07d}.png")
    return folder


def normalized(image: np.ndarray) -> torch.Tensor:
    """Normalise an image `(H, W, 3)` uint8 to `(3, H, W)` float32."""
    values = (image.astype(np.float32) - np.array(IMAGE_MEAN, np.float32)) / np.array(IMAGE_STD, np.float32)
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))


def _resized(image: np.ndarray, labels: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    resized = resize_image(torch.from_numpy(image).permute(2, 0, 1), size)
    return resized.permute(1, 2, 0).numpy(), resize_labels(torch.from_numpy(labels)[None], size)[0].numpy()


class SceneDataset(torch.utils.data.Dataset):
    """A data set of scenes that are drawn on access.

    Items are dicts of `pixel_values` `(3, h, w)` float32, normalised, and `labels` `(h, w)` int64.

    Args:
        seeds: one seed per scene, for example a `range`.
        sizes: heights and widths in pixels; the scenes take them in turn.
        crop: height and width of the part to keep of each scene. The seed decides on its position. None keeps all.
        scale_range: lowest and highest factor for resizing half of the scenes after they were drawn, without smoothing.
            Seeds decide on the half and on the factor, whose logarithm is uniform; `sizes` are the sizes afterwards.
            None resizes no scene.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        sizes: Sequence[tuple[int, int]] = ((128, 192),),
        crop: tuple[int, int] | None = None,
        scale_range: tuple[float, float] | None = None,
    ):
        self.seeds, self.sizes, self.crop, self.scale_range = seeds, sizes, crop, scale_range

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        seed, size = self.seeds[index], self.sizes[index % len(self.sizes)]
        random = PortableRandom(seed + 1)
        if self.scale_range is not None and random.chance(0.5):
            low, high = self.scale_range
            scale = low * (high / low) ** random.uniform()
            image, labels = _resized(*draw_scene(seed, [max(round(side / scale), 32) for side in size]), size)
        else:
            image, labels = draw_scene(seed, size)
        if self.crop is not None:
            top = random.integer(0, image.shape[0] - self.crop[0])
            left = random.integer(0, image.shape[1] - self.crop[1])
            where = np.s_[top : top + self.crop[0], left : left + self.crop[1]]
            image, labels = image[where], labels[where]
        return {"pixel_values": normalized(image), "labels": torch.from_numpy(labels.astype(np.int64))}


__all__ = [
    "SCENE_CLASSES",
    "FIRST_TRAINING_SEED",
    "IMAGE_MEAN",
    "IMAGE_STD",
    "PALETTE",
    "SceneDataset",
    "draw_scene",
    "write_scenes",
]
