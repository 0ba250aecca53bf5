# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The scripts in `examples/` do what they say, as a user runs them. Examples in folders have tests of their own."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from export_cases import small
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from segtransformers import example_image_path, packaged_model_path
from segtransformers.datasets.scenes import SCENE_CLASSES, write_scenes
from segtransformers.export import export_model
from segtransformers.inference import segment_image

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))


@pytest.fixture
def run(monkeypatch, capsys):
    """Return a function that runs an example in this process and returns what it prints."""

    def run_example(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run_example


@pytest.fixture
def data(tmp_path):
    write_scenes(tmp_path / "data", 4, split="train", size=(64, 96))
    write_scenes(tmp_path / "data", 2, seed=2, split="validation", size=(64, 96))
    (tmp_path / "data" / "classes.txt").write_text("\n".join(SCENE_CLASSES) + "\n")
    return tmp_path / "data"


def test_fine_tuning_with_the_plain_trainer(run, data, tmp_path):
    out = run(
        "fine_tune_with_trainer.py", data, tmp_path / "trained", *("--steps", 2, "--batch-size", 2, "--crop-size", 64)
    )
    before = AutoModelForSemanticSegmentation.from_pretrained(packaged_model_path())
    after = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "trained")
    assert float(re.search(r"mean IoU ([0-9.]+)", out)[1]) > 0.2  # the packaged model knows these scenes
    assert after.config.id2label == dict(enumerate(SCENE_CLASSES))
    weights = (model.backbone.state_dict() for model in (before, after))
    assert any(not old.equal(new) for old, new in zip(*(state.values() for state in weights), strict=True))
    AutoImageProcessor.from_pretrained(tmp_path / "trained")


def test_fine_tuning_takes_images_smaller_than_the_crop_and_other_classes(run, data, tmp_path):
    (data / "classes.txt").write_text("\n".join([*SCENE_CLASSES, "another"]) + "\n")
    run("fine_tune_with_trainer.py", data, tmp_path / "out", *("--steps", 1, "--batch-size", 2, "--crop-size", 96))
    assert AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out").config.num_labels == 11


def test_a_backbone_of_ones_own(run, tmp_path):
    out = run("custom_backbone.py", tmp_path / "model")
    assert "logits of the loaded model (1, 5, 64, 96)" in out
    model, report = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert type(model.backbone).__name__ == "ConvPyramidBackbone" and not report["missing_keys"]


def test_an_exported_file_runs_without_this_package(tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra `export`)")
    model, processor = small("segmenter-linear")
    model.config.id2label = dict(enumerate(SCENE_CLASSES[:5]))
    model.config.palette = [[index, 20, 30] for index in range(5)]
    export_model(model, processor, tmp_path / "model.onnx", size=(64, 96), check=False)
    image = Image.open(example_image_path()).crop((100, 60, 196, 124))
    image.save(tmp_path / "photo.png")
    # the process fails if the example imports this package or PyTorch
    code = "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__'); " + (
        "sys.exit(1 if {'torch', 'segtransformers'} & set(sys.modules) else 0)"
    )
    words = [sys.executable, "-c", code, EXAMPLES / "run_onnx.py"]
    words += [tmp_path / "model.onnx", tmp_path / "photo.png", tmp_path / "classes.png"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    inputs = processor(image, do_resize=False, return_tensors="pt")
    with torch.no_grad():
        wanted = model(**inputs, sliding_window=False).logits[0].argmax(0).numpy()
    assert len(np.unique(wanted)) > 1
    with Image.open(tmp_path / "classes.png") as result:
        assert (np.asarray(result) == wanted).mean() > 0.999
        assert result.getpalette()[:3] == list(model.config.palette[0])
    first = np.bincount(wanted.ravel()).argmax()
    assert done.stdout.splitlines()[0].endswith(SCENE_CLASSES[first])


def test_a_geotiff_and_the_area_of_its_classes(run, tmp_path):
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed (extra `geo`)")
    scene = np.asarray(Image.open(example_image_path()).convert("RGB"))
    transform = rasterio.transform.from_origin(400_000, 5_000_000, 10, 10)  # pixels of 10 m x 10 m
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "crs": "EPSG:32632", "transform": transform}
    with rasterio.open(tmp_path / "in.tif", "w", height=scene.shape[0], width=scene.shape[1], **profile) as file:
        file.write(scene.transpose(2, 0, 1))
    out = run("segment_geotiff.py", tmp_path / "in.tif", tmp_path / "out.tif", "--window", 128)
    areas = [float(number) for number in re.findall(r"([0-9.]+) hectares", out)]
    assert sum(areas) == pytest.approx(scene.shape[0] * scene.shape[1] / 100, abs=0.1) and "sky" in out
    with rasterio.open(tmp_path / "out.tif") as file:
        assert file.crs.to_epsg() == 32632 and file.shape == scene.shape[:2] and file.transform == transform


def test_accelerated_rf_detr(run):
    out = run("accelerate_rf_detr.py", "--rounds", 1)
    difference = float(re.search(r"difference of the outputs (\S+)", out)[1])
    assert difference < 1e-4 and "2 layers accelerated" in out


def test_every_example_is_in_the_list_and_is_tested():
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[`([^`]+)`\]\(([^)]+)\)", readme, re.MULTILINE)
    assert all((EXAMPLES / target).exists() for _, target in listed)
    folders = {path.name for path in EXAMPLES.iterdir() if path.is_dir() and not path.name.startswith("_")}
    assert {name for name, _ in listed} == {*SCRIPTS, *folders}
    tests = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{name}"' in tests for name in SCRIPTS)


def test_a_data_set_in_shards(run, data, tmp_path):
    """Jobs share the shards, a stopped job continues, and the label maps are those of the images in their order."""
    images, output = data / "images", tmp_path / "label-maps"
    arguments = ("segment_dataset.py", images, output, *("--shards", 3, "--jobs", 2))
    assert run(*arguments, "--job", 1).count("images") == 1
    unfinished = output / "000000-of-000003.1.unfinished"
    unfinished.write_bytes(b"of a job that was killed")
    assert run(*arguments, "--job", 0).count("images") == 2
    assert not run(*arguments, "--job", 0)  # all shards are there
    files = sorted(output.glob("*.parquet"))
    assert [file.name for file in files] == [f"00000{index}-of-000003.parquet" for index in range(3)]
    found = datasets.load_dataset("parquet", data_files=[str(file) for file in files], split="train")
    expected = datasets.load_dataset(str(images), split="train")
    assert len(found) == len(expected) == 4
    model = AutoModelForSemanticSegmentation.from_pretrained(packaged_model_path()).eval()
    processor = AutoImageProcessor.from_pretrained(packaged_model_path())
    for own, image in zip(found["label_map"], expected["image"], strict=True):
        labels = segment_image(model, processor, image).numpy()
        assert own.mode == "L" and (np.asarray(own) == labels).mean() > 0.999


def test_a_job_that_is_none_of_the_jobs(run, data, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run("segment_dataset.py", data / "images", tmp_path / "out", *("--job", 2, "--jobs", 2))
    assert "--job must be 0 to 1, got 2" in capsys.readouterr().err


@pytest.mark.parametrize("name", SCRIPTS)
def test_examples_are_short(name):
    assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) <= 90
