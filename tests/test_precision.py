# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`--precision` of the commands."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from segtransformers import packaged_model_path
from segtransformers.cli import app
from segtransformers.datasets.scenes import write_scenes
from segtransformers.inference import precision
from segtransformers.inference.precision import has_fast_bfloat16, inference_dtype


def command(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.parametrize("fast", [False, True])
def test_names_of_precisions(fast, monkeypatch):
    monkeypatch.setattr(precision, "has_fast_bfloat16", lambda device: fast)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert inference_dtype("auto", cpu) == (torch.bfloat16 if fast else torch.float32)
    assert (inference_dtype("fp32", cpu), inference_dtype("bf16", cpu)) == (torch.float32, torch.bfloat16)
    assert inference_dtype("fp16", gpu) == torch.float16
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        inference_dtype("fp16", cpu)
    with pytest.raises(ValueError, match="precision must be auto, fp32, bf16, fp16, got 'float32'"):
        inference_dtype("float32", cpu)


@pytest.mark.parametrize(
    ("capabilities", "fast"),
    [({"amx_bf16": True}, True), ({"avx512_bf16": True}, True), ({"avx512_f": True}, False), (None, False)],
)
def test_cpus_with_fast_bfloat16(capabilities, fast, monkeypatch):
    """Versions of torch that cannot tell count as slow."""
    if capabilities is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert has_fast_bfloat16(torch.device("cpu")) == fast and not has_fast_bfloat16(torch.device("mps"))


def test_commands_refuse_what_is_not_possible(tmp_path):
    for words, message in (
        (["--precision", "fp16", "--device", "cpu"], "error: --precision fp16 needs a GPU: a CPU takes fp32, bf16"),
        (["--precision", "half"], "error: --precision must be auto, fp32, bf16, fp16, got 'half'"),
    ):
        done = command("segment", "--output", tmp_path / "drawn.png", *words)
        assert done.exit_code == 1 and message in done.stderr and not list(tmp_path.iterdir())
    file = tmp_path / "model.onnx"
    file.touch()
    done = command("segment", "--model", file, "--precision", "bf16", "--output", tmp_path / "drawn.png")
    assert "--precision bf16: an exported file keeps the precision of its export" in done.stderr


# slow: the second case has 200 scenes
@pytest.mark.parametrize("scenes", [4, pytest.param(200, marks=pytest.mark.slow)])
def test_bfloat16_labels_equal_those_of_float32(scenes, tmp_path):
    data = write_scenes(tmp_path / "scenes", scenes, size=(128, 192))
    results, maps = {}, {}
    for name in ("fp32", "bf16"):
        output, predictions = tmp_path / f"{name}.json", tmp_path / name
        words = ("--device", "cpu", "--output", output, "--save-predictions", predictions, "--precision", name)
        done = command("evaluate", "--model", packaged_model_path(), "--data", data, *words)
        assert done.exit_code == 0, done.output
        results[name] = json.loads(output.read_text())
        maps[name] = [np.asarray(Image.open(path)) for path in sorted(predictions.rglob("*.png"))]
    assert [results[name]["protocol"]["dtype"] for name in results] == ["float32", "bfloat16"]
    assert len(maps["fp32"]) == scenes
    equal = np.mean([(one == other).mean() for one, other in zip(maps["fp32"], maps["bf16"], strict=True)])
    assert 0.995 < equal < 1
    assert results["bf16"]["mean_iou"] == pytest.approx(results["fp32"]["mean_iou"], abs=3e-3)
