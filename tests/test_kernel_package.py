# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The package segtransformers-kernels: found without a compiler, and built as one wheel for many machines."""

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from segtransformers.hub.kernel_publishing import newest_symbol
from segtransformers.operators import dispatcher

PROJECT = Path(__file__).parents[1] / "kernels" / "deformable-ops"


def fake_build(folder: Path, identifier: str, version: int = 1, backend: dict | None = None) -> Path:
    """Write the metadata of a build; `loading` pretends to load it."""
    variant = folder / "build" / "torch-stable-abi210-cpu-x86_64-linux"
    variant.mkdir(parents=True)
    metadata = {"id": identifier, "version": version, "backend": backend or {"type": "cpu"}}
    (variant / "metadata.json").write_text(json.dumps(metadata))
    return folder


@pytest.fixture
def loading(monkeypatch, tmp_path):
    """Hide the kernels of this machine, and let the dispatcher load fake builds, whose names are recorded."""
    loaded = []

    def load_folder(folder):
        (path,) = folder.glob("build/*/metadata.json")
        identifier = json.loads(path.read_text())["id"]
        loaded.append(identifier)
        functions = dict.fromkeys(dispatcher.OPERATORS)
        return SimpleNamespace(
            __file__=str(path.with_name("__init__.py")),
            add_op_namespace_prefix=lambda name: f"{identifier}::{name}",
            **functions,
        )

    monkeypatch.setattr(dispatcher, "load_folder", load_folder)
    monkeypatch.setattr(dispatcher, "build_script", lambda: SimpleNamespace(source_hash=lambda: "current"))
    monkeypatch.setattr(dispatcher, "sources", lambda: None)
    monkeypatch.setattr(dispatcher, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(dispatcher, "package_folder", lambda: tmp_path / "package")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("LOCAL_KERNELS", "SEGTRANSFORMERS_KERNELS_REPO", "SEGTRANSFORMERS_KERNELS"):
        monkeypatch.delenv(name, raising=False)
    dispatcher.reset()
    yield loaded
    dispatcher.reset()


def test_package_comes_after_local_kernels_and_before_the_cache(loading, monkeypatch, tmp_path):
    fake_build(tmp_path / "cache", "_cache_current")
    fake_build(tmp_path / "package", "_package_other")  # the package may be made from other sources
    assert dispatcher.find_kernel().origin == "the package segtransformers-kernels"
    assert "segtransformers-kernels" in dispatcher.describe()
    monkeypatch.setenv("LOCAL_KERNELS", f"{dispatcher.KERNEL_ID}={fake_build(tmp_path / 'local', '_local')}")
    dispatcher.reset()
    assert dispatcher.find_kernel().origin.endswith("of LOCAL_KERNELS")
    assert loading == ["_package_other", "_local"]


def test_package_of_another_version_is_skipped(loading, tmp_path):
    fake_build(tmp_path / "package", "_package", version=2)
    fake_build(tmp_path / "cache", "_cache_current")
    assert dispatcher.find_kernel().origin == str(tmp_path / "cache" / "build")
    (problem,) = dispatcher._state.problems
    assert "operators have version 2, but this segtransformers needs 1" in problem
    assert "segtransformers-kernels==1.*" in problem


def test_build_with_code_for_the_gpu_is_preferred(loading, monkeypatch, tmp_path):
    """A package without CUDA code does not hide a build of the cache that has it."""
    fake_build(tmp_path / "package", "_package")
    cuda = {"type": "cuda", "archs": ["9.0"]}
    fake_build(tmp_path / "cache", "_cache_current", backend=cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert dispatcher.find_kernel().devices == {"cpu", "cuda"} and loading == ["_package", "_cache_current"]
    shutil.rmtree(tmp_path / "cache")
    dispatcher.reset()
    assert dispatcher.find_kernel().origin == "the package segtransformers-kernels"


def test_versions_agree():
    """Of the wheel, of its operators, and the one that the dispatcher and the extra ask for."""
    import tomllib

    kernel = tomllib.loads((PROJECT / "build.toml").read_text())["general"]["version"]
    wheel = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    package = tomllib.loads((PROJECT.parents[1] / "pyproject.toml").read_text())["project"]
    assert kernel == dispatcher.VERSION == int(wheel["version"].partition(".")[0])
    assert package["optional-dependencies"]["kernels"] == [f"{wheel['name']}>={kernel},<{kernel + 1}"]
    assert set(wheel["dependencies"]) <= set(package["dependencies"])
    assert (PROJECT / "LICENSE").read_bytes() == (PROJECT.parents[1] / "LICENSE").read_bytes()


def test_undefined_functions_are_found(kernel_build):
    """The reader of ELF files finds the functions of torch that a build takes from it."""
    spec = importlib.util.spec_from_file_location("portable", PROJECT / "portable.py")
    portable = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(portable)
    (library,) = (kernel_build / "build").glob("*-cpu-*/*.so")
    functions = portable.undefined_functions(library)
    assert {"torch_call_dispatcher", "aoti_torch_get_data_ptr", "aoti_torch_check"} <= set(functions)
    assert all(name.startswith(("torch_", "aoti_torch_")) for name in functions)
    source = portable.late_binding(functions, ["libtorch_cpu.so"], platform.machine())
    assert all(f'"{name}"' in source and f"{name}: " in source for name in functions)


def test_build_without_a_compiler_ends_with_one_sentence(monkeypatch, tmp_path):
    """pip shows what the hook prints: the reason, and that the package is not needed."""
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("hatch_build", PROJECT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    hook = module.KernelBuildHook(str(PROJECT), {}, None, None, str(tmp_path), "wheel")
    monkeypatch.setenv("CXX", "missing-compiler")  # in place of ziglang's
    with pytest.raises(
        SystemExit, match=r"cannot be built here: the C\+\+ compiler 'missing-compiler' is missing"
    ) as ended:
        hook.initialize("standard", {"force_include": {}})
    assert str(ended.value).endswith("segtransformers works without this package, in plain PyTorch.")
    monkeypatch.setenv("DEFORMABLE_OPS_CUDA", "yes")
    with pytest.raises(SystemExit, match="DEFORMABLE_OPS_CUDA must be 0, 1 or unset, got 'yes'"):
        hook.initialize("standard", {"force_include": {}})


USE = """
import shutil, sys, torch
assert shutil.which("c++") is None and shutil.which("g++") is None and shutil.which("nvcc") is None
from segtransformers import ViTAdapterBackbone
from segtransformers.operators import accelerate, compiled_operators, dispatcher
from segtransformers.operators.check import check_kernel
kernel = dispatcher.find_kernel()
assert kernel.origin == "the package segtransformers-kernels", dispatcher.describe()
assert check_kernel(kernel.functions, "cpu") < 0.5
locations = torch.zeros(1, 1, 2, 1, 1, 2)
try:
    kernel.functions.ops.ms_deform_attn(torch.zeros(1, 4, 2, 4), [2, 3], locations, locations[..., 0])
except RuntimeError as error:
    assert str(error) == "value has 4 tokens, but the levels [2, 3] have 6", error
else:
    raise AssertionError
sys.path.insert(0, "tests")
from test_vit_adapter import small_config
model, images = ViTAdapterBackbone(small_config()).eval(), torch.randn(1, 3, 64, 96)
with torch.no_grad(), compiled_operators("force"):
    result = model(images).feature_maps
with torch.no_grad(), compiled_operators("off"):
    expected = model(images).feature_maps
assert all(torch.allclose(*pair, atol=1e-4, rtol=1e-4) for pair in zip(result, expected))
print("used", torch.__version__)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.system() != "Linux", reason="portable wheels are for Linux")
def test_wheel_serves_without_a_compiler(tmp_path):
    """Build the wheel, check its tag and symbols, and use it in a process that finds no compiler."""
    for name in ("build", "hatchling", "ziglang"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"the wheel is built with the package {name}")
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path), str(PROJECT)]
    environment = {**os.environ, "DEFORMABLE_OPS_CUDA": "0"}
    environment.pop("CXX", None)
    subprocess.run(command, check=True, env=environment, cwd=tmp_path, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith(f"-py3-none-manylinux_2_28_{platform.machine()}.whl")
    assert wheel.stat().st_size < 2**20
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    (library,) = (tmp_path / "installed").glob("segtransformers_kernels/build/*/*.so")
    assert newest_symbol(library) is None
    assert b"libtorch_cpu.so\0" in library.read_bytes() and b"libstdc++" not in library.read_bytes()
    if importlib.util.find_spec("auditwheel") is not None:
        shown = subprocess.run(
            [sys.executable, "-m", "auditwheel", "show", str(wheel)], check=True, capture_output=True, text=True
        ).stdout
        assert 'platform tag: "manylinux_2_' in " ".join(shown.split())
    source = str(Path(dispatcher.__file__).parents[2])
    environment = {
        "PYTHONPATH": f"{tmp_path / 'installed'}{os.pathsep}{source}",
        "PATH": str(tmp_path),
        "HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
    }
    result = subprocess.run(
        [sys.executable, "-c", USE], env=environment, cwd=PROJECT.parents[1], capture_output=True, text=True
    )
    assert result.returncode == 0 and "used" in result.stdout, result.stderr[-2000:]
