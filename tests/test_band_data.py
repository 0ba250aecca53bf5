# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Data sets of rasters: bands, tiles, statistics, augmentation, training from the command line, and learning."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from band_scenes import CLASSES, draw_bands, write_raster, write_scenes
from training_cases import SIDE, small_model, trainer
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
from typer.testing import CliRunner

from segtransformers import SegmenterViTConfig, packaged_model_path
from segtransformers.cli import app
from segtransformers.datasets import (
    DataError,
    band_statistics,
    check_dataset,
    get_dataset_info,
    load_segmentation_dataset,
)
from segtransformers.datasets.bands import STATISTICS_FILE, BandStatistics, read_statistics
from segtransformers.datasets.class_counts import cached_counts
from segtransformers.datasets.raster_loading import held_out_area
from segtransformers.inference import segment_image
from segtransformers.models.input_channels import input_channels
from segtransformers.rasters import BandImage, open_raster
from segtransformers.training import (
    EvaluationDataset,
    PhotometricDistortion,
    TrainingAugmentation,
    TrainingDataset,
    with_bands,
)

rasterio = pytest.importorskip("rasterio", reason="the extra geo is not installed")
rasterio_warp = pytest.importorskip("rasterio.warp", reason="the extra geo is not installed")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"), nodata=0)


def test_samples_have_the_bands_asked_for(scenes):
    data = load_segmentation_dataset(scenes, "train", bands=[4, 2])
    values, labels = draw_bands(0)
    assert data.bands == [4, 2] and data.band_dtype == "uint16" and len(data) == 6
    sample = data[0]
    assert isinstance(sample.image, BandImage) and sample.image.size == (64, 64)
    assert np.array_equal(sample.image.values, values[[3, 1]]) and np.array_equal(sample.labels, labels)
    assert load_segmentation_dataset(scenes, "train", bands="all").bands == [1, 2, 3, 4]
    report = check_dataset(data)
    assert report.samples == 6 and not report.errors and report.pixels.sum() == 6 * 64 * 64
    with pytest.raises(DataError, match=r"has 4 bands: the bands 4, 5 cannot be read"):
        load_segmentation_dataset(scenes, "train", bands=[4, 5])


def folder_of(path, image, mask, ending=".tif", mask_ending=".tif", of_image=None, of_mask=None, **options):
    """Write a data folder of one image and one mask, and load it."""
    for kind in ("images", "masks"):
        (path / kind).mkdir(parents=True)
    write_raster(path / "images" / f"a{ending}", image, **(of_image or {}))
    write_raster(path / "masks" / f"a{mask_ending}", mask, **(of_mask or {}))
    return load_segmentation_dataset(path, bands="all", classes=CLASSES, **options)


def test_pixels_without_data_have_no_class(tmp_path):
    values, labels = draw_bands(1)
    floats = values.astype(np.float32)
    floats[2, :3] = np.nan
    floats[:, 5] = -9999
    mask = labels[None].astype(np.int16)
    mask[0, 10] = -1
    data = folder_of(tmp_path, floats, mask, of_image={"nodata": -9999}, of_mask={"nodata": -1})
    sample = data[0]
    rows = [0, 1, 2, 5, 10]
    others = [row for row in range(64) if row not in rows]
    assert (sample.labels[rows] == 255).all() and np.array_equal(sample.labels[others], labels[others])
    found = band_statistics(data)
    kept = floats[:, [row for row in range(64) if row not in (0, 1, 2, 5)]].reshape(4, -1).astype(np.float64)
    assert (
        found.pixels == kept.shape[1] and np.allclose(found.mean, kept.mean(1)) and np.allclose(found.std, kept.std(1))
    )
    assert found.minimum == tuple(kept.min(1)) and found.dtype == "float32"


