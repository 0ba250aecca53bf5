# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Rasters segmented into GeoTIFF files: equality with whole images, files, interruptions, and bad input."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from test_evaluation import environment
from test_seg_upernet import small_head
from test_segmenter import small_segmenter
from test_vit_adapter import small_config as small_backbone
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor
from typer.testing import CliRunner

from segtransformers import (
    SegmentationImageProcessor,
    SegmenterForSemanticSegmentation,
    SegUperNetForSemanticSegmentation,
)
from segtransformers.cli import app
from segtransformers.inference import InferenceProtocol, segment_bands, segment_image
from segtransformers.inference import raster_segmentation as module
from segtransformers.inference.raster_bands import segment_raster_bands
from segtransformers.inference.raster_segmentation import ClassPixels, RasterJob, segment_raster
from segtransformers.rasters import BandImage, RasterError, open_raster, writing
from segtransformers.rasters.writing import GeoTiffLayout, stored_probabilities, write_geotiff

rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed (extra `geo`)")

NAMES = ["sky & sea", "wall", "floor", "tree", "car"]
PALETTE = [[10, 20, 30], [40, 50, 60], [70, 80, 90], [100, 110, 120], [255, 0, 0]]
HEIGHT, WIDTH, TILE = 200, 170, 64
BLENDED = InferenceProtocol(blend="cosine", margin=4, flip=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = small_head(inference_mode="slide", window_size=64, window_stride=43, window_batch_size=2, palette=PALETTE)
    config.id2label = dict(enumerate(NAMES))
    model = SegUperNetForSemanticSegmentation(config)
    with torch.no_grad():  # an untrained head is unsure: probabilities near 1/5 hide errors
        model.decode_head.classifier.weight *= 40
    model.save_pretrained(path)
    SegmentationImageProcessor().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return SegUperNetForSemanticSegmentation.from_pretrained(folder).eval(), SegmentationImageProcessor(do_resize=False)


def draw(bands=3, dtype=np.uint8, height=HEIGHT, width=WIDTH) -> np.ndarray:
    """Return smooth random bands, whose classes form areas."""
    coarse = torch.rand((1, bands, 9, 8), generator=torch.Generator().manual_seed(0))
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0.01, 1)[0].numpy()
    return (fine * np.iinfo(dtype).max).astype(dtype)


