# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""A small model and drawn rasters for the tests that segment rasters."""

from pathlib import Path

import numpy as np
import torch
from transformers import ConvNextConfig
from typer.testing import CliRunner

from segtransformers import SegmentationImageProcessor, SegUperNetConfig, SegUperNetForSemanticSegmentation
from segtransformers.cli import app
from segtransformers.inference import raster_segmentation
from segtransformers.rasters import writing

NAMES = ["sky & sea", "wall", "floor", "tree", "car"]
PALETTE = [[10, 20, 30], [40, 50, 60], [70, 80, 90], [100, 110, 120], [255, 0, 0]]
WINDOW, STRIDE = 48, 32
HEIGHT, WIDTH, TILE = 150, 112, 64  # of the raster, and rows of a piece in tests


def small_model(num_channels: int = 3, **changes) -> SegUperNetForSemanticSegmentation:
    """Return a model that runs in windows and is sure of its classes."""
    torch.manual_seed(0)
    backbone = ConvNextConfig(
        num_channels=num_channels,
        hidden_sizes=[8, 16, 16, 16],
        depths=[1, 1, 1, 1],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    settings = {"inference_mode": "slide", "window_size": WINDOW, "window_stride": STRIDE, "window_batch_size": 2}
    config = SegUperNetConfig(
        backbone_config=backbone, hidden_size=16, auxiliary_channels=8, num_labels=5, **settings | changes
    )
    config.id2label = dict(enumerate(NAMES))
    model = SegUperNetForSemanticSegmentation(config)
    model.eval()
    # an untrained head is unsure and gives one class: equal results would hide errors
    values = torch.from_numpy(draw(num_channels)[None] / np.float32(255))
    with torch.no_grad():
        logits = model((values - 0.45) / 0.225).logits
        scale = 3 / logits.std((0, 2, 3))
        head = model.decode_head.classifier
        head.weight *= scale.view(-1, 1, 1, 1)
        head.bias.copy_((head.bias - logits.mean((0, 2, 3))) * scale)
    return model


def save_model(path: Path, **changes) -> Path:
    small_model(palette=PALETTE, **changes).save_pretrained(path)
    SegmentationImageProcessor().save_pretrained(path)
    return path


def draw(bands: int = 3, dtype=np.uint8, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Return smooth random bands, whose classes form areas."""
    coarse = torch.rand((1, bands, 9, 8), generator=torch.Generator().manual_seed(0))
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0.01, 1)[0].numpy()
    return (fine * np.iinfo(dtype).max).astype(dtype)


def save(path: Path, values: np.ndarray, **options) -> Path:
    """Write values `(bands, height, width)` as a GeoTIFF of pixels of half a metre."""
    import rasterio

    facts = {"crs": "EPSG:32633", "transform": rasterio.Affine(0.5, 0, 4e5, 0, -0.5, 5e6), **options}
    count, height, width = values.shape
    facts |= {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": values.dtype}
    with rasterio.open(path, "w", **facts) as file:
        file.write(values)
    return path


def scene_with_a_corner(path: Path) -> Path:
    """Write a raster whose corner has no data."""
    values = draw()
    values[:, :30, :50] = 0
    return save(path, values, nodata=0)


def truncate(path: Path, share: float) -> Path:
    """Cut the end of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def divide_rows(monkeypatch) -> None:
    """Divide the rows of small rasters into several pieces."""
    for place in (writing, raster_segmentation):
        monkeypatch.setattr(place, "TILE", TILE)


def content(path: Path) -> np.ndarray:
    import rasterio

    with rasterio.open(path) as file:
        return file.read()


def run(*words):
    """Run `segtransformers segment` in this process."""
    done = CliRunner().invoke(app, ["segment", *map(str, words)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def errors_of(done) -> list[str]:
    assert "Traceback" not in done.output
    return [line for line in done.stderr.splitlines() if line.startswith("error: ")]


def assert_one_error(done, message: str) -> None:
    errors = errors_of(done)
    assert done.exit_code == 1 and len(errors) == 1 and message in errors[0], done.output