def test_masks_in_rasters_hold_indices_or_colours(tmp_path):
    values, labels = draw_bands(2)
    data = folder_of(tmp_path / "a", values, labels[None].astype(np.int64), ".npy", ".npy")
    assert np.array_equal(data[0].labels, labels)
    palette = [[9, 9, 9], [0, 200, 0], [200, 0, 0]]
    colours = np.array(palette, np.uint8)[labels].transpose(2, 0, 1)
    data = folder_of(tmp_path / "b", values, colours, palette=palette)
    assert np.array_equal(data[0].labels, labels)
    data = folder_of(tmp_path / "c", values, labels[None], of_mask={"nodata": 0})
    assert np.array_equal(data[0].labels == 255, labels == 0)
    data = folder_of(tmp_path / "turned", values, labels[None], of_image=turned(0), of_mask=turned(0))
    assert np.array_equal(data[0].labels, labels)
    data = folder_of(tmp_path / "d", values, labels[None], of_mask={"nodata": 0}, label_map={0: 0})
    assert np.array_equal(data[0].labels, labels)


def turned(columns: int) -> dict:
    """Return options of `write_raster` for a rotated raster that begins some columns later."""
    return {"transform": rasterio.Affine(8, 6, 500_000 + 8 * columns, 6, -8, 5_200_000 + 6 * columns)}


def test_rasters_that_cannot_be_used_are_named(tmp_path):
    values, labels = draw_bands(3)
    mask = labels[None]
    for name, message, image, label, options in (
        ("size", r"64 x 64, its mask .*a\.tif 63 x 64", values, mask[:, :, 1:], {}),
        ("place", "lies 3.0 pixels beside its image", values, mask, {"of_mask": {"left": 500_030}}),
        ("turned", "lies 2.0 pixels beside its image", values, mask, {"of_image": turned(0), "of_mask": turned(2)}),
        ("floats", "floating-point", values, mask.astype(np.float32), {}),
        ("bands", "mask .* has 2 bands", values, np.concatenate([mask, mask]), {}),
        ("empty", "no data in any pixel", np.zeros_like(values), mask, {"of_image": {"nodata": 0}}),
        ("nan", "no data in any pixel", np.full((2, 64, 64), np.nan, np.float32), mask, {}),
        ("labels", r"labels that are no class: 9", values, mask + 7 * (mask == 2), {}),
    ):
        with pytest.raises(DataError, match=message) as caught:
            folder_of(tmp_path / name, image, label, **options)[0]
        assert "\n" not in str(caught.value)
    data = folder_of(tmp_path / "types", values, mask)
    write_raster(tmp_path / "types/images/b.tif", values.astype(np.float32))
    write_raster(tmp_path / "types/masks/b.tif", mask)
    write_raster(tmp_path / "types/images/c.tif", values[:3])
    write_raster(tmp_path / "types/masks/c.tif", mask)
    report = check_dataset(load_segmentation_dataset(tmp_path / "types", bands="all", classes=CLASSES))
    assert report.samples == 1 and "float32, but the first image uint16" in report.errors[0]
    assert "has 3 bands, but the bands 1, 2, 3, 4 are asked for" in report.errors[1]
    write_raster(tmp_path / "types/images/d.tif", np.concatenate([values, values[:1]]))
    write_raster(tmp_path / "types/masks/d.tif", mask)
    report = check_dataset(load_segmentation_dataset(tmp_path / "types", bands="all", classes=CLASSES))
    assert "d.tif has 5 bands, but the first image 4: name the bands that all images have" in report.errors[2]
    report = check_dataset(load_segmentation_dataset(tmp_path / "types", bands=[1, 2, 3, 4], classes=CLASSES))
    assert report.samples == 2 and not any("d.tif" in error for error in report.errors)
    constant = np.concatenate([values, np.full((1, 64, 64), 7, np.uint16)])
    with pytest.raises(DataError, match=r"the bands 5 of .* have the same value everywhere"):
        band_statistics(folder_of(tmp_path / "constant", constant, mask))
    assert len(data) == 1


