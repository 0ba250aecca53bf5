# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Output of the commands: `--quiet`, `--json`, tables and bars on a terminal, plain text elsewhere."""

import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.cells import cell_len
from typer.testing import CliRunner

from segtransformers import example_image_path, packaged_model_path, terminal
from segtransformers.cli import app
from segtransformers.cli.output import result_table
from segtransformers.datasets.scenes import SCENE_CLASSES, write_scenes

ANSI = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
TRAINING = ("--model", "packaged", "--crop-size", "64", "--max_steps", "2", "--use_cpu", "--no-report")


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def on_terminal(monkeypatch, *arguments, columns=100) -> tuple[str, str]:
    """Run a command whose standard output and standard error are terminals, and return what they get."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", str(columns))
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    try:
        app([str(argument) for argument in arguments], standalone_mode=False)
    finally:
        monkeypatch.undo()
    return out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_scenes(folder / "scenes", 2, split="train", size=(64, 96))
    write_scenes(folder / "scenes", 2, seed=2, split="validation", size=(64, 96))
    return folder / "scenes"


def invocations(data, folder) -> dict[str, tuple]:
    """Return arguments of the commands that have --json, which succeed."""
    images = Path(data, "images", "validation")
    return {
        "segment": ("segment", images, "--model", "packaged", "--output", folder / "drawn"),
        "evaluate": ("evaluate", "--model", "packaged", "--data", data, "--output", folder / "results.json"),
        "check-data": ("check-data", data),
        "export": ("export", "--output", folder / "model.pt2", "--size", "64", "64", "--no-check"),
        "autolabel": ("autolabel", "--model", "packaged", "--images", images, "--output", folder / "labelled"),
        "train": ("train", "--data", data, "--output", folder / "trained", *TRAINING),
        "average": ("average", packaged_model_path(), packaged_model_path(), "--output", folder / "mean"),
        "info": ("info",),
        "models": ("models", "--family", "segmenter"),
        "recipes": ("recipes",),
    }


NAMES = tuple(invocations(Path(), Path()))
QUIET = ("segment", "evaluate", "check-data", "train")


@pytest.fixture(scope="module")
def documents(data, tmp_path_factory) -> dict[str, tuple]:
    """Return the result of each command with --json, and its document."""
    folder = tmp_path_factory.mktemp("json")
    found = {}
    for name, arguments in invocations(data, folder).items():
        done = run(*arguments, "--json")
        assert done.exit_code == 0, (name, done.stderr)
        found[name] = done, json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_json_is_all_of_standard_output(documents, name):
    done, document = documents[name]
    assert done.stdout == json.dumps(document, indent=2) + "\n"


def test_json_of_segment(documents):
    document = documents["segment"][1]
    first, second = document["images"]
    assert document["failed"] == [] and document["model"] == "packaged"
    assert first["image"] < second["image"] and first["files"] != second["files"]
    assert all(os.path.isfile(one["files"]["output"]) for one in document["images"])
    shares = [one["share"] for one in first["classes"]]
    assert sum(shares) == pytest.approx(1) and shares == sorted(shares, reverse=True)
    assert {one["name"] for one in first["classes"]} <= set(SCENE_CLASSES)


def test_json_of_the_other_commands(documents, data):
    evaluated, checked, exported = (documents[name][1] for name in ("evaluate", "check-data", "export"))
    assert 0 < evaluated["mean_iou"] <= 1 and evaluated["images"] == 2 and len(evaluated["classes"]) == 10
    assert [split["split"] for split in checked["splits"]] == ["train", "validation"] and checked["errors"] == []
    split = checked["splits"][0]
    assert sum(one["pixels"] for one in split["classes"]) + split["no_class"] == split["all_pixels"] == 2 * 64 * 96
    assert exported["bytes"] == os.path.getsize(exported["files"][0]) and exported["size"] == [64, 64]
    assert exported["error"] is None
    trained = documents["train"][1]
    assert trained["steps"] == 2 and trained["results"]["images"] == 2
    assert documents["info"][1]["packages"].keys() >= {"torch", "transformers"}
    assert documents["info"][1]["cache"] == os.environ["SEGTRANSFORMERS_CACHE"]
    assert {"name", "miou", "license"} <= documents["models"][1][0].keys()
    assert "upernet_deit_adapter_tiny_512_160k_ade20k" in {one["name"] for one in documents["recipes"][1]}
    assert 0 < documents["autolabel"][1]["labelled"] <= 1
    assert len(documents["average"][1]["models"]) == 2


def test_json_has_errors_of_single_images_and_of_data(tmp_path, data):
    (tmp_path / "broken.png").write_bytes(b"no image")
    shutil.copy(example_image_path(), tmp_path / "good.png")
    done = run("segment", tmp_path, "--model", "packaged", "--output", tmp_path / "drawn", "--json")
    document = json.loads(done.stdout)
    assert done.exit_code == 1 and "error: " in done.stderr
    assert len(document["images"]) == 1 and document["failed"][0]["image"].endswith("broken.png")
    copy = shutil.copytree(data, tmp_path / "data")
    mask = next((copy / "masks" / "train").iterdir())
    Image.fromarray(np.full((64, 96), 77, np.uint8)).save(mask)
    done = run("check-data", copy, "--json")
    document = json.loads(done.stdout)
    assert done.exit_code == 1 and len(document["errors"]) == 1 and mask.stem in document["errors"][0]


def test_json_without_a_result_prints_nothing(tmp_path):
    done = run("segment", "--model", tmp_path / "missing", "--json")
    assert done.exit_code == 1 and done.stdout == "" and done.stderr.startswith("error: ")


def test_json_of_a_raster(tmp_path):
    rasterio = pytest.importorskip("rasterio", reason="rasters need the extra geo")
    with rasterio.open(tmp_path / "in.tif", "w", driver="GTiff", width=96, height=64, count=3, dtype="uint8") as file:
        file.write(np.random.default_rng(0).integers(0, 255, (3, 64, 96), dtype=np.uint8))
    done = run("segment", tmp_path / "in.tif", "--model", "packaged", "--output", tmp_path / "out.tif", "--json")
    (image,) = json.loads(done.stdout)["images"]
    assert image["files"] == {"output": str(tmp_path / "out.tif")}
    assert sum(one["share"] for one in image["classes"]) == pytest.approx(1)


def test_quiet_leaves_results_and_errors(data, tmp_path):
    arguments = invocations(data, tmp_path)
    for name in QUIET:
        done = run(*arguments[name], "--quiet")
        assert done.exit_code == 0, (name, done.stderr)
        # libraries may warn, but the command itself says nothing
        assert not re.search(r"^(note|model|chosen|\{)|trainable", done.stdout + done.stderr, re.MULTILINE), name
        assert "it/s" not in done.stderr and "image/s" not in done.stderr, name
        assert done.stdout.strip(), name
    failed = run("segment", tmp_path / "missing.png", "-q")
    assert failed.exit_code == 1 and failed.stderr.startswith("error: ")


def test_training_of_data_without_parts(tmp_path, monkeypatch):
    """One line says what is held out, and a log gets no progress bars. Without accelerate, an error says what to do."""
    write_scenes(tmp_path / "data", 3, size=(64, 96), split="all")
    for kind in ("images", "masks"):
        for file in (tmp_path / "data" / kind / "all").iterdir():
            file.rename(tmp_path / "data" / kind / file.name)
        (tmp_path / "data" / kind / "all").rmdir()
    done = run("train", "--data", tmp_path / "data", "--output", tmp_path / "trained", *TRAINING)
    assert done.exit_code == 0 and "1 of 3" in done.stderr, done.stderr
    assert "no splits" not in done.stderr and "it/s" not in done.stderr and "'train_loss'" in done.stdout
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "accelerate" else found(name))
    done = run("train", "--data", tmp_path / "data", "--output", tmp_path / "other", *TRAINING)
    assert done.exit_code == 1 and done.stderr.endswith("pip install 'segtransformers[train]'\n")
    assert not (tmp_path / "other").exists()


def test_training_on_a_terminal(monkeypatch, data, tmp_path):
    """A bar of the steps with loss and mean IoU, the log above it, and no bars of transformers."""
    words = ("train", "--data", data, "--output", tmp_path / "trained", *TRAINING, "--logging_steps", "1")
    out, err = on_terminal(monkeypatch, *words, columns=120)
    shown = ANSI.sub("", err)
    assert "2/2 steps" in shown and re.search(r"loss \d\S*, mIoU \d", shown) and "it/s" not in shown
    assert re.search(r"[\r\n]step 2: .*eval_mean_iou 0\.\d+", shown) and "{'" not in out + shown
    assert "mIoU" in ANSI.sub("", out) and "─" in out


def test_without_quiet_there_are_messages(tmp_path):
    arguments = ("segment", example_image_path(), "--model", "packaged", "--output", tmp_path / "out.png")
    assert run(*arguments).stdout.startswith("model: packaged")
    replaced = run(*arguments)
    assert replaced.stderr.startswith("note: ") and run(*arguments, "--quiet").stderr == ""


def test_tables_are_drawn_on_a_terminal(monkeypatch, data, tmp_path):
    out, _ = on_terminal(monkeypatch, "check-data", data)
    assert "─" in out and "\x1b[1m" in out  # a line, and bold headings
    plain = ANSI.sub("", out)
    for name in SCENE_CLASSES:
        assert re.search(rf"^ *\d+ +{name} +[0-9.]+ % +\d+ *$", plain, re.MULTILINE), name
    out, err = on_terminal(monkeypatch, "evaluate", "--model", "packaged", "--data", data, "--output", tmp_path / "r")
    assert "mIoU" in ANSI.sub("", out) and "─" in out and "images" in ANSI.sub("", err)


def test_classes_have_their_colours_on_a_terminal(monkeypatch, tmp_path):
    out, _ = on_terminal(
        monkeypatch, "segment", example_image_path(), "--model", "packaged", "--output", tmp_path / "out.png"
    )
    palette = json.loads((packaged_model_path() / "config.json").read_text())["palette"]
    assert any(f"\x1b[48;2;{red};{green};{blue}m" in out or "\x1b[48;5;" in out for red, green, blue in palette)
    assert "sky" in out and "│" not in out


def test_no_color_means_none(monkeypatch, data):
    monkeypatch.setenv("NO_COLOR", "1")
    out, _ = on_terminal(
        monkeypatch, "segment", example_image_path(), "--model", "packaged", "--label-maps", data / "maps"
    )
    assert not re.search(r"\x1b\[[0-9;]*(3[0-9]|4[0-9])[;m]", out) and "sky" in out


@pytest.mark.parametrize("columns", [30, 60, 100, 200])
def test_tables_fit_the_terminal(monkeypatch, columns):
    out, _ = on_terminal(monkeypatch, "models", columns=columns)
    plain = ANSI.sub("", out)
    assert max(map(cell_len, plain.splitlines())) <= columns
    name = "upernet_deit_adapter_tiny_512_160k_ade20k"
    assert (name[:20] if columns < 60 else name) in plain
    assert ("not shown on this narrow terminal" in " ".join(plain.split())) == (columns < 200)
    assert ("apache-2.0" in plain) == (columns == 200)


def test_text_of_files_is_no_markup(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    result_table("", ("name", "share"), [("[red]road[/red]\x1b]0;title\x07 :car:", "1 %")])
    monkeypatch.undo()
    assert "[red]road[/red]" in out.getvalue() and "\x1b]0" not in out.getvalue() and ":car:" in out.getvalue()


def test_bars_are_for_terminals_only(monkeypatch):
    for stream, expected in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("TERM", "xterm")
        with terminal.progress_bar(3, "image", "work") as bar:
            bar.update()
            bar.note("mIoU 12.00")
            bar.restart(4, 2)
            time.sleep(0.15)  # the bar is drawn ten times a second
        shown = ANSI.sub("", stream.getvalue())
        assert ("work" in shown and "2/4 images" in shown and "mIoU 12.00" in shown) == expected
        assert expected or shown == ""
        monkeypatch.undo()


def test_lines_above_a_bar(monkeypatch):
    """Lines for a terminal go above the bar, and others into their file."""
    err, out = Terminal(), io.StringIO()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", err)
    with terminal.progress_bar(3, "image"):
        terminal.write_line("an error [bold]", err)
        terminal.write_line("a result", out)
        with terminal.progress_bar(3, "byte", "inner"):  # one bar at a time
            pass
    monkeypatch.undo()
    assert "an error [bold]\n" in err.getvalue() and out.getvalue() == "a result\n" and "inner" not in err.getvalue()


@pytest.mark.parametrize("stream", ["dumb", "closed", "none"])
def test_what_is_no_terminal(monkeypatch, stream):
    monkeypatch.setenv("TERM", "dumb" if stream == "dumb" else "xterm")
    closed = io.StringIO()
    closed.close()
    assert not terminal.is_terminal({"dumb": Terminal(), "closed": closed, "none": None}[stream])


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are of Unix")
def test_in_a_real_terminal(tmp_path):
    """The list of models and its pipe, in a process of its own."""
    import pty

    main, side = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    words = [sys.executable, "-m", "segtransformers", "models", "--family", "segmenter"]
    done = subprocess.run(words, stdout=side, stderr=subprocess.PIPE, env=environment)
    os.close(side)
    shown = os.read(main, 100_000).decode()
    os.close(main)
    assert done.returncode == 0 and "─" in shown and "segmenter" in shown, done.stderr
    piped = subprocess.run(words, capture_output=True, text=True, env=environment, encoding="utf-8")
    assert "─" not in piped.stdout and "\x1b" not in piped.stdout and piped.stdout.startswith("name ")
