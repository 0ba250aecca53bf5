# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The command line as a user types it: images of many kinds and sizes, and wrong arguments."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    ViTConfig,
    pipeline,
)
from typer.testing import CliRunner

from segtransformers import example_image_path, packaged_model_path
from segtransformers.cli import app
from segtransformers.cli.common import load_model
from segtransformers.datasets.scenes import SCENE_CLASSES, draw_scene
from segtransformers.packaged import known_model
from segtransformers.visualization import class_areas, distinct_colours, draw_overlay, draw_segmentation


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def random_image(mode="RGB", size=(96, 64)) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def assert_refused(result, message):
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ") and message in result.stderr, result.stderr
    assert "Traceback" not in result.stderr and result.stderr.count("\n") <= 2


def test_example_scene_with_the_packaged_model(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "segtransformers", "segment", "--output", tmp_path / "out.png"],
        capture_output=True,
        text=True,
        # otherwise a line on stderr says how to build the compiled operators
        env={"HF_HUB_OFFLINE": "1", "PATH": "", "SEGTRANSFORMERS_KERNELS": "off"},
    )
    assert done.returncode == 0, done.stderr
    assert "example_scene.png" in done.stdout and " %  " in done.stdout
    assert done.stderr == ""
    result, scene = Image.open(tmp_path / "out.png"), Image.open(example_image_path())
    assert result.height == scene.height and result.width > scene.width  # because of the legend
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


