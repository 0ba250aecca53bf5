# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Exported files in the commands `evaluate`, `segment` and `demo`, and what stops an export."""

import importlib.util
import json
import re
import shutil
import sys

import numpy as np
import pytest
from export_cases import segmenter
from model_tests import randomise
from PIL import Image
from typer.testing import CliRunner

from segtransformers import SegmentationImageProcessor, example_image_path, packaged_model_path
from segtransformers.cli import app
from segtransformers.cli.demo_page import Demo
from segtransformers.datasets.scenes import SCENE_CLASSES, draw_scene, write_scenes

for package, extra in {"onnx": "export", "onnxruntime": "export", "onnxscript": "export", "gradio": "demo"}.items():
    pytest.importorskip(package, reason=f"{package} is not installed (extra `{extra}`)")


def command(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def succeed(*words):
    done = command(*words)
    assert done.exit_code == 0, done.output
    return done.stdout


def scene_model(folder):
    """Save a small model with random weights and the classes of the scenes."""
    model = randomise(segmenter(decoder_type="linear", num_labels=len(SCENE_CLASSES))).eval()
    model.config.id2label = dict(enumerate(SCENE_CLASSES))
    model.config.inference_mode, model.config.window_size, model.config.window_stride = "slide", [64, 64], [48, 48]
    model.save_pretrained(folder)
    SegmentationImageProcessor(do_resize=False).save_pretrained(folder)
    return folder


def packaged(folder):
    return packaged_model_path()


SLOW = pytest.mark.slow  # 200 scenes, twice
needs_compiler = pytest.mark.skipif(
    sys.platform == "win32" or shutil.which("g++") is None, reason="needs the C++ compiler g++"
)


@pytest.mark.parametrize(
    ("model", "scenes", "output", "options"),
    [
        (scene_model, 3, "model.onnx", []),
        (scene_model, 3, "model.pt2", []),
        pytest.param(packaged, 200, "model.onnx", [], marks=SLOW),
        pytest.param(packaged, 200, "model.xml", [], marks=SLOW),
        pytest.param(packaged, 200, "model.pt2", [], marks=SLOW),
        pytest.param(packaged, 200, "model.pt2", ["--runtime", "aot-inductor"], marks=[SLOW, needs_compiler]),
    ],
)
def test_a_file_in_the_commands_is_the_model(model, scenes, output, options, tmp_path):
    """Mean IoU, the label map of the command, and that of the demo."""
    if output.endswith(".xml"):
        pytest.importorskip("openvino", reason="openvino is not installed (extra `openvino`)")
    source, file = model(tmp_path / "model"), tmp_path / output
    size = (96, 144) if model is scene_model else (128, 192)  # no smaller than the window, to which a file would pad
    data = write_scenes(tmp_path / "scenes", scenes, size=size)
    succeed("export", "--model", source, "--output", file, *options)
    figures = {}
    for name in (source, file):
        results = tmp_path / f"results-{len(figures)}.json"
        succeed("evaluate", "--model", name, "--data", data, "--output", results, "--device", "cpu")
        figures[name] = json.loads(results.read_text())["mean_iou"]
    assert figures[file] == pytest.approx(figures[source], abs=1e-4) and figures[source] > 0

    image, maps = tmp_path / "scene.png", {}
    Image.fromarray(draw_scene(0, size)[0]).save(image)
    for name in (source, file):
        folder = tmp_path / f"labels-{len(maps)}"
        succeed("segment", image, "--model", name, "--output", tmp_path / "drawn.png", "--label-maps", folder)
        maps[name] = np.asarray(Image.open(folder / "scene.png"))
    assert (maps[file] == maps[source]).mean() > 0.999 and len(np.unique(maps[source])) > 1
    words = ("segment", image, "--model", file, "--output", tmp_path / "other.png")
    assert "takes images of" in refused(*words, "--window", 160) and not (tmp_path / "other.png").exists()
    demo = Demo({"file": str(file)}, device="cpu")
    shown = np.asarray(Image.open(demo.segment(str(image), "file", False, None, False, None)[2]))
    np.testing.assert_array_equal(shown, maps[file])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return scene_model(tmp_path_factory.mktemp("source") / "model")


def refused(*words):
    """Return the one line that a command ends with."""
    done = command(*words)
    assert done.exit_code == 1 and "Traceback" not in done.stderr, done.output
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.parametrize(
    ("missing", "name", "options"),
    [
        ("openvino", "model.xml", []),
        ("nncf", "model.xml", ["--precision", "int8", "--calibration", example_image_path().parent]),
        ("onnxruntime", "model.onnx", ["--precision", "int8", "--calibration", example_image_path().parent]),
    ],
)
def test_a_missing_package_is_named_before_any_work(missing, name, options, source, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda package: (
            None if package == missing else find("json") if package in ("openvino", "nncf") else find(package)
        ),
    )
    line = refused("export", "--model", source, "--output", tmp_path / name, *options)
    extra = "export" if missing == "onnxruntime" else "openvino"
    assert f"{missing}, which is not installed: pip install 'segtransformers[{extra}]'" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "int8"], "int8 needs calibration images"),
        (["--precision", "int8", "--calibration", "missing"], "--calibration missing must be a folder of images"),
        (["--precision", "int8", "--calibration", "empty"], "empty"),
        (["--precision", "int8", "--calibration", "damaged"], "^error: cannot read damaged/scene.png as an image"),
        (["--dynamic-size", "--size", "64", "80"], "need an example size of multiples of 32"),
        (["--size", "0", "64"], "pixel_values must"),
    ],
)
def test_wrong_options_leave_nothing(options, message, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "damaged", "output"):
        (tmp_path / folder).mkdir()
    (tmp_path / "damaged" / "scene.png").write_bytes(b"no image")
    assert re.search(message, refused("export", "--model", source, "--output", "output/model.onnx", *options))
    assert not list((tmp_path / "output").iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
@pytest.mark.parametrize("name", ["model.onnx", "model.xml", "model.pt2"])
def test_a_full_disk_leaves_nothing(name, source, tmp_path):
    """PyTorch's writer of archives would abort the process. A limit on the size of files stands for the full disk."""
    from test_full_disk import largest_file

    if name.endswith(".xml"):
        pytest.importorskip("openvino", reason="openvino is not installed (extra `openvino`)")
    with largest_file(20_000):
        line = refused("export", "--model", source, "--output", tmp_path / "new" / name)
    assert f"cannot write {tmp_path / 'new' / name}" in line
    assert not list(tmp_path.rglob("*"))
