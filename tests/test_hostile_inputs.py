# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Files of somebody else in every command: names that hold control characters, and pipes in the place of files."""

import contextlib
import json
import logging
import os
import shutil
import signal
import sys

import pytest
import torch
from model_tests import randomise
from PIL import Image
from reference_cases import ReferenceCase
from safetensors.torch import load_file, save_file
from training_cases import small_model
from transformers import AutoImageProcessor
from typer.testing import CliRunner

from segtransformers import packaged_model_path
from segtransformers.cli import app
from segtransformers.conversion.cli import main

RECIPE = "upernet_deit_adapter_tiny_512_160k_ade20k"
HOSTILE = "\x1b]0;owned\x07\nerror: \u202e<b>"
RAW = ("\x1b", "\x07", "\u202e", "\nerror: \\", "\nerror: <")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def draw_data(folder, classes: list[str], stem: str):
    for index in range(2):
        for kind, mode in (("images", "RGB"), ("masks", "L")):
            path = folder / kind / "validation" / f"{index}{stem}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new(mode, (70, 70), index).save(path)
    (folder / "classes.json").write_text(json.dumps(classes))
    return folder


@pytest.fixture
def logged(caplog):
    """All messages of all loggers."""
    for name in ("transformers", "segtransformers"):
        logging.getLogger(name).addHandler(caplog.handler)
    yield caplog
    for name in ("transformers", "segtransformers"):
        logging.getLogger(name).removeHandler(caplog.handler)


