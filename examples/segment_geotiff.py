# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Segment a GeoTIFF file of any size, and print the area of each class.

    pip install "segtransformers[geo]"
    python segment_geotiff.py scene.tif classes.tif --model trained

The result has the coordinate system of the raster, a colour table and the names of the classes, for QGIS for example.
`segtransformers segment scene.tif --model trained --output classes.tif` does the same from the command line, and more.
"""

import argparse

import rasterio
import torch
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

import segtransformers  # registers the models with transformers
from segtransformers.inference import InferenceProtocol, RasterJob, segment_raster


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raster")
    parser.add_argument("output", help="GeoTIFF file for the classes")
    parser.add_argument("--model", default=str(segtransformers.packaged_model_path()), help="a folder or a Hub id")
    parser.add_argument("--bands", type=int, nargs="+", help="bands that the model takes, counted from 1")
    parser.add_argument("--window", type=int, default=256, help="side of the windows in pixels")
    options = parser.parse_args()

    model = AutoModelForSemanticSegmentation.from_pretrained(options.model, dtype=torch.float32).eval()
    model = segtransformers.optimize_for_inference(model)
    processor = AutoImageProcessor.from_pretrained(options.model)
    side = (options.window, options.window)
    job = RasterJob(
        options.raster,
        {"labels": options.output},
        InferenceProtocol(window=side, blend="cosine"),  # overlapping windows without seams
        bands=None if options.bands is None else tuple(options.bands),
    )
    pixels = segment_raster(model, processor, job)

    with rasterio.open(options.output) as result:
        metres = result.crs.linear_units_factor[1] if result.crs is not None and result.crs.is_projected else None
        transform = result.transform
    for index, count in sorted(pixels.classes.items(), key=lambda pair: -pair[1]):
        line = f"{100 * count / pixels.valid:5.1f} %  {model.config.id2label[index]}"
        if metres is not None:
            line += f", {count * abs(transform.a * transform.e) * metres**2 / 10_000:.2f} hectares"
        print(line)


if __name__ == "__main__":
    main()
