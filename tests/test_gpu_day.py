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


def gpu_day(output: Path, *options: str, path: Path = ROOT / "src") -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts" / "gpu_day"), "--output", str(output), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(path)}
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

    bounds = ran.stdout.partition("| bound | measured | wanted | result |")[2]
    assert "| c: attention, forward: float32, times as fast as mmcv |  | 1.5 | not measured |" in bounds
    assert "| c: attention, forward: float16, times as fast as mmcv |  | 2.5 | not measured |" in bounds
    assert "| c: attention, backward: float16, times as fast as mmcv |  | 3 | not measured |" in bounds
    assert "| c: DCNv4, forward: bfloat16, share of the gather floor |  | 0.5 | not measured |" in bounds

    # the same command continues: one result is missing, and in one item the process ended
    saved = json.loads((output / "results.json").read_text())
    del saved["results"]["c: DCNv3, forward"]
    saved["results"]["b: errors against float64"] = {"state": "running", "seconds": 0}
    (output / "results.json").write_text(json.dumps(saved))
    ran = gpu_day(output, *options, "--parts", "bc", "--minutes", "0")
    assert ran.returncode == 0 and "c: DCNv3, backward: done before" in ran.stdout
    assert "c: DCNv3, forward: left for the next run" in ran.stdout and "| c: DCNv3, forward | left |" in ran.stdout
    assert ran.stdout.index("c: DCNv4, backward: done before") < ran.stdout.index("b: errors against float64: left")


# Hides every package but torch and those that torch needs.
TORCH_ALONE = """
import sys
from importlib.machinery import PathFinder

class TorchAlone(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in {"transformers", "kernels", "timm", "scipy", "segtransformers", "pytest"}:
            return None
        return PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = TorchAlone
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
"""


def test_operators_need_torch_alone(kernel_build, tmp_path):
    """Parts a to c run, and the others are skipped with the reason."""
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks" / "sitecustomize.py").write_text(TORCH_ALONE)
    options = ["--dry-run", "--library", str(kernel_build), "--minutes", "30"]
    ran = gpu_day(tmp_path / "day", *options, path=tmp_path / "hooks")
    assert ran.returncode == 0, ran.stderr[-2000:]
    results = results_of(tmp_path / "day")
    assert results["b: errors against float64"]["state"] == results["c: attention, forward"]["state"] == "done"
    assert results["a: tests"]["reason"].startswith("the tests need pytest and kernels and transformers")
    others = {item["reason"] for key, item in results.items() if key[0] in "def"}
    assert others == {"this needs transformers and kernels and timm and scipy"}
    assert results["g: TensorRT engine of the packaged model"]["state"] == "skipped"


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
        (["--mmcv", "nowhere.tar.gz"], "--mmcv nowhere.tar.gz is no file: --help has"),
    ],
)
def test_wrong_options_are_errors(tmp_path, options, message):
    ran = gpu_day(tmp_path, "--dry-run", *options)
    assert ran.returncode == 2 and message in ran.stderr


@pytest.mark.slow
@pytest.mark.skipif(platform.system() != "Linux", reason="the emulation needs ucontext")
def test_whole_dry_run(kernel_build, tmp_path, monkeypatch):
    """All parts: a to c with the CUDA sources in the emulation of their tests, which takes a minute to compile.

    The emulation has no dense operators, so the others run with the build for this machine.
    """
    monkeypatch.setenv("CXXFLAGS", "-O1")
    dispatcher.build_script().build(tmp_path, emulate=True)
    monkeypatch.delenv("CXXFLAGS")
    for parts, library in (("abc", tmp_path), ("defg", kernel_build)):
        ran = gpu_day(tmp_path / "day", "--dry-run", "--library", str(library), "--minutes", "60", "--parts", parts)
        assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-2000:]
    results = results_of(tmp_path / "day")
    done = {key for key, item in results.items() if item["state"] == "done"}
    assert {"b: errors against float64", "a: tests", "e: training step, ViT-Adapter-T, bfloat16"} <= done
    assert {"f: labels of 200 scenes", "d: vit-adapter-t-upernet, eager and graph, batch 1"} <= done
    assert results["a: tests"]["data"]["tests"] > 100
    assert "emulated" in results["a: build for this GPU"]["data"]["identifiers"][0]
    reasons = {item["reason"] for item in results.values() if item["state"] == "skipped"}
    assert any("million parameters" in reason for reason in reasons)