def test_tiles_cover_a_raster_once_and_parts_share_none(tmp_path):
    rasters = {}
    for index, (height, width) in enumerate(((150, 100), (70, 64), (64, 130))):
        values, labels = draw_bands(index, height, width)
        for kind, content in (("images", values), ("masks", labels[None])):
            (tmp_path / kind).mkdir(exist_ok=True)
            write_raster(tmp_path / kind / f"r{index}.tif", content)
        rasters[f"r{index}"] = labels
    data = load_segmentation_dataset(tmp_path, bands=[1, 4], tile=64, classes=CLASSES)
    seen = {name: np.zeros(labels.shape, int) for name, labels in rasters.items()}
    for index in range(len(data)):
        sample = data[index]
        name, top, left = sample.name.rsplit("_", 2)
        where = np.s_[int(top) : int(top) + sample.labels.shape[0], int(left) : int(left) + sample.labels.shape[1]]
        assert np.array_equal(sample.labels, rasters[name][where])
        seen[name][where] += 1
    assert all((count == 1).all() for count in seen.values()) and len(data) == 6 + 2 + 3
    held = held_out_area(data.rows)
    parts = [
        {data.names[index].rsplit("_", 2)[0] for index in group} for group in (held, set(range(len(data))) - set(held))
    ]
    assert parts[0] == {"r0"} and parts[1] == {"r1", "r2"}
    one = data.select([index for index, name in enumerate(data.names) if name.startswith("r0")])
    held = held_out_area(one.rows)
    assert {one.names[index].rsplit("_", 2)[1] for index in held} == {"128"} and 0 < len(held) < len(one)
    for tile, error in ((8, ValueError), (-1, ValueError)):
        with pytest.raises(error, match="at least 32 pixels"):
            load_segmentation_dataset(tmp_path, bands="all", tile=tile, classes=CLASSES)


def test_counts_of_tiles_are_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGTRANSFORMERS_CACHE", str(tmp_path / "cache"))
    folder = write_scenes(tmp_path / "data", nodata=0)
    data = load_segmentation_dataset(folder, "train", bands=[1], tile=32)
    counts = check_dataset(data).counts
    assert np.array_equal(cached_counts(data).per_sample, counts.per_sample) and len(counts.per_sample) == 24
    for other in (
        data.select(range(5)),
        load_segmentation_dataset(folder, "train", bands=[1], tile=64),
        load_segmentation_dataset(folder, "train", bands=[2], tile=32),
        load_segmentation_dataset(folder, "train"),
    ):
        assert cached_counts(other) is None


def test_tiles_of_rgb_images_are_images(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (80, 70, 3), np.uint8)
    for kind, content in (("images", image), ("masks", image[..., 0] % 3)):
        (tmp_path / kind).mkdir()
        PIL.Image.fromarray(content).save(tmp_path / kind / "a.png")
    data = load_segmentation_dataset(tmp_path, tile=64, classes=CLASSES)
    assert [data[index].image.size for index in range(4)] == [(64, 64), (6, 64), (64, 16), (6, 16)]
    assert data[3].image.mode == "RGB" and np.array_equal(np.asarray(data[3].image), image[64:, 64:])
    assert np.array_equal(data[3].labels, image[64:, 64:, 0] % 3)
    few = PIL.Image.fromarray(image).quantize(16)
    few.save(tmp_path / "images/a.png")
    assert np.array_equal(np.asarray(data[0].image), np.asarray(few.convert("RGB"))[:64, :64])
    (tmp_path / "images/a.png").unlink()
    write_raster(tmp_path / "images/a.tif", np.zeros((4, 80, 70), np.uint16))
    with pytest.raises(DataError, match=r"4 bands of type uint16.*--bands"):
        load_segmentation_dataset(tmp_path, tile=64, classes=CLASSES)[0]