def assert_escaped(result, logged, expected: str):
    """No output holds a control character, and `expected` is in one of its short lines."""
    text = result.stdout + result.stderr + "\n".join(logged.messages)
    assert not [raw for raw in RAW if raw in text], text
    assert expected in text and max(map(len, text.splitlines())) < 700, text
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with hostile names of classes, of fields of its config, and of a tensor."""
    folder = tmp_path_factory.mktemp("model")
    names = {index: f"{HOSTILE}{index}" for index in range(3)}
    labels = {name: index for index, name in names.items()}
    randomise(small_model("segmenter", id2label=names, label2id=labels, palette=None)).save_pretrained(folder)
    AutoImageProcessor.from_pretrained(packaged_model_path()).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {HOSTILE: 1}))
    tensors = load_file(folder / "model.safetensors")
    del tensors["decode_head.class_embeddings"]
    save_file({**tensors, HOSTILE: torch.zeros(1)}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return draw_data(tmp_path_factory.mktemp("data"), [f"{HOSTILE}{index}" for index in range(3)], "a\x1b[2J")


def test_check_data_escapes_names(data, logged, tmp_path):
    assert_escaped(run("check-data", data), logged, r"\x1b]0;owned\x07\nerror: \u202e<b>0")
    faulty = draw_data(tmp_path / "data", [HOSTILE, "other"], "b\x1b[2J\n")
    (faulty / "masks/validation/0b\x1b[2J\n.png").write_bytes(b"no image")
    (faulty / "images/validation/1b\x1b[2J\n.png").unlink()
    (faulty / "images/validation/\x1b[2J.txt").touch()
    result = run("check-data", faulty)
    assert result.exit_code == 1
    assert_escaped(result, logged, r"b\x1b[2J")


def test_evaluate_and_segment_escape_names(model, data, logged, tmp_path):
    words = ("--model", model, "--data", data, "--device", "cpu", "--output", tmp_path / "results.json")
    result = run("evaluate", *words, "--save-predictions", tmp_path / "maps")
    assert result.exit_code == 0 and len(list((tmp_path / "maps").rglob("*.png"))) == 2, result.output
    assert_escaped(result, logged, r"owned\x07\nerror: \u202e<b>2")
    # a config's field, and tensors that are missing and left over
    found = "\n".join(logged.messages)
    assert r"has no use for: \x1b]0" in found and "lacks decode_head.class_embeddings: these" in found
    assert r"holds \x1b]0;owned\x07\nerror: \u202e<b>, for which" in found and "LOAD REPORT" not in found
    result = run("segment", data / "images", "--model", model, "--output", tmp_path / "drawn", "--device", "cpu")
    assert_escaped(result, logged, r"a\x1b[2J")


def test_train_escapes_names(model, data, logged, tmp_path):
    words = ("--data", data, "--recipe", RECIPE, "--model", model, "--output", tmp_path / "out", "--use_cpu")
    small = ("--crop-size", 64, "--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 1)
    result = run("train", *words, *small, "--max_steps", 1, "--split", "validation", "--disable_tqdm", "true")
    assert result.exit_code == 0, result.output
    assert_escaped(result, logged, r"owned\x07\nerror: \u202e<b>2")


def test_conversion_escapes_names(logged, tmp_path, capsys):
    case = ReferenceCase("segmenter/tiny-mask")
    state = {**case.state_dict(torch.float32), f"ema_{HOSTILE}": torch.zeros(1), HOSTILE: torch.zeros(2)}
    (tmp_path / "config.json").write_text(json.dumps(case.config))
    file = tmp_path / "a\x1b[2J.pth"
    for content in (
        {"state_dict": state, HOSTILE: 1, "meta": {}},
        {"state_dict": case.state_dict(torch.float32), HOSTILE: 1, "meta": {"CLASSES": [HOSTILE] * 9}},
        {"state_dict": {HOSTILE: HOSTILE}},
    ):
        torch.save(content, file)
        words = ["--checkpoint", file, "--config", tmp_path / "config.json", "--output", tmp_path / "out"]
        main("segmenter", list(map(str, words)))
        captured = capsys.readouterr()
        text = captured.out + captured.err + "\n".join(logged.messages)
        assert not [raw for raw in RAW if raw in text] and r"\x1b" in text, text


# pipes


@contextlib.contextmanager
def within_a_minute():
    """Raise TimeoutError where a command waits for a writer of a pipe."""

    def expire(number, frame):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, expire)
    signal.alarm(60)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def place(tmp_path, data):
    """A folder with a pipe, a model, data, and a checkpoint with its config."""
    os.mkfifo(tmp_path / "pipe")
    shutil.copytree(data, tmp_path / "data")
    shutil.copytree(packaged_model_path(), tmp_path / "model")
    case = ReferenceCase("segmenter/tiny-mask")
    torch.save({"state_dict": case.state_dict(torch.float32)}, tmp_path / "file.pth")
    for file in ("pipe.json", "pipe.yaml", "pipe.yml", "pipe.py", "pipe.txt", "pipe.png"):
        os.mkfifo(tmp_path / file)
    return tmp_path


TRAIN = ["train", "--data", "data", "--split", "validation", "--output", "out", "--recipe"]
CONVERT = ["convert", "segmenter", "--checkpoint"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs named pipes")
@pytest.mark.parametrize(
    "words",
    [
        [*CONVERT, "pipe", "--output", "out"],
        [*CONVERT, "file.pth", "--config", "pipe.json", "--output", "out"],
        [*CONVERT, "file.pth", "--config", "pipe.py", "--output", "out"],
        [*CONVERT, "file.pth", "--config", "/dev/zero", "--output", "out"],
        ["check-data", "data", "--classes", "pipe.txt"],
        ["check-data", "data", "--classes", "/dev/zero"],
        ["evaluate", "--model", "model", "--data", "data", "--classes", "pipe"],
        ["evaluate", "--model", "model", "--data", "data", "--output", "pipe.json"],
        ["segment", "data/images", "--output", "out", "--model", "pipe"],
        ["segment", "data/images/validation/0a\x1b[2J.png", "--output", "pipe.png"],
        ["segment", "pipe", "--output", "out.png"],
        ["export", "--model", "packaged", "--output", "pipe.pt2"],
        [*TRAIN, "pipe.yaml"],
        [*TRAIN, "/dev/zero"],
        [*TRAIN, RECIPE, "--trunk-weights", "pipe"],
        [*TRAIN, RECIPE, "--model", "pipe"],
        ["push", "model", "owner/name", "--measured", "pipe.json"],
        ["push", "pipe", "owner/name"],
        ["models", "segmenter_vit-s_mask_8x1_512x512_160k_ade20k", "--checkpoint", "pipe"],
    ],
    ids=lambda words: " ".join(words[:1] + [word for word in words if "pipe" in word or "/dev" in word]),
)
def test_pipes_and_devices_are_refused_at_once(words, place, monkeypatch):
    monkeypatch.chdir(place)
    if words[0] == "export":
        os.mkfifo("pipe.pt2")
    with within_a_minute():
        result = run(*words)
    line = result.stderr.splitlines()[-1]
    assert result.exit_code == 1 and line.startswith("error: "), result.output
    assert "Traceback" not in result.stderr and not (place / "out").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="needs named pipes")
@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("data/classes.json", ["check-data", "data"]),
        ("data/classes.txt", ["check-data", "data"]),  # before classes.json is tried
        ("data/class_dict.csv", ["check-data", "data"]),
        ("data/images/validation/0a\x1b[2J.png", ["check-data", "data"]),
        ("data/masks/validation/0a\x1b[2J.png", [*TRAIN, RECIPE, "--eval-split", "validation"]),
        ("data/train.txt", ["check-data", "data", "--split", "train"]),
        ("data/metadata.jsonl", ["check-data", "data", "--split", "train"]),
        ("data/data.parquet", ["check-data", "data", "--split", "train"]),
        ("data/dataset_dict.json", ["check-data", "data", "--split", "train"]),
        ("model/config.json", ["export", "--model", "model", "--output", "out.pt2"]),
        ("model/model.safetensors", ["segment", "--model", "model", "--output", "out.png"]),
        ("model/README.md", ["push", "model", "owner/name"]),
        ("model/config.json", [*TRAIN, RECIPE, "--model", "model"]),
        ("variant.yml", [*CONVERT, "file.pth", "--output", "out"]),
    ],
)
def test_pipes_inside_of_folders_are_refused_at_once(file, words, place, monkeypatch):
    monkeypatch.chdir(place)
    if "classes" in file or "class_dict" in file:
        (place / "data/classes.json").unlink()
    if file.startswith("data/") and "/masks/" not in file and "/images/" not in file and "class" not in file:
        for kind in ("images", "masks"):  # the layouts whose files these are
            (place / "data" / kind / "validation").rename(place / "data" / kind / "flat")
            if file != "data/train.txt":
                shutil.rmtree(place / "data" / kind)
    (place / file).unlink(missing_ok=True)
    os.mkfifo(place / file)
    with within_a_minute():
        result = run(*words)
    assert result.exit_code == 1 and "Traceback" not in result.stderr, result.output
    assert "is no file, but a pipe, device or socket" in result.stderr, result.stderr
    assert not (place / "out").exists()


# files and options that would take all memory or never end

LAUGHS = "a0: &a0 [lol]\n" + "\n".join(
    f"a{index}: &a{index} [{','.join([f'*a{index - 1}'] * 10)}]" for index in range(1, 10)
)


@pytest.mark.parametrize(
    ("file", "text", "words", "message"),
    [
        (
            "r.yaml",
            f"{LAUGHS}\noptimizer: *a9\n",
            [*TRAIN, "r.yaml"],
            "r.yaml is not a recipe: its text cannot be parsed",
        ),
        ("r.yaml", "optimizer: &x {a: *x}", [*TRAIN, "r.yaml"], "a value refers to itself"),
        ("r.json", "[" * 10**5, [*TRAIN, "r.json"], "r.json is not a recipe"),
        ("r.yaml", "a: " + "[" * 5000, [*TRAIN, "r.yaml"], "r.yaml is not a recipe"),
        ("r.yaml", "!!python/object/apply:os.system ['touch owned']", [*TRAIN, "r.yaml"], "r.yaml is not a recipe"),
        ("c.json", json.dumps([str(index) for index in range(10**5)]), ["check-data", "data"], "must be 1 to 255"),
        ("c.json", "[" * 10**5, ["check-data", "data"], "cannot read class names from c.json"),
        ("c.json", "9" * 4000, ["check-data", "data"], "the number of classes must be 1 to 255"),
        ("res.json.resume/process-0.jsonl", "[" * 10**5 + "\n[\n", ["evaluate", "--model", "model"], "is damaged"),
    ],
    ids=range(9),
)
def test_bombs_are_refused(file, text, words, message, place, monkeypatch):
    monkeypatch.chdir(place)
    (place / file).parent.mkdir(exist_ok=True)
    (place / file).write_text(text)
    if words[0] == "evaluate":
        (place / "data" / "classes.json").write_text("10")
        words = [*words, "--data", "data", "--output", "res.json", "--resume", "--device", "cpu"]
    if words[0] == "check-data":
        words = [*words, "--classes", "c.json"]
    with within_a_minute():
        result = run(*words)
    assert result.exit_code == 1 and message in result.stderr, result.output
    assert "Traceback" not in result.stderr and max(map(len, result.stderr.splitlines())) < 700
    assert not (place / "out").exists() and not (place / "owned").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["check-data", "data", "--classes", "9" * 20], "the number of classes must be 1 to 255, got 99999"),
        (["segment", "link.png", "--output", "out.png"], "link.png"),
        (
            [*TRAIN, RECIPE, "--model", "model", "--eval-split", "validation", "--crop-size", "99999"],
            "67 million pixels",
        ),
        (["segment", "a.png", "--output", "out.png", "--device", "privateuseone"], "--device privateuseone: "),
    ],
)
def test_arguments_that_no_library_expects(words, message, place, monkeypatch):
    monkeypatch.chdir(place)
    os.symlink("link.png", place / "link.png")
    Image.new("RGB", (40, 40)).save(place / "a.png")
    result = run(*words)
    line = result.stderr.splitlines()[-1]
    assert result.exit_code == 1 and line.startswith("error: ") and message in line, result.output
