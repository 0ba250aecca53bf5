# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The wheel and the source distribution: what they hold, and what PyPI shows."""

import email
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Return the paths of the wheel and of the source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    # by the tools of this environment, so that no network is needed
    words = [sys.executable, "-m", "build", "--no-isolation", "--sdist", "--wheel", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (sources,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sources


def test_pypi_accepts_both(built):
    done = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *built], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_wheel(built):
    with zipfile.ZipFile(built[0]) as file:
        names = set(file.namelist())
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        about = email.message_from_bytes(file.read(metadata))
    for needed in (
        "py.typed",
        "packaged/scenes-vit-adapter/model.safetensors",
        "published/rows/vit_adapter.json",
        "training/report.css",
        "hub/model_card_template.md",
        "kernel_sources/deformable-ops/build.py",
        "kernel_sources/deformable-ops/cpu/operators.cpp",
    ):
        assert f"segtransformers/{needed}" in names
    assert all(name.startswith("segtransformers") for name in names) and not any("/tests/" in name for name in names)
    assert about["License-Expression"] == "Apache-2.0" and "segtransformers" in about["Project-URL"]
    # links to files of the repository are whole addresses
    assert "](docs/" not in about.get_payload() and "/main/docs/_static/example.png)" in about.get_payload()


def test_source_distribution_has_what_its_tests_need(built):
    with tarfile.open(built[1]) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    for needed in ("pyproject.toml", "README.md", "docs/conf.py", "tests/conftest.py", "notebooks", "kernels"):
        assert any(name == needed or name.startswith(f"{needed}/") for name in names), needed
    assert {path.name for path in (ROOT / "tests").glob("*.py")} <= {Path(name).name for name in names}
    assert not any(name.startswith((".hypothesis", "docs/_build", "docs/generated", ".ci")) for name in names)
