# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Settings of all tests: no network, one core per worker, a fixed seed."""

import atexit
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("HF_HOME", None)  # some tests set XDG_CACHE_HOME, which it would override
# the user's cache is neither read nor written; tests of its place unset this
os.environ["SEGTRANSFORMERS_CACHE"] = tempfile.mkdtemp(prefix="segtransformers-tests-")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from filelock import FileLock
from typer.testing import CliRunner

atexit.register(shutil.rmtree, os.environ["SEGTRANSFORMERS_CACHE"], ignore_errors=True)
sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("model_tests", "stock_tools_tests")  # inherited tests show the values compared, too

# a shell's background jobs ignore Ctrl-C, and so would the processes that tests stop by it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


# a few kinds of model, which test_export_matrix.py leaves to -m slow; the others are exported with -m slow
EXPORTED_BY_DEFAULT = {
    "test_seg_linear.py::TestSegLinear",
    "test_seg_mask2former.py::TestOverViTAdapter",
    "test_seg_upernet.py::TestSegUperNet",
    "test_segmenter.py::TestMaskTransformer",
    "test_vit_simple_pyramid.py::TestEva02",
}


@pytest.hookimpl(tryfirst=True)  # before the options -m and -k select
def pytest_collection_modifyitems(items):
    for item in items:
        is_chosen = f"{item.path.name}::{item.parent.name}" in EXPORTED_BY_DEFAULT
        if is_chosen and item.name == "test_exports_with_a_dynamic_batch":
            item.own_markers = [marker for marker in item.own_markers if marker.name != "slow"]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef):
    """A fixture that many tests share is made before `seed`, and has the same weights whichever tests ran before."""
    if fixturedef.scope == "function":
        return (yield)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return (yield)


@pytest.fixture(scope="session")
def kernel_build(tmp_path_factory):
    """The folder of a fresh build, made once for all workers by `segtransformers build-kernels`."""
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("building the kernel needs a C++ compiler")
    from segtransformers.cli import app

    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = base / "kernel", base / "kernel-build.txt"
    with FileLock(base / "kernel.lock"):
        if not done.exists():
            result = CliRunner().invoke(app, ["build-kernels", "--output", str(folder)])
            assert result.exit_code == 0, result.output
            done.write_text(result.stdout, encoding="utf-8")
    return folder