def test_tiles_of_potsdam(tmp_path):
    """Large images with colour masks, whose classes and colours are known."""
    labels = np.resize(np.arange(7), (100, 70))
    palette = np.array([*get_dataset_info("potsdam").palette, [0, 0, 0]], np.uint8)
    image = np.random.default_rng(0).integers(0, 256, (4, 100, 70), np.uint8)
    for kind, name, content in (
        ("4_Ortho_RGBIR", "RGBIR", image),
        ("5_Labels_all", "label", palette[labels].transpose(2, 0, 1)),
    ):
        (tmp_path / kind).mkdir()
        write_raster(tmp_path / kind / f"top_potsdam_2_10_{name}.tif", content)
    data = load_segmentation_dataset(tmp_path, "train", bands="all", tile=64)
    assert data.kind == "potsdam" and data.names[3] == "2_10_64_64" and data.bands == [1, 2, 3, 4]
    expected = np.where(labels == 6, 255, labels)
    assert np.array_equal(data[3].labels, expected[64:, 64:]) and np.array_equal(
        data[3].image.values, image[:, 64:, 64:]
    )


def test_the_folder_of_a_known_data_set_that_has_the_bands(tmp_path):
    """Potsdam's downloads hold the same areas as RGB and with near infrared."""
    for kind, name, count in (("2_Ortho_RGB", "RGB", 3), ("4_Ortho_RGBIR", "RGBIR", 4), ("5_Labels_all", "label", 3)):
        (tmp_path / kind).mkdir()
        path = tmp_path / kind / f"top_potsdam_2_10_{name}.tif"
        if name == "RGBIR":
            write_raster(path, np.full((count, 40, 40), 255, np.uint8))
        else:
            PIL.Image.new("RGB", (40, 40), (255, 255, 255)).save(path)
    for bands, read, folder in (
        (None, None, "2_Ortho_RGB"),
        ([3, 1], [3, 1], "2_Ortho_RGB"),
        ([4, 1], [4, 1], "4_Ortho_RGBIR"),
        ("all", [1, 2, 3, 4], "4_Ortho_RGBIR"),
    ):
        data = load_segmentation_dataset(tmp_path, "train", bands=bands)
        assert data.bands == read and Path(data.rows[0]["image"]["path"]).parent.name == folder
        assert data[0].image.size == (40, 40)
    for bands, message in (([5], "has 3 bands: the bands 5 cannot be read"), ([0], "the bands 0 cannot be read")):
        with pytest.raises(DataError, match=message):
            load_segmentation_dataset(tmp_path, "train", bands=bands)


def test_rasters_without_bands_get_a_hint(tmp_path):
    data = write_scenes(tmp_path / "data")
    with pytest.raises(DataError, match=r"as an image: .*\. A raster is read with its bands .--bands all"):
        load_segmentation_dataset(data, "train")[0]
    scene = next((data / "images" / "train").iterdir())
    done = command("segment", scene, "--model", packaged_model_path(), "--output", tmp_path / "drawn.png")
    assert done.exit_code == 1 and "one raster to an --output that ends in .tif" in " ".join(done.output.split())


