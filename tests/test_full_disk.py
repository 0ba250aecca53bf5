# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""A full disk is an error in one line, nothing incomplete is left, and the last complete checkpoint is kept.

A limit on the size of files stands for the full disk. It takes effect in this process, in which the commands run.
"""

import contextlib
import json
import os
import sys

import pytest
import torch
from reference_cases import ReferenceCase
from test_train_command import options, own_data
from training_cases import small_model
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
from typer.testing import CliRunner

from segtransformers import packaged_model_path
from segtransformers.cli import app
from segtransformers.files import PREFIX

if sys.platform == "win32":
    pytest.skip("needs a limit on the size of files", allow_module_level=True)
import resource


@contextlib.contextmanager
def largest_file(size: int):
    """Let no file exceed `size` bytes in this context."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def run(*words):
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def assert_one_error(done, message: str) -> None:
    """The command ended with an error of one line. `train` prints other lines before."""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.exit_code == 1 and len(errors) == 1 and message in errors[0], done.output
    assert "Traceback" not in done.output


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    small_model("segmenter").save_pretrained(folder)
    AutoImageProcessor.from_pretrained(packaged_model_path()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return own_data(tmp_path_factory.mktemp("data"), 2, 1)


@pytest.mark.parametrize("size", [0, 1000, 50_000])
def test_convert(tmp_path, size):
    """No file fits; the weights do not fit; the files of the config do."""
    case = ReferenceCase("segmenter/tiny-mask")
    torch.save({"state_dict": case.state_dict(torch.float32)}, tmp_path / "file.pth")
    (tmp_path / "config.json").write_text(json.dumps(case.config))
    before = sorted(os.listdir(tmp_path))
    words = ["convert", "segmenter", "--checkpoint", tmp_path / "file.pth", "--config", tmp_path / "config.json"]
    with largest_file(size):
        done = run(*words, "--output", tmp_path / "new" / "out")
    assert_one_error(done, f"cannot write {tmp_path / 'new' / 'out'}: File too large")
    assert done.stdout == "" and sorted(os.listdir(tmp_path)) == before
    done = run(*words, "--output", tmp_path / "new" / "out")
    assert done.exit_code == 0 and (tmp_path / "new/out/model.safetensors").stat().st_size > 50_000


def test_train_keeps_the_last_complete_checkpoint(model, data, tmp_path):
    small = ["--save_steps", 2, "--logging_steps", 1, "--prediction-images", 0, "--eval_strategy", "no"]
    words = ["train", *options(data, tmp_path / "out", model, *small)]
    with largest_file(50_000):
        done = run(*words, "--max_steps", 2)
    assert_one_error(done, f"cannot write to {tmp_path / 'out'}: ")
    assert not list((tmp_path / "out").glob("checkpoint-*")) and not list((tmp_path / "out").glob("*.safetensors"))
    assert run(*words, "--max_steps", 2).exit_code == 0
    kept = {path: path.read_bytes() for path in (tmp_path / "out" / "checkpoint-2").iterdir()}
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    with largest_file(50_000):
        done = run(*words, "--max_steps", 4, "--resume")
    assert_one_error(done, "; --resume continues from the last checkpoint")
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-2"]
    assert {path: path.read_bytes() for path in (tmp_path / "out" / "checkpoint-2").iterdir()} == kept
    assert not list((tmp_path / "out").glob(f"{PREFIX}*")) and not list(tmp_path.glob(f"{PREFIX}*"))
    # the complete model of the first run, not half of another
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights
    assert run(*words, "--max_steps", 4, "--resume").exit_code == 0
    state = json.loads((tmp_path / "out" / "checkpoint-4" / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "loss" in entry] == [1, 2, 3, 4]
    AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out")


def test_train_saves_its_model_whole_or_not_at_all(model, data, tmp_path):
    """The disk is full only when the model itself is written, after the last checkpoint."""
    words = ["train", *options(data, tmp_path / "out", model, "--max_steps", 1, "--save_strategy", "no")]
    with largest_file(50_000):
        done = run(*words, "--prediction-images", 0, "--eval_strategy", "no")
    assert_one_error(done, "; --resume saves the model again")
    assert not list((tmp_path / "out").glob("*.safetensors")) and not list((tmp_path / "out").glob(f"{PREFIX}*"))


def test_evaluate_and_segment(model, tmp_path):
    data = own_data(tmp_path / "data", 1, 2)
    (tmp_path / "data" / "classes.txt").write_text("\n".join(f"class {index}" for index in range(10)))
    words = ["evaluate", "--model", model, "--data", data, "--device", "cpu", "--output", tmp_path / "results.json"]
    for size in (0, 100):
        with largest_file(size):
            done = run(*words)
        assert_one_error(done, "File too large")
        assert not (tmp_path / "results.json").exists()
    assert run(*words, "--resume").exit_code == 0 and (tmp_path / "results.json").exists()
    images = data / "images" / "validation"
    words = ["segment", images, "--model", model, "--output", tmp_path / "drawn", "--device", "cpu"]
    with largest_file(100):
        done = run(*words)
    assert_one_error(done, "segment.resume.json: File too large")
    assert not (tmp_path / "drawn").exists()
    with largest_file(1500):  # the resume log fits
        done = run(*words)
    lines = done.stderr.splitlines()
    assert done.exit_code == 1 and lines[-1] == "error: 2 of 2 images failed" and "File too large" in lines[0], lines
    assert not (tmp_path / "drawn").exists()
