# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Run every notebook from its first cell to its last, with some of its parameters changed."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from reference_cases import ReferenceCase

from segtransformers import example_image_path
from segtransformers.published import published_rows

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed (extra `notebooks`)")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (extra `notebooks`)")
pytest.importorskip("ipykernel", reason="ipykernel is not installed (extra `notebooks`)")

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MAX_BYTES = 200_000  # of a notebook with its outputs
TIMEOUT = 600  # seconds for a cell, on a busy machine


def executed(name: str, folder: Path, monkeypatch, **parameters) -> list[str]:
    """Run a notebook and return the printed text of each code cell.

    Args:
        parameters: assignments that are appended to the notebook's cell of parameters.
    """
    monkeypatch.setenv("SEGTRANSFORMERS_KERNELS", "off")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    (path,) = [path for path in NOTEBOOKS if path.stem == name]
    notebook = nbformat.read(path, as_version=4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    cell.source += "".join(f"\n{key} = {value!r}" for key, value in parameters.items())
    client = nbclient.NotebookClient(
        notebook, timeout=TIMEOUT, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    return [
        "".join(output.get("text", "") for output in cell.outputs if output.get("name") == "stdout")
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def test_there_is_a_notebook_for_each_topic():
    names = ["01_inference", "02_fine_tuning", "03_evaluation", "04_converting", "05_export_and_operators"]
    names += ["06_satellite_images"]
    assert [path.stem for path in NOTEBOOKS] == names
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"(notebooks/{name}.ipynb)" in readme for name in names)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_small(path):
    """`scripts/run_notebooks.py` stores them, without warnings and paths of its machine."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < MAX_BYTES
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert outputs and not [output for output in outputs if output.get("name") == "stderr"]
    assert not any("/tmp/" in str(output.get("text")) for output in outputs)


def test_inference(tmp_path, monkeypatch):
    Image.open(example_image_path()).crop((0, 0, 160, 130)).save(tmp_path / "own.png")  # a small image
    printed = executed("01_inference", tmp_path, monkeypatch, image_file=str(tmp_path / "own.png"))
    assert "meadow" in "".join(printed) and (tmp_path / "labels.png").exists()


def test_fine_tuning(tmp_path, monkeypatch):
    printed = executed("02_fine_tuning", tmp_path, monkeypatch, steps=12)
    assert "24 images to train with, 6 to test with; classes: {0: 'nature', 1: 'building', 2: 'traffic'}" in printed[2]
    before, after = [float(part.split(" %")[0].split()[-1]) for part in printed[4].split("mean IoU")[-1].split("and")]
    assert after > before
    assert (tmp_path / "trained" / "model.safetensors").exists()


def test_evaluation(tmp_path, monkeypatch):
    printed = executed("03_evaluation", tmp_path, monkeypatch)
    assert printed[1] == "4 images, 10 classes\n"
    share = float(printed[3].split("mean IoU ")[1].split(" %")[0])
    assert 60 < share < 100
    assert f"{share:.2f} %" in printed[-1]  # counted again by the metric alone


# by default the notebook converts its own file, and test_conversion.py files like this one
@pytest.mark.slow
def test_converting(tmp_path, monkeypatch):
    """Convert a user's file of a small model, with its config inside as mmcv writes it."""
    case = ReferenceCase("vit_adapter/tiny-vit-light-upernet")
    pipeline = published_rows("vit_adapter")["upernet_augreg_adapter_base_512_160k_ade20k"]["test_pipeline"]
    meta = {"CLASSES": tuple(case.manifest["meta"]["CLASSES"]), "PALETTE": case.manifest["meta"]["PALETTE"]}
    meta["config"] = f"model = {case.config!r}\ntest_pipeline = {pipeline!r}\n"
    file = tmp_path / "mine.pth"
    torch.save({"meta": meta, "state_dict": case.state_dict(torch.float32)}, file)
    printed = executed("04_converting", tmp_path, monkeypatch, checkpoint=str(file), family="vit_adapter")
    assert "vit_adapter" in printed[1] and "verified: " in printed[3] and "preprocessor_config.json" in printed[3]
    assert "over ViTAdapterBackbone" in printed[4]


def test_converting_a_file_that_the_notebook_makes(tmp_path, monkeypatch):
    printed = executed("04_converting", tmp_path, monkeypatch)
    assert "0 unused" in printed[3] and "verified: " in printed[3] and "over SegmenterViTBackbone" in printed[4]


def test_export_and_operators(tmp_path, monkeypatch):
    printed = executed("05_export_and_operators", tmp_path, monkeypatch)
    assert "of the model's" in printed[2] and "'height': 128" in printed[3] and "sky" in printed[4]
    assert "off " in printed[-1] and (tmp_path / "model.onnx").exists()


def test_satellite_images(tmp_path, monkeypatch):
    pytest.importorskip("rasterio", reason="rasterio is not installed (extra `geo`)")
    printed = executed("06_satellite_images", tmp_path, monkeypatch, steps=10)
    assert "24 tiles to train with, 8 to test with" in printed[2] and "of type uint16" in printed[2]
    before, after = [float(part.split(" %")[0].split()[-1]) for part in printed[4].split("mean IoU")[-1].split("and")]
    assert after > before + 10
    assert "EPSG:32633 600 x 400 pixels, nodata 255.0" in printed[5] and "hectares" in printed[5]
    assert float(printed[6].split("right: ")[1].split(" %")[0]) > 40
    assert (tmp_path / "trained" / "model.safetensors").exists() and (tmp_path / "classes.tif").exists()
