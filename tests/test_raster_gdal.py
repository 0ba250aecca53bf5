# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Results of rasters, checked by GDAL's own programs gdalinfo and gdalcompare.

Where the program gdalinfo is not installed, the function of the library in rasterio's wheel is called. gdalcompare is
a program only. The comparison through rasterio does the same and runs always.
"""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from raster_cases import NAMES, PALETTE, draw, save, small_model

from segtransformers import SegmentationImageProcessor
from segtransformers.inference import RasterJob, segment_image, segment_raster
from segtransformers.rasters import open_raster
from segtransformers.rasters.writing import GeoTiffLayout, write_geotiff

rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed (extra `geo`)")
COMPARE = shutil.which("gdalcompare.py") or shutil.which("gdalcompare")


def gdalinfo(path) -> str:
    """Return what GDAL's own gdalinfo prints: the program, or the function of the library that rasterio brings."""
    if shutil.which("gdalinfo"):
        return subprocess.run(["gdalinfo", str(path)], capture_output=True, text=True, check=True).stdout
    libraries = list(Path(f"{Path(rasterio.__file__).parent}.libs").glob("libgdal*"))
    if not libraries:
        pytest.skip("neither gdalinfo nor the library of rasterio's wheel is there")
    gdal = ctypes.CDLL(str(libraries[0]))
    gdal.GDALOpenEx.restype = gdal.GDALInfo.restype = ctypes.c_void_p
    gdal.GDALOpenEx.argtypes = [ctypes.c_char_p, ctypes.c_uint, *[ctypes.c_void_p] * 3]
    gdal.GDALInfo.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    gdal.GDALClose.argtypes = [ctypes.c_void_p]
    gdal.GDALAllRegister()
    opened = gdal.GDALOpenEx(str(path).encode(), 2, None, None, None)
    assert opened, f"GDAL cannot open {path}"
    text = ctypes.string_at(gdal.GDALInfo(opened, None)).decode()
    gdal.GDALClose(opened)
    return text


def gdalcompare(golden: Path, new: Path) -> list[str]:
    """Return the differences that gdalcompare finds. Files with other blocks or compression differ in their bytes."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([str(COMPARE), str(golden), str(new)], capture_output=True, text=True, env=environment)
    lines = (done.stdout + done.stderr).splitlines()
    return [line for line in lines if line.strip() and "binary level" not in line and "Differences Found" not in line]


def compared(golden: Path, new: Path) -> list[str]:
    """Return the differences of two files in what gdalcompare looks at, too."""
    found = []
    with rasterio.open(golden) as first, rasterio.open(new) as second:
        facts = ["crs", "transform", "shape", "count", "dtypes", "nodatavals", "descriptions", "scales", "colorinterp"]
        found += [name for name in facts if repr(getattr(first, name)) != repr(getattr(second, name))]
        for band in range(1, first.count + 1):
            found += [f"tags {band}"] * (first.tags(band) != second.tags(band))
            found += [f"overviews {band}"] * (first.overviews(band) != second.overviews(band))
            for reduced in (1, *first.overviews(band)):
                shape = -(-first.height // reduced), -(-first.width // reduced)
                pixels = [file.read(band, out_shape=shape) for file in (first, second)]
                found += [f"pixels {band} {reduced}"] * (not np.array_equal(*pixels))
        if first.colorinterp[0] == rasterio.enums.ColorInterp.palette:
            found += ["colours"] * (first.colormap(1) != second.colormap(1))
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A raster of more than 512 pixels, which needs an overview; its results; and the labels of the whole image."""
    folder = tmp_path_factory.mktemp("results")
    values = draw(height=40, width=600)
    values[:, :10, :50] = 0
    scene = save(folder / "scene.tif", values, nodata=0)
    model, processor = small_model(palette=PALETTE), SegmentationImageProcessor(do_resize=False)
    outputs = {kind: folder / f"{kind}.tif" for kind in ("labels", "confidence", "probabilities")}
    segment_raster(model, processor, RasterJob(scene, outputs, value_type="float16"))
    with open_raster(scene) as raster:
        valid = raster.valid()
    whole = values.copy()
    whole[:, ~valid] = np.array([round(255 * value) for value in processor.image_mean], np.uint8)[:, None]
    labels = segment_image(model, processor, whole).numpy().astype(np.uint8)
    return folder, np.where(valid, labels, 255).astype(np.uint8)


def test_labels_equal_a_file_that_gdal_wrote(results, tmp_path):
    folder, labels = results
    golden = save(tmp_path / "golden.tif", labels[None], nodata=255)
    with rasterio.open(golden, "r+") as file, rasterio.open(folder / "labels.tif") as other:
        file.set_band_description(1, "class")
        file.update_tags(1, **{f"class_{index}": name for index, name in enumerate(NAMES)})
        file.update_tags(SEGTRANSFORMERS_RUN=other.tags()["SEGTRANSFORMERS_RUN"])
    with rasterio.open(golden, "r+") as file:
        colours = {index: (*colour, 255) for index, colour in enumerate(PALETTE)} | {255: (0, 0, 0, 0)}
        file.write_colormap(1, colours)
    with rasterio.open(golden, "r+") as file:
        file.build_overviews([2], rasterio.enums.Resampling.nearest)
    assert compared(golden, folder / "labels.tif") == []
    other = shutil.copy(golden, tmp_path / "other.tif")
    with rasterio.open(other, "r+") as file:
        changed = file.read()
        changed[0, 20, 300] = 1 - min(changed[0, 20, 300], 1)
        file.write(changed)
    assert compared(Path(other), folder / "labels.tif") == ["pixels 1 1"]
    if COMPARE is None:
        pytest.skip("gdalcompare is not installed (python3-gdal); the comparison through rasterio has passed")
    assert gdalcompare(golden, folder / "labels.tif") == []
    assert any("Band 1 checksum difference" in line for line in gdalcompare(Path(other), folder / "labels.tif"))


def test_gdal_knows_the_classes(results, tmp_path):
    folder, _ = results
    text = gdalinfo(folder / "labels.tif")
    assert "0: sky & sea" in text and "4: car" in text and "Color Table" in text and "NoData Value=255" in text
    assert "COMPRESSION=DEFLATE" in text and "Block=256x256" in text and "Origin = (400000.0" in text
    assert "Overviews: 300x20" in text and 'ID["EPSG",32633]' in text
    text = gdalinfo(folder / "probabilities.tif")
    assert "NoData Value=nan" in text and text.count("Description = ") == 5 and "NBITS=16" in text
    values = np.arange(300, dtype=np.uint16).reshape(1, 10, 30)
    layout = GeoTiffLayout(1, 10, 30, "uint16", 65535.0, class_names={index: f"{index}<" for index in range(300)})
    write_geotiff(tmp_path / "many.tif", layout, [values])
    assert "299: 299<" in gdalinfo(tmp_path / "many.tif")
