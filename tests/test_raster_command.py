# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`segtransformers segment` of rasters: one and several, their files, interruptions, processes, and bad input."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest
import torch
from raster_cases import (
    HEIGHT,
    NAMES,
    PALETTE,
    TILE,
    WIDTH,
    assert_one_error,
    content,
    divide_rows,
    draw,
    errors_of,
    run,
    save,
    save_model,
    scene_with_a_corner,
    small_model,
    truncate,
)
from test_evaluation import environment
from test_full_disk import largest_file

from segtransformers import SegmentationImageProcessor
from segtransformers.inference import InferenceProtocol
from segtransformers.inference.raster_bands import segment_raster_bands
from segtransformers.inference.raster_segmentation import RasterJob
from segtransformers.rasters import open_raster

rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed (extra `geo`)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return scene_with_a_corner(tmp_path_factory.mktemp("scene") / "scene.tif")


@pytest.fixture
def small_tiles(monkeypatch):
    divide_rows(monkeypatch)


def test_command(folder, scene, tmp_path, small_tiles):
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
        network, processor = small_model(), SegmentationImageProcessor(do_resize=False)
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


def test_a_full_disk(folder, scene, tmp_path, small_tiles):
    def words(labels, probabilities, *more):
        files = ["--output", tmp_path / labels, "--probabilities", tmp_path / probabilities]
        return [scene, "--model", folder, *files, "--probability-type", "float32", *more]

    with largest_file(3000):  # less than a piece: nothing can be continued
        assert_one_error(run(*words("labels.tif", "p.tif")), "cannot write probabilities.tif, is the disk full?")
    assert not list(tmp_path.iterdir())
    assert run(*words("labels.tif", "p.tif")).exit_code == 0
    with largest_file((tmp_path / "p.tif").stat().st_size - 1000):  # room for each piece, but not for the results
        assert_one_error(run(*words("b.tif", "q.tif")), "continue with --resume")
    names = ["b.tif.resume", "labels.tif", "labels.tif.aux.xml", "p.tif"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert run(*words("b.tif", "q.tif", "--resume")).exit_code == 0
    for first, second in (("labels.tif", "b.tif"), ("p.tif", "q.tif")):
        assert (tmp_path / first).read_bytes() == (tmp_path / second).read_bytes()


def test_several_rasters(folder, scene, tmp_path, small_tiles):
    """One bad raster is named and the others are segmented. --resume does what is missing, and nothing else."""
    rasters = tmp_path / "in"
    (rasters / "sub").mkdir(parents=True)
    (rasters / "a.tif").write_bytes(scene.read_bytes())
    np.save(rasters / "a.npy", draw(height=70, width=60))
    save(rasters / "sub" / "b.tif", draw(height=60, width=70))
    truncate(save(rasters / "bad.tif", draw(height=50, width=50)), 0.3)
    truncate(save(rasters / "late.tif", draw(), interleave="pixel"), 0.97)
    save(rasters / "floats.tif", draw().astype(np.float32))
    (rasters / "notes.txt").write_text("no raster")
    parts = {"--output": "out", "--confidence": "sure", "--polygons": "areas"}
    words = [part for option, name in parts.items() for part in (option, tmp_path / name)]
    words = [rasters, "--geotiff", "--model", folder, *words]
    done = run(*words)
    errors = errors_of(done)
    assert done.exit_code == 1 and len(errors) == 4, done.stderr
    assert "bad.tif, it is damaged" in errors[0] and "continue" not in errors[0]
    assert "floats.tif holds values of type float32" in errors[1] and "late.tif, it is damaged" in errors[2]
    assert f"The finished rows are kept in {tmp_path / 'out/late.tif.resume'}: continue with --resume" in errors[2]
    assert errors[3] == "error: 3 of 6 rasters failed"
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    results = ("a.tif", "a-2.tif", "sub/b.tif")
    expected = [f"{folder}/{name}" for folder in ("out", "sure") for name in results]
    expected += [f"areas/{name.replace('.tif', '.gpkg')}" for name in results]
    found = [name for name in found if name.endswith(("tif", "gpkg")) and not name.startswith(("in", "out/late"))]
    assert found == sorted(expected)
    assert not list((tmp_path / "out").glob(".*")) and len(list((tmp_path / "out").glob("*.resume"))) == 1
    for name, source in (
        ("a-2", rasters / "a.tif"),
        ("sub/b", rasters / "sub/b.tif"),
    ):  # a.npy is the first of the names
        single = tmp_path / "single.tif"
        assert run(source, "--model", folder, "--output", single).exit_code == 0
        assert (content(single) == content(tmp_path / f"out/{name}.tif")).all()
        with rasterio.open(source) as file, rasterio.open(tmp_path / f"out/{name}.tif") as labels:
            assert (file.crs, file.transform, file.shape) == (labels.crs, labels.transform, labels.shape)
            assert len(set(labels.tags()["SEGTRANSFORMERS_RUN"])) > 1

    times = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in results}
    save(rasters / "sub" / "b.tif", 255 - draw(height=60, width=70))  # changed
    save(rasters / "bad.tif", draw(height=50, width=50))  # repaired
    (tmp_path / "areas/a.gpkg").unlink()
    done = run(*words, "--resume")
    changed = [name for name, time in times.items() if (tmp_path / "out" / name).stat().st_mtime_ns != time]
    assert changed == ["sub/b.tif"] and (tmp_path / "areas/a.gpkg").exists() and (tmp_path / "out/bad.tif").exists()
    errors = errors_of(done)
    assert len(errors) == 3 and errors[2] == "error: 2 of 6 rasters failed"
    save(rasters / "late.tif", draw(), interleave="pixel")
    (rasters / "floats.tif").unlink()
    message = "late.tif.resume is of another run, which differs in file: delete that folder"
    errors = errors_of(run(*words, "--resume"))
    assert len(errors) == 2 and message in errors[0] and errors[1] == "error: 1 of 5 rasters failed"


