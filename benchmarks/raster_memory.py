# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Measure peak memory and time of `segtransformers segment` for a huge GeoTIFF on the CPU, beyond the loaded model.

    python benchmarks/raster_memory.py                       # 30,000 x 30,000 pixels, 7 classes, labels and confidence
    python benchmarks/raster_memory.py --probabilities       # and the probabilities of all classes
    python benchmarks/raster_memory.py --side 10000 --workers 2
    python benchmarks/raster_memory.py --height 3000         # of 30,000 columns: memory does not depend on the rows

The network is tiny, so the figures are those of reading, merging windows, and writing. The peak is that of the process
(`ru_maxrss`; of the largest one with --workers), minus the peak for a raster of 600 x 600 pixels.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
import torch
from transformers import SegformerConfig, SegformerForSemanticSegmentation
from transformers.utils import logging

from segtransformers import SegmentationImageProcessor
from segtransformers.datasets.scenes import draw_scene

GIB = 1 << 30
BLOCK = 1024  # pixels of the raster that are written at once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=30_000, help="height and width of the raster, in pixels")
    parser.add_argument("--height", type=int, help="height of the raster, if it is no square")
    parser.add_argument("--classes", type=int, default=7)
    parser.add_argument("--window", type=int, default=512, help="side of the windows, in pixels")
    parser.add_argument("--stride", type=int, help="step between windows, in pixels; by default two thirds of a window")
    parser.add_argument("--probabilities", action="store_true", help="write the probabilities of all classes, too")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _make_model(folder / "model", options.classes)
        peaks = []
        height = options.height or options.side
        for part, rows, columns in (("small", 600, 600), ("large", height, options.side)):
            _make_raster(folder / f"{part}.tif", rows, columns)
            peak, took = _measure(folder, part, options)
            peaks.append(peak)
        size = sum(path.stat().st_size for path in folder.glob("large-*.tif")) / GIB
        print(
            f"{height} x {options.side} pixels, {options.classes} classes, windows of {options.window}, "
            f"{options.workers} process(es): {(peaks[1] - peaks[0]) / GIB:.2f} GiB beyond the model "
            f"({peaks[1] / GIB:.2f} GiB in all), {took:.0f} s, {size:.2f} GiB of results"
        )


def _make_model(folder: Path, classes: int) -> None:
    torch.manual_seed(0)
    config = SegformerConfig(
        hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], decoder_hidden_size=8, num_labels=classes, mlp_ratios=[1] * 4
    )
    SegformerForSemanticSegmentation(config).save_pretrained(folder)
    SegmentationImageProcessor().save_pretrained(folder)


def _make_raster(path: Path, rows: int, columns: int) -> None:
    """Write drawn scenes side by side, without ever holding the raster."""
    scene = np.ascontiguousarray(draw_scene(7, (BLOCK, BLOCK))[0].transpose(2, 0, 1))
    facts = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": rows, "width": columns, "crs": "EPSG:32633"}
    transform = rasterio.transform.from_origin(4e5, 5e6, 0.2, 0.2)
    tiles = {"tiled": True, "compress": "deflate", "zlevel": 1, "BIGTIFF": "IF_SAFER"}
    with rasterio.open(path, "w", **facts, **tiles, transform=transform) as file:
        for top in range(0, rows, BLOCK):
            for left in range(0, columns, BLOCK):
                height, width = min(BLOCK, rows - top), min(BLOCK, columns - left)
                window = ((top, top + height), (left, left + width))
                file.write(scene[:, :height, :width], window=window)


def _measure(folder: Path, name: str, options: argparse.Namespace) -> tuple[int, float]:
    """Run the command. Return its peak resident memory in bytes, and its time in seconds."""
    words = ["segment", folder / f"{name}.tif", "--model", folder / "model", "--window", options.window]
    words += ["--output", folder / f"{name}-classes.tif", "--confidence", folder / f"{name}-confidence.tif"]
    words += ["--device", "cpu", "--workers", options.workers]
    words += [] if options.stride is None else ["--stride", options.stride]
    if options.probabilities:
        words += ["--probabilities", folder / f"{name}-probabilities.tif"]
    start = time.perf_counter()
    command = [sys.executable, "-m", "segtransformers", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)  # of this process and those that it has waited for
    if status != 0:
        raise SystemExit(f"the command failed with status {status}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), time.perf_counter() - start


if __name__ == "__main__":
    main()
