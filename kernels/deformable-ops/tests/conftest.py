# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The tests load the build in the kernel's folder, or in the folder DEFORMABLE_OPS_FOLDER."""

import json
import os
from pathlib import Path

import kernels
import pytest
import torch

FOLDER = Path(os.environ.get("DEFORMABLE_OPS_FOLDER") or Path(__file__).parents[1])
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs a CUDA device and a build for it; run with -m gpu")


@pytest.fixture(scope="session")
def ops():
    """The kernel as a module. Without a build all tests fail."""
    try:
        return kernels.get_local_kernel(FOLDER)
    except FileNotFoundError:
        return kernels.get_local_kernel(FOLDER, backend="cpu")


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="torch finds no CUDA device"))


@pytest.fixture(scope="session")
def gpu(ops):
    """Skip a test if the build has no CUDA code."""
    if not json.loads(Path(ops.__file__).with_name("metadata.json").read_text())["backend"].get("archs"):
        pytest.skip("the build has no CUDA code: build it with --cuda, or on a machine with nvcc and a GPU")


@pytest.fixture(scope="session", params=DEVICES)
def device(request):
    if request.param == "cuda":
        request.getfixturevalue("gpu")
    return request.param


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
