# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The command line as a user types it: images of many kinds and sizes, and wrong arguments."""

import json
import os
import subprocess
import sys
from pathlib import Path

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
from segtransformers.inference import segment_image
from segtransformers.model_names import model_folder
from segtransformers.visualization import (
    class_areas,
    distinct_colours,
    draw_comparison,
    draw_overlay,
    draw_segmentation,
)


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
    assert model_folder("packaged") == "packaged"


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
    """The processor of the packaged model does not resize, and the model takes images from 1 x 1 on."""
    random_image(size=size).save(tmp_path / "in.png")
    result = run("segment", tmp_path / "in.png", "--output", tmp_path / "out.png")
    assert result.exit_code == 0 and Image.open(tmp_path / "out.png").width > size[0]


def test_images_are_turned_as_their_exif_data_say(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    random_image().save(tmp_path / "in.jpg", exif=exif)
    assert run("segment", tmp_path / "in.jpg", "--output", tmp_path / "out.png").exit_code == 0
    assert Image.open(tmp_path / "out.png").height == 96


def test_several_images_and_folders(tmp_path):
    """Folders are searched, results are named after the images, and only equal names get a number."""
    inside = tmp_path / "images"
    (inside / "deep").mkdir(parents=True)
    for name in ("a.png", "b.v2.jpg", "b.v2.png", "deep/a.png", ".hidden.png"):
        random_image().save(inside / name)
    (inside / "notes.txt").write_text("no image")
    os.mkfifo(inside / "pipe.png")
    random_image().save(tmp_path / "a.png")
    result = run("segment", inside, tmp_path / "a.png", "--output", inside / "out")
    assert result.exit_code == 0, result.stderr
    written = ["a-2.png", "a.png", "b.v2-2.png", "b.v2.png", "deep/a.png"]
    assert files_in(inside / "out") == written
    assert "replaced" not in result.stderr
    again = run("segment", inside, tmp_path / "a.png", "--output", inside / "out")  # the results are no images
    assert again.exit_code == 0 and files_in(inside / "out") == written
    assert f"note: {inside / 'out' / 'a.png'} and 4 more files will be replaced" in again.stderr
    assert_refused(run("segment", inside, "--output", inside), "choose another folder")


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_label_maps(tmp_path):
    network, processor = load_model("packaged", "cpu", optimize=True)
    expected = segment_image(network, processor, example_image_path()).numpy()
    result = run(
        "segment", example_image_path(), "--label-maps", tmp_path / "a" / "b", "--colour-maps", tmp_path / "colours"
    )
    assert result.exit_code == 0, result.stderr
    assert files_in(tmp_path) == ["a/b/example_scene.png", "colours/example_scene.png"]  # and no segmentation.png
    labels = Image.open(tmp_path / "a" / "b" / "example_scene.png")
    assert labels.mode == "L" and np.array_equal(np.asarray(labels), expected)
    colours = np.asarray(Image.open(tmp_path / "colours" / "example_scene.png").convert("RGB"))
    assert np.array_equal(colours, np.asarray(network.config.palette, np.uint8)[expected])
    both = run("segment", "--label-maps", tmp_path / "c", "--colour-maps", tmp_path / "c")
    assert_refused(both, "--label-maps and --colour-maps need different folders")
    assert_refused(run("segment", "--label-maps", tmp_path / "c.png"), "must be a folder")


def test_label_maps_of_many_classes_have_16_bits(tmp_path):
    folder = small_segformer(tmp_path / "model", num_labels=300)
    random_image().save(tmp_path / "a.png")
    result = run("segment", tmp_path / "a.png", "--model", folder, "--label-maps", tmp_path / "maps")
    assert result.exit_code == 0, result.stderr
    labels = Image.open(tmp_path / "maps" / "a.png")
    assert labels.mode == "I;16" and labels.size == (96, 64) and np.asarray(labels).max() < 300


def test_pipes_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert_refused(run("segment", tmp_path / "pipe.png", "--output", tmp_path / "o.png"), "is no file, but a pipe")
    (tmp_path / "model").mkdir()
    os.mkfifo(tmp_path / "model" / "config.json")
    for command in (("segment",), ("export", "--output", tmp_path / "o.onnx")):
        assert_refused(run(*command, "--model", tmp_path / "model"), "config.json is no file, but a pipe")


def test_names_from_files_do_not_reach_the_terminal_raw(tmp_path):
    hostile = "\x1b]0;owned\x07\nerror: \u202e<b>"
    folder = small_segformer(tmp_path / "model", num_labels=2, names={0: hostile, 1: hostile * 100})
    image = tmp_path / "a\x1b[2J\udce9.png"
    random_image().save(image)
    for output in ("o.png", "missing\x1b[2J/x.xyz"):
        result = run("segment", image, "--model", folder, "--output", tmp_path / output)
        for text in (result.stdout, result.stderr):
            assert "\x1b" not in text and "\u202e" not in text and "\x07" not in text
            assert "\nerror: \\" not in text and max(map(len, text.splitlines()), default=0) < 700
    assert "\\x1b[2J" in result.stderr


def test_code_that_comes_with_a_model_is_never_run(tmp_path):
    folder = small_segformer(tmp_path / "model", num_labels=2)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "unheard_of", "auto_map": {"AutoConfig": "code.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert_refused(run("segment", "--model", folder, "--output", tmp_path / "o.png"), "cannot load the model")
    assert not (tmp_path / "ran").exists()


def test_wrong_names_are_refused_at_once(tmp_path):
    """Neither libraries' attempts nor their waits follow, also without a network."""
    for name in ("nosuch", "no/such/model", "/no/such", "owner/no such"):
        assert_refused(run("segment", "--model", name, "--output", tmp_path / "o.png"), "there is no such folder")


def test_long_paths_and_ascii_consoles(tmp_path):
    long = "x" * 5000
    for command in ("segment", "export", "evaluate"):
        data = ["--model", "packaged", "--data", tmp_path] if command == "evaluate" else []
        assert_refused(run(command, *data, "--output", tmp_path / long / "o.png"), "File name too long")
    image = tmp_path / "Straße.png"
    random_image().save(image)
    done = subprocess.run(
        [sys.executable, "-m", "segtransformers", "segment", image, "--output", tmp_path / "öl.png"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0 and b"Stra\\xdfe.png" in done.stdout, done.stderr


def small_segformer(folder, num_labels, names=None):
    """Save a small model of transformers, and return its folder."""
    options = {"id2label": names} if names else {"num_labels": num_labels}
    config = SegformerConfig(**options, hidden_sizes=[8] * 4, depths=[1] * 4, num_attention_heads=[1] * 4)
    SegformerForSemanticSegmentation(config).save_pretrained(folder)
    SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


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


def test_wrong_arguments(tmp_path, monkeypatch):
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    Path("segmentation.png").write_text("an earlier result")  # not announced as replaced, because nothing is written
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
    assert_refused(run("segment", good, "--model", "no/such-model", "--output", tmp_path / "o.png"), "cannot load")
    assert_refused(run("segment", good, "--model", tmp_path / "empty", "--output", tmp_path / "o.png"), "cannot load")
    assert_refused(run("segment", "--device", "warp"), "error: --device warp: torch has no such device")
    meta = ("--model", "packaged", "--device", "meta", "--output", tmp_path / "o.png")
    assert_refused(run("segment", good, *meta), "cannot segment")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cwd", "empty", "file", "good.png"]
    assert Path("segmentation.png").read_text() == "an earlier result"


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
    assert class_areas(labels.astype(np.int64) - 1) == {-1: 0.7, 0: 0.25, 299: 0.05}
    image = Image.new("RGB", (60, 40), (100, 100, 100))
    overlay = np.asarray(draw_overlay(image, labels, [[255, 0, 0], [0, 0, 255]], opacity=0.5))
    assert overlay[30, 0].tolist() == [178, 50, 50] and overlay[0, 0].tolist() == [50, 50, 178]
    assert overlay[11, 0].tolist() == [100, 100, 100]
    assert draw_segmentation(image, labels, {0: "a", 1: "b"}).width > 60
    with pytest.raises(ValueError, match="the label map is"):
        draw_overlay(image, labels[:5], [[0, 0, 0]])
    dark = draw_overlay(Image.new("L", (60, 40), 10), labels, [[255, 0, 0], [0, 0, 255]])
    assert np.asarray(dark)[30, 0].tolist() == [145, 4, 4]  # 144.75 and 4.5
    masks = np.stack([labels == 0, labels < 2])  # both classes below, the second one above
    both = np.asarray(draw_overlay(image, masks, [[255, 0, 0], [0, 0, 255]], opacity=0.5))
    assert both[30, 0].tolist() == [114, 50, 114] and both[0, 0].tolist() == [50, 50, 178]
    assert both[11, 0].tolist() == [100, 100, 100]


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


def test_comparison_has_titles_and_a_legend():
    labels = np.zeros((40, 60), np.uint8)
    labels[:20] = 1
    labels[:5] = 255
    image = Image.new("RGB", (60, 40), "white")
    palette = [[255, 0, 0], [0, 0, 255], [0, 255, 0]]
    drawn = np.asarray(
        draw_comparison(image, {"label map": labels, "prediction": 0 * labels}, {0: "a", 1: "b", 2: "c"}, palette)
    )
    assert drawn.shape[0] == 4 * 40 + 28 and drawn.shape[1] > 3 * 4 * 60
    panels = [drawn[28:, start : start + 240] for start in (0, 240, 480)]
    assert (panels[0] == 255).all() and (panels[1][:20] == 255).all() and (panels[2] == panels[2][0, 0]).all()
    titles, legend = drawn[:28, :720], drawn[28:, 720:]
    assert all((titles[:, start : start + 240] < 128).any() for start in (0, 240, 480))
    colours = {tuple(pixel) for pixel in legend.reshape(-1, 3).tolist()}
    assert (255, 0, 0) in colours and (0, 0, 255) in colours and (0, 255, 0) not in colours
    nothing = draw_comparison(image, {"label map": np.full_like(labels, 255)}, {0: "a"}, palette)
    assert nothing.width >= 2 * 240


def test_a_margin_that_does_not_fit_is_one_error_for_all_images(tmp_path):
    for index in range(2):
        Image.fromarray(draw_scene(index, (64, 96))[0]).save(tmp_path / f"{index}.png")
    words = [tmp_path, "--model", "packaged", "--label-maps", tmp_path / "maps", "--margin", 300]
    done = run("segment", *words)
    assert done.exit_code == 1 and done.output.count("\n") == 1, done.output
    assert "a margin of 300 leaves out pixels" in done.output and not (tmp_path / "maps").exists()
