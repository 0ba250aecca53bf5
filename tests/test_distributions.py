# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The wheel and the source distribution: what they hold, and what PyPI shows."""

import email
import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from segtransformers import __version__

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
    for needed in (
        "pyproject.toml",
        "README.md",
        "docs/conf.py",
        "examples/README.md",
        "space/app.py",
        "notebooks",
        "kernels",
    ):
        assert any(name == needed or name.startswith(f"{needed}/") for name in names), needed
    assert {path.name for path in (ROOT / "tests").glob("*.py")} <= {Path(name).name for name in names}
    assert not any(name.startswith((".hypothesis", "docs/_build", "docs/generated", ".ci")) for name in names)


# slow: it runs hundreds of tests in another process, for minutes
@pytest.mark.slow
def test_tests_run_from_the_source_distribution(built, tmp_path):
    """Parts that need files beside the tests: recorded cases, published rows, docs, examples, the Space, kernels."""
    with tarfile.open(built[1]) as file:
        file.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    parts = ["test_vit_adapter", "test_metrics", "test_recipes", "test_readme", "test_examples", "test_push_kernels"]
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "0",
        "-q",
        "-k",
        "not export",
        *(f"tests/{part}.py" for part in parts),
    ]
    environment = {**os.environ, "PYTHONPATH": str(folder / "src")}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 100
    place = "import segtransformers; print(segtransformers.__file__)"
    shown = subprocess.run([sys.executable, "-c", place], cwd=folder, env=environment, capture_output=True, text=True)
    assert Path(shown.stdout.strip()).is_relative_to(folder)


def test_versions_and_dates_agree():
    about = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version, date = re.search(r"^## (\S+) - (\d{4}-\d\d-\d\d)$", changes, re.MULTILINE).groups()
    assert about["version"] == version == __version__
    assert str(about["date-released"]) == date
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)


def test_workflows_publish_by_trusted_publishing():
    """Both packages, from a tag only, without a password; and CI has the systems and versions that are promised."""
    workflows = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "workflows").glob("*.yml")}
    for name, environment in (("release", "pypi"), ("wheels", "pypi-kernels")):
        job = workflows[name]["jobs"]["publish"]
        assert job["permissions"] == {"id-token": "write"} and job["environment"] == environment
        publish = job["steps"][-1]
        assert publish["uses"].startswith("pypa/gh-action-pypi-publish@") and "with" not in publish
        triggers = workflows[name][True]  # YAML reads the key `on` as true
        assert triggers["push"].keys() == {"tags"}
    matrix = workflows["ci"]["jobs"]["tests"]["strategy"]["matrix"]
    classifiers = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert matrix["python"] == classifiers
    assert {"macos-latest", "windows-latest"} == {one["os"] for one in matrix["include"]}


def test_wheels_of_the_operators_are_built_once_for_all_versions_of_python():
    if importlib.util.find_spec("cibuildwheel") is None:
        pytest.skip("cibuildwheel reads its settings: pip install cibuildwheel")
    words = [sys.executable, "-m", "cibuildwheel", "kernels/deformable-ops", "--platform", "linux"]
    words += ["--archs", "x86_64,aarch64", "--print-build-identifiers"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["cp312-manylinux_x86_64", "cp312-manylinux_aarch64"], done.stderr