def test_bands_and_tiles_need_one_mask_file_for_each_image(tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed (extra `train`)")
    rows = datasets.Dataset.from_dict({"image": [PIL.Image.new("RGB", (8, 8))], "label": [PIL.Image.new("L", (8, 8))]})
    (tmp_path / "library").mkdir()
    rows.to_parquet(tmp_path / "library" / "train.parquet")
    for part in ("images", "masks/a", "masks/b"):
        (tmp_path / "classes" / part).mkdir(parents=True)
        PIL.Image.new("L", (40, 40)).save(tmp_path / "classes" / part / "0.png")
    for options in ({"bands": "all"}, {"tile": 64}):
        with pytest.raises(DataError, match="loaded by the library datasets: save its images and masks as files"):
            load_segmentation_dataset(tmp_path / "library", "train", classes=["a", "b"], **options)
        with pytest.raises(DataError, match="has a folder of masks for each class: join them to bit planes"):
            load_segmentation_dataset(tmp_path / "classes", "train", **options)


def polygon(left, top, right, bottom, **properties):
    """Return a rectangle in pixels of the images of `write_raster`, in their coordinates of 10 m a pixel."""
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    ring = [[500_000 + 10 * x, 5_200_000 - 10 * y] for x, y in corners]
    return {"type": "Feature", "properties": properties, "geometry": {"type": "Polygon", "coordinates": [ring]}}


def test_polygons_are_drawn_as_masks(tmp_path):
    """SpaceNet labels buildings by polygons; own data may have a property `class`."""
    values, _ = draw_bands(0, 80, 64)
    crs = {"type": "name", "properties": {"name": "EPSG:32633"}}
    empty = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": []}}
    collection = {"type": "FeatureCollection", "crs": crs, "features": [polygon(10, 60, 30, 75), empty]}
    for folder in ("MUL-PanSharpen", "geojson/buildings"):
        (tmp_path / folder).mkdir(parents=True)
    write_raster(tmp_path / "MUL-PanSharpen/MUL-PanSharpen_AOI_2_Vegas_img1.tif", values)
    masks = tmp_path / "geojson/buildings/buildings_AOI_2_Vegas_img1.geojson"
    masks.write_text(json.dumps(collection))
    expected = np.zeros((80, 64), np.uint8)
    expected[60:75, 10:30] = 1
    data = load_segmentation_dataset(tmp_path, "train", bands="all")
    assert data.kind == "spacenet_buildings" and data.split is None and data.names == ["AOI_2_Vegas_img1"]
    assert np.array_equal(data[0].labels, expected)
    tiles = load_segmentation_dataset(tmp_path, "train", bands="all", tile=64)
    assert np.array_equal(tiles[0].labels, expected[:64]) and np.array_equal(tiles[1].labels, expected[64:])
    with pytest.raises(DataError, match=r"are polygons, which need bands.*--bands all"):
        load_segmentation_dataset(tmp_path, "train")

    corners = collection["features"][0]["geometry"]["coordinates"][0]
    longitudes, latitudes = rasterio_warp.transform("EPSG:32633", "EPSG:4326", *zip(*corners, strict=True))
    ring = [list(pair) for pair in zip(longitudes, latitudes, strict=True)]
    geometry = {"type": "MultiPolygon", "coordinates": [[ring]]}
    own = {
        "type": "FeatureCollection",
        "features": [{"type": "Feature", "properties": {"class": 2}, "geometry": geometry}],
    }
    for folder in ("images", "masks"):
        (tmp_path / "own" / folder).mkdir(parents=True)
    write_raster(tmp_path / "own/images/a.tif", values)
    masks = tmp_path / "own/masks/a.geojson"
    masks.write_text(json.dumps(own))
    data = load_segmentation_dataset(tmp_path / "own", bands="all", classes=CLASSES)
    assert np.array_equal(data[0].labels, 2 * expected)
    point = {"type": "Feature", "properties": {}, "geometry": {"type": "Point", "coordinates": [1, 2]}}
    for content, message in (
        ("{", "cannot read the polygons"),
        ("[" * 100_000, "cannot read the polygons"),
        ("[]", "expected is a FeatureCollection"),
        ({**collection, "features": [point]}, "holds a Point"),
        ({**collection, "features": [polygon(0, 0, 9, 9, **{"class": 300})]}, "from 0 to 255, got 300"),
        ({**collection, "features": [polygon(0, 0, 9, 9, **{"class": 7})]}, "labels that are no class: 7"),
        ({**collection, "features": [{}]}, "cannot read the polygons"),
        ({**collection, "crs": {"properties": {"name": "EPSG:0"}}}, "cannot read the polygons"),
    ):
        masks.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(DataError, match=message) as caught:
            data[0]
        assert "\n" not in str(caught.value)
    masks.write_text(json.dumps(own))
    write_raster(tmp_path / "own/images/a.tif", values, crs=None, transform=None)
    with pytest.raises(DataError, match="has no coordinate system"):
        data[0]


def test_statistics_are_saved_and_read(tmp_path):
    path = tmp_path / STATISTICS_FILE
    statistics = BandStatistics((1, 2), "uint16", (1.5, 2.5), (1.0, 2.0), (0.0, 0.0), (9.0, 8.0), 77)
    assert read_statistics(tmp_path) is None and statistics.save(tmp_path) == path
    assert read_statistics(tmp_path) == statistics
    assert statistics.of_bands([2]) == BandStatistics((2,), "uint16", (2.5,), (2.0,), (0.0,), (8.0,), 77)
    assert statistics.of_bands([3]) is None
    fields = json.loads(path.read_text())
    for change in ({"std": [0, 1]}, {"bands": [0, 1]}, {"dtype": "object"}, {"mean": [1]}, {"mean": ["x", 1]}):
        path.write_text(json.dumps({**fields, **change}))
        with pytest.raises(DataError, match=r"band_statistics.json is damaged \("):
            read_statistics(tmp_path)
    path.write_text("[" * 100_000)
    with pytest.raises(DataError, match="damaged"):
        read_statistics(tmp_path)


def augmentation(**options):
    settings = {
        "shortest_edge": 64,
        "longest_edge": 64,
        "ratio_range": (1.0, 1.0),
        "crop_size": (64, 64),
        "image_mean": [0.3] * 4,
        "image_std": [0.2] * 4,
        "photometric_distortion": PhotometricDistortion(),
    }
    return TrainingAugmentation(**{**settings, **options})


def test_only_the_colours_of_the_colour_bands_change():
    random = np.random.default_rng(0)
    image, labels = random.integers(0, 256, (4, 64, 64), np.uint8), np.zeros((64, 64), np.uint8)
    rgb = PIL.Image.fromarray(np.ascontiguousarray(image[[3, 1, 0]].transpose(1, 2, 0)))
    three = augmentation(image_mean=[0.3] * 3, image_std=[0.2] * 3)
    changed = 0
    for seed in range(6):
        found = augmentation(colour_channels=[3, 1, 0])(BandImage(image), labels, seed=seed)["pixel_values"]
        expected = three(rgb, labels, seed=seed)["pixel_values"]
        plain = augmentation(photometric_distortion=None)(BandImage(image), labels, seed=seed)["pixel_values"]
        assert torch.equal(found[[3, 1, 0]], expected) and torch.equal(found[2], plain[2])
        assert torch.equal(augmentation()(BandImage(image), labels, seed=seed)["pixel_values"], plain)
        changed += not torch.equal(found, plain)
    assert changed >= 4
    values = (image.astype(np.uint16) * 100).astype(np.uint16)
    settings = {"unit": 65535, "image_mean": [0.2] * 4, "image_std": [0.1] * 4}
    deep = augmentation(colour_channels=[0, 1, 2], **settings)
    plain = augmentation(**settings)
    for seed in range(6):
        found, expected = (augment(BandImage(values), labels, seed=seed)["pixel_values"] for augment in (deep, plain))
        assert torch.equal(found[3], expected[3])
        changed += 100 * bool((found[:3] - expected[:3]).abs().max() > 0.1)
    assert changed >= 400


def test_augmentation_ignores_pixels_without_data():
    values, labels = draw_bands(0)
    valid = np.ones((64, 64), bool)
    valid[:, :20] = False
    values[:, :, :20] = 65535
    augment = augmentation(
        unit=65535, ratio_range=(0.5, 2.0), flip_probability=0.5, colour_channels=[0, 1, 2], crop_size=(48, 48)
    )
    counts = set()
    for seed in range(8):
        sample = augment(BandImage(values, valid), labels, seed=seed)
        without = sample["labels"] == 255
        assert (sample["pixel_values"][:, without] == 0).all() and sample["pixel_values"].abs().max() < 4
        counts.add(int(without.sum()))
    assert len(counts) > 2


def command(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_statistics_training_and_evaluation_from_the_command_line(tmp_path):
    data = write_scenes(tmp_path / "data")
    done = command("check-data", data, "--bands", "all", "--statistics")
    assert done.exit_code == 0, done.output
    assert "band_statistics.json" in done.output and read_statistics(data).bands == (1, 2, 3, 4)
    output = tmp_path / "run"
    words = ["--recipe", "upernet_deit_adapter_tiny_512_160k_ade20k", "--crop-size", 64, "--max_steps", 2]
    words += ["--model", packaged_model_path(), "--per_device_train_batch_size", 2, "--report_to", "none"]
    words += ["--gradient_accumulation_steps", 1, "--logging_steps", 1, "--use_cpu", "--prediction-images", 1]
    trained = command(
        "train", "--data", data, "--bands", "4,1,2,3", "--colour-bands", "1,2,3", "--output", output, *words
    )
    assert trained.exit_code == 0, trained.output
    model = AutoModelForSemanticSegmentation.from_pretrained(output)
    processor = AutoImageProcessor.from_pretrained(output)
    assert input_channels(model.config) == 4 and model.config.input_inflation["channels"] == [1, 2, 3]
    assert processor.bands == [4, 1, 2, 3] and processor.band_dtype == "uint16"
    mean = read_statistics(data).of_bands([4, 1, 2, 3]).mean
    assert np.allclose(np.array(processor.image_mean) * 65535, mean)
    results = json.loads((output / "results.json").read_text())
    evaluated = command("evaluate", "--model", output, "--data", data, "--output", tmp_path / "again.json")
    assert evaluated.exit_code == 0, evaluated.output
    assert json.loads((tmp_path / "again.json").read_text())["mean_iou"] == results["mean_iou"]
    for options, message in (
        (["--colour-bands", "1,2,3"], "needs --bands"),
        (["--bands", "1,x"], "expected numbers of bands"),
        (["--bands", "1,1"], "different numbers"),
        (["--bands", "1,9"], "has 4 bands: the bands 1, 9"),
        (["--bands", "1,2", "--colour-bands", "1,2,3"], "band 3 of the colours is not among the bands 1, 2"),
        (["--bands", "all", "--colour-bands", "1,2"], "expected three bands"),
    ):
        failed = command("train", "--data", data, *options, "--output", tmp_path / "no", *words)
        assert failed.exit_code == 1 and message in " ".join(failed.output.split()), failed.output
    assert not (tmp_path / "no").exists()
    again = command(
        "train", "--data", data, "--bands", "1,2", "--output", tmp_path / "no", *words[:6], "--model", output
    )
    assert again.exit_code == 1 and "takes the bands 4, 1, 2, 3 of type uint16" in " ".join(again.output.split())


def learned(folder, bands, tmp_path, steps=150):
    """Train a small model on the scenes with some bands, and return its mean IoU on scenes that it has not seen."""
    parts = [load_segmentation_dataset(folder, part, bands=bands) for part in ("train", "validation")]
    vit = SegmenterViTConfig(
        trunk="vit_tiny_patch16_224",
        patch_size=4,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        pretrain_image_size=SIDE,
    )
    names = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: index for index, name in enumerate(CLASSES)}}
    model = small_model("segmenter", backbone=vit, decoder_drop_path_rate=0.0, palette=None, **names)
    processor = AutoImageProcessor.from_pretrained(packaged_model_path(), do_resize=False)
    model, processor = with_bands(model, processor, band_statistics(parts[0]), random=True)
    augment = TrainingAugmentation(
        shortest_edge=SIDE,
        longest_edge=SIDE,
        ratio_range=(1.0, 1.0),
        crop_size=(SIDE, SIDE),
        cat_max_ratio=1.0,
        image_mean=processor.image_mean,
        image_std=processor.image_std,
        unit=1 / processor.rescale_factor,
    )
    run = trainer(
        model,
        tmp_path,
        train_dataset=TrainingDataset(parts[0], augment),
        eval_dataset=EvaluationDataset(parts[1], processor),
        per_device_train_batch_size=4,
        max_steps=steps,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        warmup_steps=10,
        max_grad_norm=1.0,
        logging_steps=steps,
    )
    run.train()
    return run.evaluate()["eval_mean_iou"]