def test_packaged_model_is_complete():
    names = {path.name for path in packaged_model_path().iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md", "metrics.json"} <= names
    assert (packaged_model_path() / "model.safetensors").stat().st_size < 8e6


def test_packaged_model_recognises_the_example():
    """With processor and pipeline, as a user calls it, most pixels are right."""
    segmenter = pipeline("image-segmentation", model=str(packaged_model_path()))
    assert segmenter.model.dtype == torch.float32  # the file has half precision, which is slow on CPUs
    names, predicted = [], {}
    for segment in segmenter(str(example_image_path())):
        predicted[segment["label"]] = np.asarray(segment["mask"]) == 255
        names.append(segment["label"])
    _, labels = draw_scene(141, (256, 384))
    right = sum(
        (predicted[name] & (labels == index)).sum() for index, name in enumerate(SCENE_CLASSES) if name in names
    )
    assert right / labels.size > 0.95


def test_packaged_means_the_packaged_model_unless_a_folder_has_that_name(tmp_path, monkeypatch):
    network, _ = load_model("packaged", "cpu")
    assert network.config.id2label[9] == "balloon" and network.dtype == torch.float32 and not network.is_optimized
    assert load_model("packaged", "cpu", optimize=True)[0].is_optimized
    monkeypatch.chdir(tmp_path)
    (tmp_path / "packaged").mkdir()
    assert known_model("packaged") == "packaged"


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA", "I;16"])
def test_images_of_every_mode(tmp_path, mode):
    image = random_image("L") if mode == "I;16" else random_image(mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    file = tmp_path / ("in.tif" if mode == "CMYK" else "in.png")
    image.save(file)
    assert run("segment", file, "--output", tmp_path / "out.png").exit_code == 0
    assert Image.open(tmp_path / "out.png").height == 64


@pytest.mark.parametrize("size", [(1, 50), (50, 1), (1, 1), (700, 40), (33, 45)])
def test_images_of_odd_sizes(tmp_path, size):
    """The processor of the packaged model does not resize, and the model takes images from 32 pixels on."""
    random_image(size=size).save(tmp_path / "in.png")
    result = run("segment", tmp_path / "in.png", "--output", tmp_path / "out.png")
    if min(size) < 32:
        assert result.exit_code == 1 and "at least 32 pixels high and wide" in result.stderr
        assert not (tmp_path / "out.png").exists()
    else:
        assert result.exit_code == 0 and Image.open(tmp_path / "out.png").width > size[0]


def test_images_are_turned_as_their_exif_data_say(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    random_image().save(tmp_path / "in.jpg", exif=exif)
    assert run("segment", tmp_path / "in.jpg", "--output", tmp_path / "out.png").exit_code == 0
    assert Image.open(tmp_path / "out.png").height == 96


def test_several_images_and_folders(tmp_path):
    inside = tmp_path / "images"
    inside.mkdir()
    for name in ("a.png", "b.jpg"):
        random_image().save(inside / name)
    (inside / "notes.txt").write_text("no image")
    random_image().save(tmp_path / "a.png")
    result = run("segment", inside, tmp_path / "a.png", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a-1.png", "a-3.png", "b-2.png"]


def test_damaged_images_do_not_stop_the_others(tmp_path):
    random_image().save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"not an image")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    names = ["bad.png", "cut.png", "absent.png", "good.png"]
    result = run("segment", *(tmp_path / name for name in names), "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.png"]
    for line in (
        f"cannot read {tmp_path / 'bad.png'} as an image",
        f"cannot read {tmp_path / 'cut.png'} as an image",
        f"there is no file {tmp_path / 'absent.png'}",
        "3 of 4 images failed",
    ):
        assert line in result.stderr


def test_wrong_arguments(tmp_path):
    good = tmp_path / "good.png"
    random_image().save(good)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    assert_refused(run("segment", tmp_path / "empty", "--output", tmp_path / "o"), "holds no images")
    for suffix in (".xyz", ".psd", ""):  # Pillow can read .psd, but not write it
        assert_refused(run("segment", good, "--output", tmp_path / f"out{suffix}"), "must end like an image")
    assert_refused(run("segment", good, "--output", good), "would overwrite one of the images")
    assert_refused(run("segment", good, good, "--output", tmp_path / "out.png"), "must be a folder")
    in_the_way = f"{tmp_path / 'file'} is a file, where a folder is needed"
    for place in ("out.png", "deeper/out.png"):
        assert_refused(run("segment", good, "--output", tmp_path / "file" / place), in_the_way)
    for small in (("--window", 16), ("--scales", 0.1)):
        refused = run("segment", *small, "--output", tmp_path / "o.png")
        assert_refused(refused, "use a larger image, window or scale")
    assert_refused(run("segment", good, "--model", "no/such-model", "--output", tmp_path / "o.png"), "cannot load")
    assert_refused(run("segment", good, "--model", tmp_path / "empty", "--output", tmp_path / "o.png"), "cannot load")
    assert_refused(run("segment", "--device", "warp"), "error: --device warp: torch has no such device")
    assert_refused(run("segment", good, "--device", "meta", "--output", tmp_path / "o.png"), "cannot segment")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "good.png"]


def test_models_of_transformers_work_too(tmp_path):
    config = SegformerConfig(num_labels=3, hidden_sizes=[8] * 4, depths=[1] * 4, num_attention_heads=[1] * 4)
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "model")
    SegformerImageProcessor().save_pretrained(tmp_path / "model")
    random_image().save(tmp_path / "in.png")
    result = run("segment", tmp_path / "in.png", "--model", tmp_path / "model", "--output", tmp_path / "out.png")
    assert result.exit_code == 0, result.stderr
    ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(tmp_path / "other")
    result = run("segment", tmp_path / "in.png", "--model", tmp_path / "other", "--output", tmp_path / "o.png")
    assert_refused(result, "it is no semantic segmentation model")


def test_info():
    result = run("info")
    assert result.exit_code == 0
    for word in ("segtransformers", "torch", "transformers", "timm", "kernels", "cpu", "deformable attention"):
        assert word in result.stdout


def test_drawing():
    labels = np.zeros((40, 60), int)
    labels[:10] = 1
    labels[10:12] = 300  # a class beyond the palette
    assert class_areas(labels) == {0: 0.7, 1: 0.25, 300: 0.05}
    image = Image.new("RGB", (60, 40), (100, 100, 100))
    overlay = np.asarray(draw_overlay(image, labels, [[255, 0, 0], [0, 0, 255]], opacity=0.5))
    assert overlay[30, 0].tolist() == [178, 50, 50] and overlay[0, 0].tolist() == [50, 50, 178]
    assert overlay[11, 0].tolist() == [100, 100, 100]
    assert draw_segmentation(image, labels, {0: "a", 1: "b"}).width > 60
    with pytest.raises(ValueError, match="the label map is"):
        draw_overlay(image, labels[:5], [[0, 0, 0]])


def test_distinct_colours():
    colours = {tuple(colour) for colour in distinct_colours(150)}
    assert len(colours) == 150 and all(0 <= value <= 255 for colour in colours for value in colour)


def test_long_legends_are_cut():
    labels = np.arange(64 * 96).reshape(64, 96) % 150
    drawn = draw_segmentation(Image.new("RGB", (96, 64)), labels, {index: f"class {index}" for index in range(150)})
    assert drawn.height == 64


def test_a_missing_folder_is_named(tmp_path):
    done = CliRunner().invoke(
        app, ["segment", "--model", str(tmp_path / "nowhere"), "--output", str(tmp_path / "o.png")]
    )
    assert done.exit_code == 1 and "there is no such folder" in done.stderr
    assert_refused(
        run("segment", "--model", "nowhere", "--output", tmp_path / "o.png"), "nowhere: there is no such folder"
    )


def test_a_wrong_kernel_setting_is_an_error_in_one_line(monkeypatch):
    monkeypatch.setenv("SEGTRANSFORMERS_KERNELS", "nonsense")
    done = CliRunner().invoke(app, ["info"])
    assert done.exit_code == 1 and not done.stdout
    assert done.stderr.startswith("error: SEGTRANSFORMERS_KERNELS must be one of auto, off, force, got 'nonsense'")
