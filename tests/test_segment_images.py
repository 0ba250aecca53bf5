# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`segtransformers segment` with many images: reading ahead, `--resume`, and several processes."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from segtransformers.cli import app, segment_images
from segtransformers.cli.segment_images import LOG_NAME
from segtransformers.datasets.scenes import draw_scene


def command(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    for index in range(5):
        path = folder / ("first" if index < 2 else "second") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_scene(index, (64, 96))[0]).save(path)
    return folder


def label_maps(folder):
    return {path.relative_to(folder): np.asarray(Image.open(path)) for path in sorted(folder.rglob("*.png"))}


def words(images, output, *more):
    return ("segment", images, "--model", "packaged", "--device", "cpu", "--label-maps", output, *more)


def interrupt_after(count, monkeypatch):
    """Let the command end as by ctrl-C at the image after `count`."""
    predict, calls = segment_images._predict, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) > count:
            raise KeyboardInterrupt
        return predict(*arguments)

    monkeypatch.setattr(segment_images, "_predict", interrupted)
    return calls


def test_an_interrupted_run_continues(images, tmp_path, monkeypatch):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert command(*words(images, whole)).exit_code == 0
    assert len(label_maps(whole)) == 5 and not (whole / LOG_NAME).exists()
    with monkeypatch.context() as patch:
        interrupt_after(3, patch)
        assert command(*words(images, resumed)).exit_code != 0
    kept = {path: (resumed / path).stat().st_mtime_ns for path in label_maps(resumed)}
    assert 2 <= len(kept) <= 3 and (resumed / LOG_NAME).exists()
    calls = interrupt_after(5, monkeypatch)
    done = command(*words(images, resumed, "--resume"))
    assert done.exit_code == 0 and f"{len(kept)} of 5 images have results already" in done.stdout
    assert len(calls) == 5 - len(kept) and not (resumed / LOG_NAME).exists()
    assert kept.items() <= {path: (resumed / path).stat().st_mtime_ns for path in label_maps(resumed)}.items()
    for path, expected in label_maps(whole).items():
        np.testing.assert_array_equal(label_maps(resumed)[path], expected)


def test_a_log_of_other_options_is_not_continued(images, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(1, patch)
        assert command(*words(images, tmp_path / "maps")).exit_code != 0
    log = tmp_path / "maps" / LOG_NAME
    done = command(*words(images, tmp_path / "maps", "--resume", "--flip"))
    assert done.exit_code == 1 and f"{log} is of a run with another protocol" in done.stderr.replace("\n", "")
    log.write_text("{")
    done = command(*words(images, tmp_path / "maps", "--resume"))
    assert done.exit_code == 1 and "cannot be read: delete it" in done.stderr.replace("\n", "")
    assert command(*words(images, tmp_path / "maps")).exit_code == 0 and not log.exists()
    done = command(*words(images / "first" / "0.png", tmp_path / "maps", "--resume"))
    assert "--resume needs several images or a folder" in done.stderr


def test_an_image_that_fails_does_not_stop_the_others(images, tmp_path):
    (images / "first" / "1.png").write_bytes(b"no image")
    done = command(*words(images, tmp_path / "maps", "--json"))
    assert done.exit_code == 1
    document = json.loads(done.stdout)
    assert [one["image"][-5:] for one in document["images"]] == ["0.png", "2.png", "3.png", "4.png"]
    assert [one["image"] for one in document["failed"]] == [str(images / "first" / "1.png")]
    assert len(label_maps(tmp_path / "maps")) == 4


# slow: two processes import and load the model
@pytest.mark.slow
def test_processes_share_the_images(images, tmp_path):
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert command(*words(images, alone)).exit_code == 0
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = [str(word) for word in words(images, shared, "--json")]
    done = subprocess.run(
        [*start, "-m", "segtransformers", *arguments],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    document = json.loads(done.stdout)
    assert sorted(one["image"] for one in document["images"]) == sorted(map(str, images.rglob("*.png")))
    for path, expected in label_maps(alone).items():
        np.testing.assert_array_equal(label_maps(shared)[path], expected)