def save(path, values, **options):
    facts = {"crs": "EPSG:32633", "transform": rasterio.transform.from_origin(4e5, 5e6, 0.5, 0.5), **options}
    count, height, width = values.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=values.dtype, **facts
    ) as file:
        file.write(values)
    return path


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A raster whose corner has no data."""
    values = draw()
    values[:, :30, :50] = 0
    return save(tmp_path_factory.mktemp("scene") / "scene.tif", values, nodata=0)


@pytest.fixture
def small_tiles(monkeypatch):
    """Divide the rows of small rasters into several pieces."""
    for place in (writing, module):
        monkeypatch.setattr(place, "TILE", TILE)


def run(*words):
    done = CliRunner().invoke(app, ["segment", *map(str, words)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def assert_one_error(done, message: str) -> None:
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.exit_code == 1 and len(errors) == 1 and message in errors[0], done.output
    assert "Traceback" not in done.output


def content(path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read()


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


@pytest.mark.parametrize("protocol", [InferenceProtocol(), BLENDED], ids=["mean", "blended"])
def test_streamed_bands_equal_the_whole_image(model, scene, protocol):
    with open_raster(scene) as raster:
        values, valid = raster.read(), raster.valid()
    whole = values.copy()
    mean = [round(255 * value) for value in model[1].image_mean]
    whole[:, ~valid] = np.array(mean, np.uint8)[:, None]
    bands = list(segment_bands(*model, whole, protocol))
    probabilities = torch.cat([band.probabilities for band in bands], dim=1)
    labels = segment_image(*model, whole, protocol)
    assert len(labels.unique()) > 2
    for rows in (slice(0, HEIGHT), slice(0, 50), slice(77, 131), slice(199, 200)):
        with open_raster(scene) as raster:
            found = list(segment_raster_bands(*model, raster, protocol, rows))
        own = valid[rows]
        assert (np.concatenate([band.valid for band in found]) == own).all()
        streamed = torch.cat([band.segmented.probabilities for band in found], dim=1)
        assert torch.equal(streamed[:, own], probabilities[:, rows][:, own])
        assert torch.equal(torch.cat([band.segmented.labels for band in found])[own], labels[rows][own])


def test_windows_without_data_are_not_run(model, tmp_path):
    values = draw()
    values[:, :, :110] = 0
    file = save(tmp_path / "half.tif", values, nodata=0)
    calls = []
    network, processor = model
    hook = network.backbone.register_forward_hook(lambda *_: calls.append(1))
    try:
        with open_raster(file) as raster:
            found = torch.cat([band.segmented.labels for band in segment_raster_bands(network, processor, raster)])
        some = len(calls)
        whole = values.copy()
        whole[:, :, :110] = np.array([round(255 * value) for value in processor.image_mean], np.uint8)[:, None, None]
        expected = segment_image(network, processor, whole)
    finally:
        hook.remove()
    assert torch.equal(found[:, 110:], expected[:, 110:]) and some < len(calls) - some


def test_models_that_run_whole_images(tmp_path):
    """Segmenter enlarges small images; models of transformers have neither windows nor logits at full size."""
    values = draw(height=40, width=48)
    file, processor = save(tmp_path / "small.tif", values), SegmentationImageProcessor(do_resize=False)
    config = small_segmenter(inference_mode="slide", window_size=64, window_stride=32)
    segmenter = SegmenterForSemanticSegmentation(config).eval()
    with open_raster(file) as raster:
        found = torch.cat([band.segmented.labels for band in segment_raster_bands(segmenter, processor, raster)])
        assert torch.equal(found, segment_image(segmenter, processor, values))
        config = SegformerConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], decoder_hidden_size=8, num_labels=4)
        stock = SegformerForSemanticSegmentation(config).eval()
        stock_processor = SegformerImageProcessor(do_resize=False)
        found = torch.cat([band.segmented.labels for band in segment_raster_bands(stock, stock_processor, raster)])
        assert torch.equal(found, segment_image(stock, stock_processor, values))
        in_windows = InferenceProtocol(window=(32, 32))
        bands = list(segment_raster_bands(stock, stock_processor, raster, in_windows))
        assert sum(len(band.valid) for band in bands) == 40


def test_command(model, folder, scene, tmp_path, small_tiles):
    files = {name: tmp_path / f"{name}.tif" for name in ("labels", "confidence", "entropy", "probabilities")}
    (tmp_path / "labels.tif.aux.xml").write_text("of a file that is replaced")
    options = [part for name in list(files)[1:] for part in (f"--{name}", files[name])]
    polygons = tmp_path / "areas.gpkg"
    words = ["--output", files["labels"], *options, "--polygons", polygons, "--blend", "cosine"]
    done = run(scene, "--model", folder, *words)
    assert done.exit_code == 0, done.output
    assert not list(tmp_path.glob("*.resume")) and "note" not in done.stderr.replace("Deformable", "")
    with open_raster(scene) as raster:
        valid = raster.valid()
        network, processor = model
        bands = list(segment_raster_bands(network, processor, raster, InferenceProtocol(blend="cosine")))
    labels = content(files["labels"])[0]
    assert (labels[~valid] == 255).all()
    expected = torch.cat([band.segmented.labels for band in bands]).numpy()
    # the command optimizes the model, so a few pixels at the borders of areas may differ
    assert (labels[valid] != expected[valid]).mean() < 0.001
    confidence = torch.cat([band.segmented.confidence() for band in bands]).numpy()
    stored = content(files["confidence"])[0]
    assert (stored[~valid] == 255).all() and np.abs(stored[valid] / 254 - confidence[valid]).max() < 0.5 / 254 + 1e-3
    probabilities = content(files["probabilities"])
    assert probabilities.shape == (5, HEIGHT, WIDTH) and abs(probabilities[:, valid].sum(0) - 254.0).max() <= 3
    with rasterio.open(files["labels"]) as file, rasterio.open(scene) as source:
        assert (file.crs, file.transform, file.nodata) == (source.crs, source.transform, 255)
        assert file.profile["compress"] == "deflate" and file.block_shapes == [(TILE, TILE)]
        assert file.descriptions == ("class",) and file.tags(1)["class_0"] == NAMES[0]
        assert [list(file.colormap(1)[value][:3]) for value in range(5)] == PALETTE
        assert file.colormap(1)[255] == (0, 0, 0, 0)
    with rasterio.open(files["probabilities"]) as file:
        assert list(file.descriptions) == NAMES and file.scales[0] == pytest.approx(1 / 254)
    shares = {line.split("%")[1].strip(): float(line.split("%")[0]) for line in done.stdout.splitlines()[1:]}
    for index, name in enumerate(NAMES):
        assert shares.get(name, 0) == pytest.approx(100 * (labels[valid] == index).mean(), abs=0.06)

    pyogrio = pytest.importorskip("pyogrio", reason="pyogrio is not installed (extra `geo`)")
    info = pyogrio.read_info(polygons)
    assert info["crs"] == "EPSG:32633" and info["driver"] == "GPKG"
    _, _, shapes, (names, values) = pyogrio.raw.read(polygons)
    assert all(NAMES[value] == name for name, value in zip(names, values, strict=True)) and 255 not in values
    areas = dict.fromkeys(range(5), 0.0)
    for shape, value in zip(shapes, values, strict=True):
        areas[int(value)] += area_of(shape)
    for index in range(5):  # of pixels of 0.25 square metres
        assert areas[index] == pytest.approx(0.25 * (labels == index).sum())


def area_of(wkb: bytes) -> float:
    """Return the area of a polygon: that of its first ring without the others."""
    count, offset, total = int.from_bytes(wkb[5:9], "little"), 9, 0.0
    for ring in range(count):
        points = int.from_bytes(wkb[offset : offset + 4], "little")
        x, y = np.frombuffer(wkb, "<f8", 2 * points, offset + 4).reshape(-1, 2).T
        area = abs((x[:-1] * y[1:] - x[1:] * y[:-1]).sum()) / 2
        total += area if ring == 0 else -area
        offset += 4 + 16 * points
    return total


def test_gdal_knows_the_classes(model, scene, tmp_path):
    segment_raster(*model, RasterJob(scene, {"labels": tmp_path / "labels.tif"}))
    text = gdalinfo(tmp_path / "labels.tif")
    assert "0: sky & sea" in text and "4: car" in text and "Color Table" in text and "NoData Value=255" in text
    assert "COMPRESSION=DEFLATE" in text and "Block=256x256" in text and "Origin = (400000.0" in text


def test_a_model_of_four_bands_of_16_bits(tmp_path, small_tiles):
    torch.manual_seed(0)
    config = small_head(small_backbone(num_channels=4), inference_mode="slide", window_size=64, window_stride=43)
    network = SegUperNetForSemanticSegmentation(config).eval()
    processor = SegmentationImageProcessor(
        bands=[4, 3, 2, 1],
        band_dtype="uint16",
        do_convert_rgb=False,
        image_mean=[0.5] * 4,
        image_std=[0.25] * 4,
        rescale_factor=1 / 65535,
        do_resize=False,
    )
    values = draw(4, np.uint16)
    values[2, 60:90, 20:70] = 7
    file = save(tmp_path / "scene.tif", values, nodata=7)
    job = RasterJob(
        file, {"labels": tmp_path / "labels.tif", "probabilities": tmp_path / "p.tif"}, value_type="float16"
    )
    counts = segment_raster(network, processor, job)
    valid = values[2] != 7
    assert sum(counts.classes.values()) == counts.valid == valid.sum()
    image = BandImage(values[::-1], valid)
    assert (content(tmp_path / "labels.tif")[0][valid] == segment_image(network, processor, image).numpy()[valid]).all()
    whole = torch.cat([band.probabilities for band in segment_bands(network, processor, image)], dim=1).numpy()
    stored = content(tmp_path / "p.tif")
    assert stored.dtype == np.float32 and np.isnan(stored[:, ~valid]).all()
    assert (stored[:, valid] == whole[:, valid].astype(np.float16)).all()
    three, eight_bits = (
        save(tmp_path / "three.tif", values[:3]),
        save(tmp_path / "8.tif", draw(4), photometric="MINISBLACK"),
    )
    with pytest.raises(RasterError, match=r"three.tif has 3 bands, but the model takes the bands 4, 3, 2, 1"):
        segment_raster(network, processor, RasterJob(three, job.outputs))
    with pytest.raises(RasterError, match="holds values of type uint8, but the model was trained with uint16"):
        segment_raster(network, processor, RasterJob(eight_bits, job.outputs))
    assert not list(tmp_path.glob("*.resume"))


def test_masks_of_a_multi_label_model(tmp_path, small_tiles):
    """The raster is a NumPy file here, which has no coordinates."""
    torch.manual_seed(0)
    config = small_head(
        inference_mode="slide", window_size=64, window_stride=43, problem_type="multi_label_classification"
    )
    network = SegUperNetForSemanticSegmentation(config).eval()
    processor, values = SegmentationImageProcessor(do_resize=False), draw(height=100, width=90)
    np.save(tmp_path / "scene.npy", values)
    outputs = {kind: tmp_path / f"{kind}.tif" for kind in ("labels", "confidence", "probabilities")}
    counts = segment_raster(network, processor, RasterJob(tmp_path / "scene.npy", outputs, value_type="float32"))
    masks = segment_image(network, processor, values)
    assert masks.dtype == torch.bool and (content(outputs["labels"]) == masks.numpy()).all()
    found = {index: count for index, count in enumerate(masks.sum((1, 2)).tolist()) if count}
    assert counts == ClassPixels(found, 100 * 90)
    probabilities = content(outputs["probabilities"])
    assert ((probabilities > 0.5) == masks.numpy()).all()
    assert (content(outputs["confidence"]) == np.where(masks, probabilities, 1 - probabilities)).all()
    network.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    words = [tmp_path / "scene.npy", "--model", tmp_path / "model", "--output", tmp_path / "a.tif"]
    assert_one_error(run(*words, "--polygons", tmp_path / "a.gpkg"), "classes of a multi-label model overlap")
    PIL.Image.fromarray(draw(height=40, width=40).transpose(1, 2, 0)).save(tmp_path / "photo.png")
    words = [tmp_path / "photo.png", "--model", tmp_path / "model", "--entropy", tmp_path / "a"]
    assert_one_error(run(*words), "--entropy: a multi-label model has one for each class")
    assert not list(tmp_path.glob("a*"))


class Stopped(Exception):
    pass


def stop_after(pieces: int):
    done = []

    def on_piece(rows: int) -> None:
        done.append(rows)
        if len(done) == pieces:
            raise Stopped

    return on_piece


def test_stopped_and_continued(model, scene, tmp_path, small_tiles):
    outputs = {kind: tmp_path / f"{kind}.tif" for kind in ("labels", "confidence", "probabilities")}
    expected = RasterJob(scene, {kind: tmp_path / "once" / path.name for kind, path in outputs.items()}, BLENDED)
    segment_raster(*model, expected)
    job = RasterJob(scene, outputs, BLENDED)
    with pytest.raises(Stopped):
        segment_raster(*model, job, on_piece=stop_after(2))
    assert not any(path.exists() for path in outputs.values()) and len(list(job.log.glob("rows-*"))) == 2
    with pytest.raises(ValueError, match=r"a segmentation of scene.tif was stopped: continue it with .*--resume"):
        segment_raster(*model, job)
    with pytest.raises(ValueError, match="is of another run, which differs in window, flip: delete"):
        segment_raster(*model, RasterJob(scene, outputs), resume=True)
    rows: list[int] = []
    segment_raster(*model, job, resume=True, on_piece=rows.append)
    assert rows == [64, 8] and not job.log.exists()
    for kind, path in outputs.items():
        assert path.read_bytes() == expected.outputs[kind].read_bytes(), kind
    (job.log / "rows-00000000-00000064").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"labels.tif.resume is damaged: delete"):
        segment_raster(*model, job, resume=True)


def test_a_full_disk(folder, scene, tmp_path, small_tiles):
    if sys.platform == "win32":
        pytest.skip("needs a limit on the size of files")
    from test_full_disk import largest_file

    output = tmp_path / "labels.tif"
    words = [scene, "--model", folder, "--output", output, "--probabilities", tmp_path / "p.tif"]
    with largest_file(3000):
        assert_one_error(run(*words, "--probability-type", "float32"), "continue with --resume")
    assert not output.exists() and not (tmp_path / "p.tif").exists()
    done = run(*words, "--probability-type", "float32", "--resume")
    assert done.exit_code == 0, done.output
    with largest_file(40_000):  # room for each piece, but not for the results
        assert_one_error(
            run(
                *words[:3],
                "--output",
                tmp_path / "b.tif",
                *words[5:6],
                tmp_path / "q.tif",
                "--probability-type",
                "float32",
            ),
            "continue with --resume",
        )
    assert not (tmp_path / "b.tif").exists() and (tmp_path / "b.tif.resume").is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "b.tif.resume",
        "labels.tif",
        "labels.tif.aux.xml",
        "p.tif",
    ]
    done = run(
        *words[:3],
        "--output",
        tmp_path / "b.tif",
        *words[5:6],
        tmp_path / "q.tif",
        "--probability-type",
        "float32",
        "--resume",
    )
    assert done.exit_code == 0 and (tmp_path / "b.tif").read_bytes() == output.read_bytes()


def test_a_raster_without_coordinates_or_data(folder, tmp_path):
    plain = tmp_path / "plain.tif"
    save(plain, draw(height=70, width=80), crs=None, transform=None)
    done = run(plain, "--model", folder, "--output", tmp_path / "labels.tif")
    assert done.exit_code == 0 and "plain.tif has no coordinate system" in done.stderr
    with rasterio.open(tmp_path / "labels.tif") as file:
        assert file.crs is None and file.transform.is_identity
    empty = save(tmp_path / "empty.tif", np.zeros((3, 70, 80), np.uint8), nodata=0)
    assert_one_error(run(empty, "--model", folder, "--output", tmp_path / "none.tif"), "has no pixel with data")
    assert not list(tmp_path.glob("none*"))


def test_bad_input(folder, scene, tmp_path, monkeypatch):
    four = save(tmp_path / "four.tif", draw(4), photometric="MINISBLACK")
    floats = save(tmp_path / "floats.tif", draw().astype(np.float32))
    output = tmp_path / "out" / "labels.tif"
    for message, *words in (
        ("has 4 bands, but the model takes red, green and blue: name these with bands (--bands 1,2,3)", four),
        ("has 3 bands, but the model takes the bands 1, 2, 9", scene, "--bands", "1,2,9"),
        ("the model takes 3 bands, but 2 are asked for", scene, "--bands", "1,2"),
        ("--bands must be numbers from 1 on, such as 4,3,2, got 'red'", scene, "--bands", "red"),
        ("holds values of type float32, but the model takes colours of 8 or 16 bits", floats),
        ("rasters are run at their own resolution: leave scales out", scene, "--scales", "1,2"),
        ("--confidence c.png must end in .tif", scene, "--confidence", "c.png"),
        ("--polygons p.shp must end in .gpkg", scene, "--polygons", "p.shp"),
        ("must be different files", scene, "--confidence", output),
        ("value_type must be one of uint8, float16, float32, got 'int4'", scene, "--probability-type", "int4"),
        ("--label-maps and --colour-maps are for images", scene, "--label-maps", tmp_path / "maps"),
        ("margin of 20 leaves out pixels", scene, "--margin", "20"),
        ("missing.tif: expected an existing file", tmp_path / "missing.tif"),
    ):
        assert_one_error(run(*words, "--model", folder, "--output", output), message)
    assert_one_error(run(scene, "--model", folder, "--output", scene), "none of them the raster")
    assert_one_error(run(scene, "--output", output), "a raster needs --model")
    assert_one_error(run(four, "--probabilities", "p.tif"), "need one raster, and an --output that ends in .tif")
    assert not output.parent.exists()
    assert run(four, "--bands", "3,2,1", "--model", folder, "--output", output).exit_code == 0
    with pytest.raises(ValueError, match="outputs must have labels"):
        RasterJob(scene, {"confidence": output})
    monkeypatch.setitem(sys.modules, "rasterio", None)
    assert_one_error(run(scene, "--model", folder, "--output", output), "rasterio is needed to write GeoTIFF files")


def test_more_than_255_classes_need_16_bits(tmp_path):
    values = np.arange(300, dtype=np.uint16).reshape(1, 10, 30)
    layout = GeoTiffLayout(1, 10, 30, "uint16", 65535.0, class_names={index: f"{index}<" for index in range(300)})
    write_geotiff(tmp_path / "many.tif", layout, [values])
    assert (content(tmp_path / "many.tif") == values).all() and "299: 299<" in gdalinfo(tmp_path / "many.tif")


def test_stored_probabilities():
    values = np.array([[[0.0, 0.5, 1.0, 0.3]]], np.float32)
    valid = np.array([[True, True, True, False]])
    assert stored_probabilities(values, valid, "uint8").tolist() == [[[0, 127, 254, 255]]]
    for value_type in ("float16", "float32"):
        found = stored_probabilities(values, valid, value_type)
        assert found[..., :3].tolist() == [[[0, 0.5, 1]]] and np.isnan(found[..., 3])


def test_measures_of_images(folder, tmp_path):
    """The same options give grey images for images that are no rasters."""
    PIL.Image.fromarray(draw(height=70, width=80).transpose(1, 2, 0)).save(tmp_path / "a.png")
    done = run(tmp_path / "a.png", "--model", folder, "--confidence", tmp_path / "c", "--entropy", tmp_path / "e")
    assert done.exit_code == 0, done.output
    confidence, entropy = (np.asarray(PIL.Image.open(tmp_path / part / "a.png")) for part in "ce")
    assert confidence.shape == entropy.shape == (70, 80) and confidence.min() >= 255 // 5
    assert np.corrcoef(confidence.ravel(), entropy.ravel())[0, 1] < -0.5
    assert not (tmp_path / "segmentation.png").exists()


def command(folder, scene, output, *words) -> list[str]:
    return [
        *map(str, ["segtransformers", "segment", scene, "--model", folder, "--device", "cpu", "--output", output]),
        *words,
    ]


@pytest.mark.slow  # processes that import torch, on top of what the pieces of one process show
@pytest.mark.parametrize("way", ["workers", "torchrun"])
def test_several_processes_write_the_same_bytes(folder, scene, tmp_path, way):
    large = save(tmp_path / "large.tif", draw(height=700, width=90))
    words = {
        "once": [sys.executable, "-m"],
        "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"],
    }
    once, several = tmp_path / "once.tif", tmp_path / "several.tif"
    for start, output, options in (
        (words["once"], once, []),
        (words["torchrun" if way == "torchrun" else "once"], several, [] if way == "torchrun" else ["--workers", "2"]),
    ):
        done = subprocess.run(
            [*start, *command(folder, large, output, *options)], env=environment(), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert once.read_bytes() == several.read_bytes()


@pytest.mark.slow  # a process is killed, and two more are run
def test_killed_and_resumed(folder, tmp_path):
    large = save(tmp_path / "large.tif", draw(height=2000, width=90))
    once, killed = tmp_path / "once.tif", tmp_path / "killed.tif"
    start = [sys.executable, "-m"]
    subprocess.run([*start, *command(folder, large, once)], env=environment(), check=True)
    process = subprocess.Popen([*start, *command(folder, large, killed)], env=environment())
    log = tmp_path / "killed.tif.resume"
    while not list(log.glob("rows-*")):
        assert process.poll() is None, "the process ended before it was killed"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not killed.exists() and log.is_dir()
    subprocess.run([*start, *command(folder, large, killed), "--resume"], env=environment(), check=True)
    assert once.read_bytes() == killed.read_bytes() and not log.exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
