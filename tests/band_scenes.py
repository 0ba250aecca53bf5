# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Drawn scenes of four bands in which two classes differ only in the fourth."""

from pathlib import Path

import numpy as np

CLASSES = ["ground", "plants", "painted roofs"]
GREEN, EARTH = (9000, 22000, 8000), (20000, 17000, 12000)  # red, green and blue
INFRARED = (15000, 38000, 6000)  # of each class


def draw_bands(seed: int, height: int = 64, width: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Return the values `(4, height, width)` uint16 of red, green, blue and infrared, and the labels."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    labels = np.zeros((height, width), np.uint8)
    for index in range(max(height * width // 250, 2)):
        top, left, radius = random.integers(height), random.integers(width), random.integers(5, 12)
        labels[(rows - top) ** 2 + (columns - left) ** 2 <= radius**2] = 1 + index % 2
    colours = np.where((labels > 0)[None], np.array(GREEN)[:, None, None], np.array(EARTH)[:, None, None])
    values = np.concatenate([colours, np.array(INFRARED)[labels][None]]).astype(np.float64)
    values *= random.normal(1.0, 0.08, values.shape)
    return values.clip(1, 65535).astype(np.uint16), labels


def write_scenes(folder: Path, count: int = 6, validation: int = 2, ending: str = ".tif", **options) -> Path:
    """Write a data folder of such scenes, as GeoTIFF or `.npy`, with masks as PNG."""
    import PIL.Image

    for index in range(count + validation):
        values, labels = draw_bands(index)
        part = "train" if index < count else "validation"
        for kind in ("images", "masks"):
            (folder / kind / part).mkdir(parents=True, exist_ok=True)
        write_raster(folder / "images" / part / f"{index:03d}{ending}", values, **options)
        PIL.Image.fromarray(labels).save(folder / "masks" / part / f"{index:03d}.png")
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    return folder


def write_raster(path: Path, values: np.ndarray, left: float = 500_000, top: float = 5_200_000, **options) -> Path:
    """Write values `(bands, height, width)` as `.npy`, or as GeoTIFF of 10 m pixels."""
    if path.suffix == ".npy":
        np.save(path, values)
        return path
    import rasterio

    settings = {
        "crs": "EPSG:32633",
        "transform": rasterio.Affine(10, 0, left, 0, -10, top),
        "photometric": "MINISBLACK",
    }
    bands, height, width = values.shape
    settings |= {"driver": "GTiff", "count": bands, "height": height, "width": width, "dtype": values.dtype, **options}
    with rasterio.open(path, "w", **settings) as file:
        file.write(values)
    return path
