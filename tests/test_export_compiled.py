# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Programs compiled by AOTInductor, in the function `export_model` and in the commands."""

import json
import os
import shutil
import sys
import tempfile
import zipfile

import numpy as np
import pytest
import torch
from export_cases import SIZE, assert_close, expected, small
from PIL import Image
from test_exported_commands import refused, scene_model, succeed

from segtransformers.datasets.scenes import draw_scene, write_scenes
from segtransformers.export import ExportedModel, ExportError, ExportOptions, describe, export_model, read_description

needs_compiler = pytest.mark.skipif(
    sys.platform == "win32" or shutil.which("g++") is None, reason="needs the C++ compiler g++"
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return scene_model(tmp_path_factory.mktemp("source") / "model")


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """A folder for temporary files, for one test only."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def unpacked(folder):
    """Return the folders of unpacked programs."""
    return [*folder.glob("segtransformers*"), *folder.glob("aotinductor*")]


# slow: the C++ compiler takes 20 seconds for a small model
@pytest.mark.slow
@needs_compiler
def test_the_commands_run_a_compiled_program(source, tmp_path):
    file, data = tmp_path / "model.pt2", write_scenes(tmp_path / "scenes", 3, size=(96, 144))
    said = succeed("export", "--model", source, "--output", file, "--runtime", "aot-inductor")
    assert f"{file}: one image of 64x64 pixels (height x width), float32, " in said and "AOTInductor: " in said
    assert [path.name for path in tmp_path.glob("*.*")] == ["model.pt2"]
    figures, maps = [], []
    image = tmp_path / "scene" / "scene.png"
    image.parent.mkdir()
    Image.fromarray(draw_scene(0, (96, 144))[0]).save(image)
    for index, name in enumerate((source, file)):
        results, folder = tmp_path / f"results-{index}.json", tmp_path / f"labels-{index}"
        succeed("evaluate", "--model", name, "--data", data, "--output", results, "--device", "cpu")
        figures.append(json.loads(results.read_text())["mean_iou"])
        succeed("segment", image, "--model", name, "--output", tmp_path / "drawn.png", "--label-maps", folder)
        maps.append(np.asarray(Image.open(folder / "scene.png")))
    assert figures[1] == pytest.approx(figures[0], abs=1e-4) and figures[0] > 0
    assert (maps[0] == maps[1]).mean() > 0.999 and len(np.unique(maps[0])) > 1


@pytest.mark.slow
@needs_compiler
def test_compiled_with_dynamic_shapes(temporary, tmp_path):
    model, processor = small("segmenter-linear")
    model.config.inference_mode = "whole"
    file = tmp_path / "model.pt2"
    options = {"dynamic_batch": True, "dynamic_size": True, "compiled": True}
    assert export_model(model, processor, file, size=SIZE, **options) < 1e-4
    assert read_description(file) == describe(model, processor, SIZE, ExportOptions(**options))
    exported = ExportedModel(file)
    for batch, *size in ((1, 64, 64), (3, 96, 160), (2, 70, 100)):
        images = torch.randn(batch, 3, *size)
        padded = torch.nn.functional.pad(images, (0, -size[1] % 32, 0, -size[0] % 32))
        wanted = expected(model, padded)[:, :, : size[0], : size[1]]
        assert_close(exported(images, sliding_window=False).logits, wanted)
    with pytest.raises(ValueError, match="takes images of 3 channels, got 4"):
        exported(torch.randn(1, 4, 64, 64))
    assert len(unpacked(temporary)) == 1  # that of the export is gone
    del exported
    assert not unpacked(temporary)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("name", ["vit_adapter-upernet", "internimage-upernet"])
def test_compiled_deformable_layers(name, tmp_path):
    model, processor = small(name)
    file = tmp_path / "model.pt2"
    assert export_model(model, processor, file, size=SIZE, compiled=True) < 1e-4
    images = torch.randn(1, 3, *SIZE)
    assert_close(ExportedModel(file)(images, sliding_window=False).logits, expected(model, images))


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_compiled_in_half_precision(precision, tmp_path):
    model, processor = small("segmenter-linear")
    file = tmp_path / "model.pt2"
    assert export_model(model, processor, file, size=SIZE, compiled=True, precision=precision) < 5e-2


def test_a_missing_compiler_is_named_before_any_work(source, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    line = refused("export", "--model", source, "--output", tmp_path / "model.pt2", "--runtime", "aot-inductor")
    assert "needs the C++ compiler no-such-compiler -O2, which is not installed: install it, or name another" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("runtime", "name", "message"),
    [
        ("aot-inductor", "model.onnx", "--runtime aot-inductor writes files that end in .pt2, got --output "),
        ("tensorrt", "model", "--runtime must be one of onnxruntime, openvino, torch, aot-inductor, got tensorrt"),
    ],
)
def test_a_runtime_decides_the_ending(runtime, name, message, source, tmp_path):
    line = refused("export", "--model", source, "--output", tmp_path / name, "--runtime", runtime)
    assert message in line and not list(tmp_path.iterdir())


def test_compiled_is_for_pt2(tmp_path):
    model, processor = small("segmenter-linear")
    with pytest.raises(ValueError, match="compiled is an option of"):
        export_model(model, processor, tmp_path / "model.onnx", size=SIZE, compiled=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@needs_compiler
def test_a_full_disk_leaves_no_compiled_program(source, tmp_path, monkeypatch):
    from test_full_disk import largest_file

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    for limit in (50_000, 400_000):  # in the compiler, and while the file is written
        with largest_file(limit):
            line = refused(
                "export", "--model", source, "--output", tmp_path / "new" / "model.pt2", "--runtime", "aot-inductor"
            )
        assert "cannot write" in line or "AOTInductor cannot compile the model" in line
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("cpu", "message"),
    [
        (
            {"flags": ["avx99"]},
            "^the program is compiled for a machine with avx99, unlike this one: export ",
        ),
        ({"machine": "vax", "flags": []}, "compiled for a machine with vax"),
        ({}, "torch .* cannot load the file, perhaps because of its version: "),
    ],
)
def test_a_program_for_another_machine_is_an_error(cpu, message, temporary, tmp_path):
    """PyTorch itself would run the instructions until one crashes the process, and leave a folder of a damaged file."""
    file = tmp_path / "model.pt2"
    model, processor = small("segmenter-linear")
    metadata = {
        "segmentation.json": json.dumps(describe(model, processor, SIZE)),
        "segmentation_cpu.json": json.dumps(cpu),
        "AOTI_DEVICE_KEY": "cpu",
    }
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model/data/aotinductor/model/a.wrapper_metadata.json", json.dumps(metadata))
    assert read_description(file)["classes"]
    with pytest.raises(ExportError, match=message):
        ExportedModel(file)
    assert not unpacked(temporary) and os.environ["TMPDIR"] == str(temporary)
