# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Rasters segmented in Python: equality with whole images, models of many kinds, interruptions, and files."""

import os

import numpy as np
import pytest
import torch
from raster_cases import (
    HEIGHT,
    content,
    divide_rows,
    draw,
    save,
    scene_with_a_corner,
    small_model,
    truncate,
)
from test_segmenter import small_segmenter
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from segtransformers import SegmentationImageProcessor, SegmenterForSemanticSegmentation
from segtransformers.inference import InferenceProtocol, segment_bands, segment_image
from segtransformers.inference.raster_bands import segment_raster_bands
from segtransformers.inference.raster_segmentation import ClassPixels, RasterJob, segment_raster
from segtransformers.rasters import BandImage, RasterError, open_raster
from segtransformers.rasters.writing import GeoTiffLayout, stored_probabilities, write_geotiff

pytest.importorskip("rasterio", reason="rasterio is not installed (extra `geo`)")

BLENDED = InferenceProtocol(blend="cosine", margin=4, flip=True)


@pytest.fixture(scope="module")
def model():
    return small_model(), SegmentationImageProcessor(do_resize=False)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return scene_with_a_corner(tmp_path_factory.mktemp("scene") / "scene.tif")


@pytest.fixture
def small_tiles(monkeypatch):
    divide_rows(monkeypatch)


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
    assert len(labels.unique()) == 5
    for rows in (slice(0, HEIGHT), slice(0, 50), slice(77, 131), slice(149, 150)):
        with open_raster(scene) as raster:
            found = list(segment_raster_bands(*model, raster, protocol, rows))
        own = valid[rows]
        assert (np.concatenate([band.valid for band in found]) == own).all()
        streamed = torch.cat([band.segmented.probabilities for band in found], dim=1)
        assert torch.equal(streamed[:, own], probabilities[:, rows][:, own])
        assert torch.equal(torch.cat([band.segmented.labels for band in found])[own], labels[rows][own])


def test_windows_without_data_are_not_run(model, tmp_path):
    values = draw()
    values[:, :, :80] = 0
    file = save(tmp_path / "half.tif", values, nodata=0)
    calls = []
    network, processor = model
    hook = network.backbone.register_forward_hook(lambda *_: calls.append(1))
    try:
        with open_raster(file) as raster:
            found = torch.cat([band.segmented.labels for band in segment_raster_bands(network, processor, raster)])
        some = len(calls)
        whole = values.copy()
        whole[:, :, :80] = np.array([round(255 * value) for value in processor.image_mean], np.uint8)[:, None, None]
        expected = segment_image(network, processor, whole)
    finally:
        hook.remove()
    assert torch.equal(found[:, 80:], expected[:, 80:]) and some < len(calls) - some


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


def test_a_model_of_four_bands_of_16_bits(tmp_path, small_tiles):
    network = small_model(num_channels=4)
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
    network = small_model(problem_type="multi_label_classification")
    processor, values = SegmentationImageProcessor(do_resize=False), draw(height=100, width=90)
    np.save(tmp_path / "scene.npy", values)
    outputs = {kind: tmp_path / f"{kind}.tif" for kind in ("labels", "confidence", "probabilities")}
    counts = segment_raster(network, processor, RasterJob(tmp_path / "scene.npy", outputs, value_type="float32"))
    masks = segment_image(network, processor, values)
    assert masks.dtype == torch.bool and (content(outputs["labels"]) == masks.numpy()).all()
    found = {index: count for index, count in enumerate(masks.sum((1, 2)).tolist()) if count}
    assert counts == ClassPixels(found, 100 * 90) and sum(found.values()) > 100 * 90
    probabilities = content(outputs["probabilities"])
    assert ((probabilities > 0.5) == masks.numpy()).all()
    assert (content(outputs["confidence"]) == np.where(masks, probabilities, 1 - probabilities)).all()


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
    assert rows == [22] and not job.log.exists()
    for kind, path in outputs.items():
        assert path.read_bytes() == expected.outputs[kind].read_bytes(), kind
    changed = outputs["labels"].stat().st_mtime_ns
    counts = segment_raster(*model, job, resume=True, on_piece=rows.append)  # complete: nothing is done
    assert rows == [22] and outputs["labels"].stat().st_mtime_ns == changed
    assert counts == segment_raster(*model, expected, resume=True)
    assert counts.valid == HEIGHT * 112 - 30 * 50 == sum(counts.classes.values())
    outputs["confidence"].unlink()
    segment_raster(*model, job, resume=True, on_piece=rows.append)  # a file is missing: all are written again
    assert sum(rows) == 22 + HEIGHT and outputs["confidence"].exists()
    (job.log / "rows-00000000-00000064").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"labels.tif.resume is damaged: delete"):
        segment_raster(*model, job, resume=True)


def test_another_temperature_or_raster_is_another_run(model, tmp_path, small_tiles):
    """Confidences at two temperatures, or labels of two versions of a raster, are never mixed."""
    network, _ = model
    file = save(tmp_path / "scene.tif", draw())
    job = RasterJob(file, {"labels": tmp_path / "labels.tif", "confidence": tmp_path / "c.tif"})
    with pytest.raises(Stopped):
        segment_raster(*model, job, on_piece=stop_after(1))
    network.config.calibration_temperature = 2.0
    try:
        with pytest.raises(ValueError, match="of another run, which differs in temperature: delete that folder"):
            segment_raster(*model, job, resume=True)
    finally:
        network.config.calibration_temperature = 1.0
    os.utime(file, (1, 1))
    with pytest.raises(ValueError, match="of another run, which differs in file: delete that folder"):
        segment_raster(*model, job, resume=True)


def test_a_damaged_raster_leaves_finished_pieces_only(model, tmp_path, small_tiles):
    job = RasterJob(truncate(save(tmp_path / "early.tif", draw()), 0.1), {"labels": tmp_path / "early-labels.tif"})
    with pytest.raises(RasterError, match=r"early.tif, it is damaged"):
        segment_raster(*model, job)
    assert [path.name for path in tmp_path.iterdir()] == ["early.tif"]
    late = save(tmp_path / "late.tif", draw(), interleave="pixel")  # whose first rows are complete
    job = RasterJob(truncate(late, 0.9), {"labels": tmp_path / "labels.tif"})
    with pytest.raises(RasterError, match=r"late.tif, it is damaged"):
        segment_raster(*model, job)
    assert [path.name for path in job.log.glob("rows-*")] == ["rows-00000000-00000064"]
    assert not (tmp_path / "labels.tif").exists()


def test_more_than_255_classes_need_16_bits(tmp_path):
    values = np.arange(300, dtype=np.uint16).reshape(1, 10, 30)
    layout = GeoTiffLayout(1, 10, 30, "uint16", 65535.0, class_names={index: f"{index}<" for index in range(300)})
    write_geotiff(tmp_path / "many.tif", layout, [values])
    assert (content(tmp_path / "many.tif") == values).all()
    assert "<Category>299&lt;</Category>" in (tmp_path / "many.tif.aux.xml").read_text()


def test_stored_probabilities():
    values = np.array([[[0.0, 0.5, 1.0, 0.3]]], np.float32)
    valid = np.array([[True, True, True, False]])
    assert stored_probabilities(values, valid, "uint8").tolist() == [[[0, 127, 254, 255]]]
    for value_type in ("float16", "float32"):
        found = stored_probabilities(values, valid, value_type)
        assert found[..., :3].tolist() == [[[0, 0.5, 1]]] and np.isnan(found[..., 3])