@pytest.mark.slow  # two training runs, half a minute
def test_a_class_that_differs_in_band_4_is_learned_with_four_bands_only(tmp_path):
    """On unseen scenes RGB reached a mean IoU of 0.44, and four bands 0.91, in 150 steps from random weights."""
    folder = write_scenes(tmp_path / "data", count=16, validation=4, ending=".npy")
    rgb = learned(folder, [1, 2, 3], tmp_path / "rgb")
    four = learned(folder, [1, 2, 3, 4], tmp_path / "four")
    print(f"RGB {rgb:.3f}, four bands {four:.3f}")
    assert rgb < 0.6 and four > 0.85


def test_autolabel_and_one_band(tmp_path):
    """Grey images as one band, and labels by a model with bands: pixels without data get none."""
    for index in range(2):
        values, labels = draw_bands(index)
        for kind, content in (("images", values[3] // 256), ("masks", labels)):
            (tmp_path / "data" / kind).mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(content.astype(np.uint8)).save(tmp_path / "data" / kind / f"{index}.png")
    data = load_segmentation_dataset(tmp_path / "data", bands="all", classes=CLASSES)
    assert data.bands == [1] and data.band_dtype == "uint8"
    model = AutoModelForSemanticSegmentation.from_pretrained(packaged_model_path())
    processor = AutoImageProcessor.from_pretrained(packaged_model_path())
    model, processor = with_bands(model, processor, band_statistics(data))
    assert input_channels(model.config) == 1 and model.config.input_inflation == {"rule": "repeat"}
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    values = draw_bands(3)[0][3:] // 256
    values[:, :10] = 0
    (tmp_path / "more").mkdir()
    write_raster(tmp_path / "more/a.tif", values.astype(np.uint8), nodata=0)
    words = ["--images", tmp_path / "more", "--output", tmp_path / "out", "--min-confidence", 0]
    done = command("autolabel", "--model", tmp_path / "model", *words)
    assert done.exit_code == 0, done.output
    mask = np.asarray(PIL.Image.open(tmp_path / "out/masks/a.png"))
    assert (mask[:10] == 255).all() and (mask[10:] != 255).all()


def test_segment_reads_the_bands_of_the_model(tmp_path):
    """Through the command the labels are those of `segment_image`, and pixels without data get the nodata value."""
    data = load_segmentation_dataset(write_scenes(tmp_path / "data"), "train", bands=[4, 3, 2, 1])
    model = AutoModelForSemanticSegmentation.from_pretrained(packaged_model_path())
    processor = AutoImageProcessor.from_pretrained(packaged_model_path())
    model, processor = with_bands(model, processor, band_statistics(data), colours=[3, 2, 1])
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    values, _ = draw_bands(9, 150, 130)
    values[:, :40, :50] = 0
    scene = write_raster(tmp_path / "scene.tif", values, nodata=0)
    done = command("segment", scene, "--model", tmp_path / "model", "--output", tmp_path / "classes.tif")
    assert done.exit_code == 0, done.output
    with open_raster(tmp_path / "classes.tif") as raster:
        found, valid = raster.read()[0], raster.valid()
        assert raster.crs.to_epsg() == 32633
    expected = segment_image(model.eval(), processor, scene).numpy()
    assert np.array_equal(found[valid], expected[valid])
    assert np.array_equal(valid, (values != 0).any(0))
