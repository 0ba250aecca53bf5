# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`scripts/gpu_day --dry-run`: everything that a day with a GPU runs but the launches."""

import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from segtransformers.operators import dispatcher

ROOT = Path(__file__).parents[1]


def gpu_day(output: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts" / "gpu_day"), "--output", str(output), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def results_of(output: Path) -> dict:
    return json.loads((output / "results.json").read_text())["results"]


def test_operators_are_checked_timed_and_resumed(kernel_build, tmp_path):
    sources = tmp_path / "mmcv-9.9" / "mmcv" / "ops" / "csrc" / "pytorch" / "cuda"
    sources.mkdir(parents=True)
    (sources / "ms_deform_attn_cuda.cu").write_text("// mmcv's\n")
    with tarfile.open(tmp_path / "mmcv.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "mmcv-9.9", "mmcv-9.9")
    output = tmp_path / "day"
    options = ["--dry-run", "--library", str(kernel_build), "--mmcv", str(tmp_path / "mmcv.tar.gz")]
    ran = gpu_day(output, *options, "--parts", "bc")
    assert ran.returncode == 0, ran.stderr[-2000:]
    errors = results_of(output)["b: errors against float64"]["data"]["errors"]
    assert len(errors) == 4 * 4
    for name, error in errors.items():
        assert 0 < error["output"] < error["bound"] and 0 < error["gradients"] < error["bound"], name
    results = results_of(output)
    assert {item["state"] for item in results.values()} == {"done"} and len(results) == 1 + 1 + 2 * 3
    assert (output / "mmcv" / "mmcv-9.9" / "mmcv" / "ops" / "csrc" / "pytorch" / "cuda").is_dir()
    times = results["c: attention, forward"]["data"]["times"]
    for kind in ("float32", "float16", "bfloat16"):
        assert {f"{kind}, {name}" for name in ("ours", "ours, softmax fused", "grid_sample", "floor")} <= times.keys()
    assert all(entry["us"] > 0 for entry in times.values())
    assert set(results["c: DCNv4, backward"]["data"]["times"]) >= {"float16, ours", "float16, floor"}

    # the same command continues: one result is missing
    saved = json.loads((output / "results.json").read_text())
    del saved["results"]["c: DCNv3, forward"]
    (output / "results.json").write_text(json.dumps(saved))
    ran = gpu_day(output, *options, "--parts", "bc", "--minutes", "0")
    assert ran.returncode == 0 and "b: errors against float64: done before" in ran.stdout
    assert "c: DCNv3, forward: left for the next run" in ran.stdout and "| c: DCNv3, forward | left |" in ran.stdout


@pytest.mark.slow
def test_wrong_operators_fail(kernel_build, tmp_path):
    wrong = tmp_path / "wrong"
    shutil.copytree(kernel_build / "build", wrong / "build")
    for path in wrong.glob("build/*/functions.py"):
        text = path.read_text().replace(
            "    return ops.dcnv3(\n        value,", "    return ops.dcnv3(\n        1.01 * value,"
        )
        assert "1.01" in text
        path.write_text(text)
    ran = gpu_day(tmp_path / "day", "--dry-run", "--library", str(wrong), "--parts", "b")
    assert ran.returncode == 1
    failed = results_of(tmp_path / "day")["b: errors against float64"]
    assert failed["state"] == "failed" and "dcnv3, float32: 1.0e-02 > 2e-05" in failed["reason"]
    assert "ms_deform_attn" not in failed["reason"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--parts", "xyz"], "--parts must be letters from a to g"),
        (["--mmcv", "nowhere.tar.gz"], "--mmcv nowhere.tar.gz is no file: pip download"),
    ],
)
def test_wrong_options_are_errors(tmp_path, options, message):
    ran = gpu_day(tmp_path, "--dry-run", *options)
    assert ran.returncode == 2 and message in ran.stderr


@pytest.mark.slow
@pytest.mark.skipif(platform.system() != "Linux", reason="the emulation needs ucontext")
def test_whole_dry_run_in_the_emulation(tmp_path, monkeypatch):
    """All parts, with the CUDA sources in the emulation of their tests. Compiling them takes a minute."""
    monkeypatch.setenv("CXXFLAGS", "-O1")
    dispatcher.build_script().build(tmp_path, emulate=True)
    monkeypatch.delenv("CXXFLAGS")
    ran = gpu_day(tmp_path / "day", "--dry-run", "--library", str(tmp_path), "--minutes", "60")
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-2000:]
    results = results_of(tmp_path / "day")
    done = {key for key, item in results.items() if item["state"] == "done"}
    assert {"b: errors against float64", "a: tests", "e: training step, ViT-Adapter-T, bfloat16"} <= done
    assert {"f: labels of 200 scenes", "d: vit-adapter-t-upernet, eager and graph, batch 1"} <= done
    assert results["a: tests"]["data"]["tests"] > 100
    assert "emulated" in results["a: build for this GPU"]["data"]["identifiers"][0]
    reasons = {item["reason"] for item in results.values() if item["state"] == "skipped"}
    assert any("million parameters" in reason for reason in reasons)