def test_shares_of_a_multi_label_raster(tmp_path):
    """They are shares of the pixels with data, and may add up to more than 100 %."""
    network = save_model(tmp_path / "model", problem_type="multi_label_classification")
    values = draw(height=60, width=50)
    values[:, :20] = 0
    scene = save(tmp_path / "scene.tif", values, nodata=0)
    done = run(scene, "--model", network, "--output", tmp_path / "a.tif")
    assert done.exit_code == 0, done.output
    masks = content(tmp_path / "a.tif")
    assert (masks[:, :20] == 255).all()
    shares = {line.split("%")[1].strip(): float(line.split("%")[0]) for line in done.stdout.splitlines()[1:]}
    expected = {name: 100 * (mask[20:] == 1).mean() for name, mask in zip(NAMES, masks, strict=True)}
    assert sum(expected.values()) > 110
    for name, share in expected.items():
        assert shares.get(name, 0) == pytest.approx(share, abs=0.06)
    (tmp_path / "a.tif").unlink()
    words = [scene, "--model", network, "--output", tmp_path / "a.tif", "--polygons", tmp_path / "a.gpkg"]
    assert_one_error(run(*words), "classes of a multi-label model overlap")
    PIL.Image.fromarray(draw(height=40, width=40).transpose(1, 2, 0)).save(tmp_path / "photo.png")
    words = [tmp_path / "photo.png", "--model", network, "--entropy", tmp_path / "a"]
    assert_one_error(run(*words), "--entropy: a multi-label model has one for each class")
    assert not list(tmp_path.glob("a*"))


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
    several = [scene, four, "--geotiff", "--model", folder]
    assert_one_error(run(*several), "--geotiff needs rasters, and a folder for the GeoTIFF files, --output")
    assert_one_error(run(*several, "--output", output), "must be a folder for the files of several rasters")
    words = [*several, "--output", tmp_path / "out"]
    assert_one_error(run(*words, "--confidence", tmp_path / "out"), "must be different files")
    assert_one_error(run(*words, "--label-maps", tmp_path / "out"), "--label-maps and --colour-maps are for images")
    assert_one_error(run(tmp_path, *several[2:], "--output", tmp_path), "holds the rasters: choose another folder")
    (tmp_path / "none").mkdir()
    assert_one_error(run(tmp_path / "none", *several[2:], "--output", tmp_path / "out"), "none holds no rasters")
    assert not output.parent.exists()
    assert run(four, "--bands", "3,2,1", "--model", folder, "--output", output).exit_code == 0
    with pytest.raises(ValueError, match="outputs must have labels"):
        RasterJob(scene, {"confidence": output})
    monkeypatch.setitem(sys.modules, "rasterio", None)
    assert_one_error(run(scene, "--model", folder, "--output", output), "rasterio is needed to write GeoTIFF files")


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
