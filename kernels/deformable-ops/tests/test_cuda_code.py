# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The CUDA code on a machine without a GPU: results in an emulation, and registers in nvcc's output."""

import importlib.util
import os
import platform
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

PROJECT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("build_deformable_ops", PROJECT / "build.py")
build_script = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = build_script
spec.loader.exec_module(build_script)


@pytest.mark.skipif(platform.system() != "Linux", reason="the emulation needs ucontext")
def test_emulated_kernels_pass_all_tests(tmp_path, monkeypatch):
    """Compile the unchanged sources for the CPU, with emulated threads and shuffles (tests/emulation.h)."""
    if "DEFORMABLE_OPS_EMULATION" in os.environ:
        pytest.skip("this process runs the tests in the emulation")
    monkeypatch.setenv("CXXFLAGS", "-O1")
    try:
        build_script.build(tmp_path, emulate=True)
    except build_script.BuildError as error:
        if "C++ compiler" in str(error) and "is missing" in str(error):
            pytest.skip(str(error))
        raise
    tests = [str(PROJECT / "tests" / name) for name in ("test_numbers.py", "test_integration.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *tests]
    # the tests that do not run the kernels are left out
    command += ["-k", "not instruction_sets and not compiles_once and not metadata and not opcheck"]
    environment = {**os.environ, "DEFORMABLE_OPS_FOLDER": str(tmp_path), "DEFORMABLE_OPS_EMULATION": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    assert re.search(r"\d+ passed", result.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["8.0", "9.0"])
def test_nvcc_spills_no_registers(tmp_path, capability):
    """The kernels use no local memory, and few enough registers for several blocks on a multiprocessor."""
    try:
        nvcc = build_script.find_nvcc([capability])
    except build_script.BuildError as error:
        pytest.skip(str(error))

    def compile_(source: Path) -> str:
        target = str(tmp_path / f"{source.stem}.o")
        flags = [*nvcc.flags(build_script.find_compiler()), "-Xptxas=-v", "-c", str(source), "-o", target]
        result = subprocess.run([nvcc.path, *flags], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stderr

    with ThreadPoolExecutor(2) as pool:
        output = "".join(pool.map(compile_, sorted((PROJECT / "cuda").glob("*.cu"))))
    kernels = re.findall(r"Compiling entry function '(\w+)'(.*?)Used (\d+) registers", output, re.DOTALL)
    assert len(kernels) == 2 * (3 * 5 + 2)
    for name, properties, registers in kernels:
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in properties, name
        blocks = (2 if "kernelILb1" in name else 3) - (1 if "EdLi" in name else 0)
        assert int(registers) <= min(255, 65536 // (256 * blocks)), name


def test_missing_or_wrong_nvcc_is_an_error_if_requested(monkeypatch, tmp_path):
    """Without a GPU, nvcc is needed only with `--cuda`."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = build_script.read_config(PROJECT)
    assert build_script._wanted_nvcc(config, None) is None and build_script._wanted_nvcc(config, False) is None

    old = tmp_path / "nvcc"
    old.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 11.8, V11.8.89'\n")
    old.chmod(0o755)
    monkeypatch.setenv("CUDACXX", str(old))
    with pytest.raises(build_script.BuildError, match=r"belongs to CUDA 11\.8, but torch was built for CUDA 13\.0"):
        build_script._wanted_nvcc(config, True)
    monkeypatch.setattr(build_script.shutil, "which", lambda name: None)
    with pytest.raises(build_script.BuildError, match="the CUDA compiler nvcc is missing: install CUDA 13"):
        build_script._wanted_nvcc(config, True)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(build_script.BuildError, match="was built without CUDA"):
        build_script._wanted_nvcc(config, True)


def test_build_is_for_the_gpu_of_this_machine(monkeypatch, capsys):
    """If nvcc is missing, the build is for the CPU and prints the reason."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    config = build_script.read_config(PROJECT)
    requested = []
    monkeypatch.setattr(build_script, "find_nvcc", lambda capabilities, portable=False: requested.append(capabilities))
    build_script._wanted_nvcc(config, None)
    build_script._wanted_nvcc(config, True)
    assert requested == [["8.9"], ["8.0", "8.6", "8.9", "9.0", "10.0", "12.0"]]

    def missing(capabilities, portable=False):
        raise build_script.BuildError("the CUDA compiler nvcc is missing")

    monkeypatch.setattr(build_script, "find_nvcc", missing)
    assert build_script._wanted_nvcc(config, None) is None
    assert "building for the CPU only: the CUDA compiler nvcc is missing" in capsys.readouterr().err
