# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Model cards agree with their folders, and huggingface_hub reads their metadata."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard
from transformers import AutoConfig, AutoImageProcessor

from segtransformers import (
    InternImageBackbone,
    InternImageConfig,
    SegUperNetForSemanticSegmentation,
    packaged_model_path,
)
from segtransformers.conversion.report import ConversionReport
from segtransformers.hub.model_card import TEMPLATE, has_generated_card, model_card, write_model_card
from segtransformers.models.input_channels import with_input_channels
from segtransformers.published import published_row, published_rows
from segtransformers.published.originals import ORIGINALS

ROW = "upernet_deit_adapter_small_512_160k_ade20k"
DOCUMENT = (Path(__file__).parent.parent / "MODEL_CARD.md").read_text(encoding="utf-8")


def record(row: str | None = ROW, url: str | None = "https://github.com/a/b/releases/download/c/d.pth") -> dict:
    report = ConversionReport(used={"a": ["b"]}, unused={"c": "of the classifier"}, made={"d": "a counter"})
    return {
        "model": "SegUperNetForSemanticSegmentation, 2.1M parameters, 10 classes",
        "source": {"file": "d.pth", "size": 123456, "sha256": "ab" * 32, "url": url, "row": row},
        "config": "published config",
        "dtype": "float16",
        "license": None,
        "versions": {"segtransformers": "0.1.0", "torch": "2.14.1", "transformers": "5.24.0", "timm": "1.0.31"},
        "tensors_checked": 436,
        "verification": {"relative_error": 0.00123, "same_class": 0.99},
        "tensors": report.to_dict(),
    }


def results(**changes) -> dict:
    """Return the results that `segtransformers evaluate` writes, as far as the card reads them."""
    found = {
        "mean_iou": 0.46118,
        "images": 2000,
        "model": {"class": "SegUperNetForSemanticSegmentation", "num_labels": 10, "source_config": None},
        "data": {"kind": "ade20k", "split": "validation"},
        "protocol": {"scales": None, "flip": False, "window_size": [512, 512], "window_is_own": False},
        "software": {"segtransformers": "0.1.0", "torch": "2.14.1"},
    }
    for path, value in changes.items():
        part, _, key = path.partition("__")
        if key:
            found[part] = {**found[part], key: value}
        else:
            found[part] = value
    return found


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with the config of the packaged model, without weights, which cards do not read."""
    path = tmp_path / "converted"
    AutoConfig.from_pretrained(packaged_model_path()).save_pretrained(path)
    description = json.loads((path / "config.json").read_text())
    description["architectures"] = ["SegUperNetForSemanticSegmentation"]
    (path / "config.json").write_text(json.dumps(description))
    (path / "preprocessor_config.json").write_text((packaged_model_path() / "preprocessor_config.json").read_text())
    return path


def test_huggingface_hub_reads_the_metadata(folder):
    (folder / "conversion.json").write_text(json.dumps(record()))
    card = ModelCard(str(model_card(folder, repo_id="me/model", measured=[results()])))  # parsed again
    assert card.data.pipeline_tag == "image-segmentation" and card.data.library_name == "transformers"
    assert card.data.license == "apache-2.0" and card.data.metrics == ["mean_iou"]
    assert card.data.datasets == ["zhoubolei/scene_parse_150"] and card.data.base_model is None
    assert {"semantic-segmentation", "vit-adapter"} <= set(card.data.tags)
    figures = card.data.eval_results
    assert all(isinstance(figure, EvalResult) and figure.task_type == "image-segmentation" for figure in figures)
    row = published_row(ROW)
    reported = [figure for figure in figures if figure.source_name == "reported by the authors"]
    assert [figure.metric_value for figure in reported] == [row["miou"], row["miou_ms"]]
    assert all("reported by the authors" in figure.metric_name for figure in reported)
    (measured,) = [figure for figure in figures if figure not in reported]
    assert measured.metric_value == 46.12 and "measured with segtransformers" in measured.metric_name
    assert measured.source_url == "https://huggingface.co/me/model" and measured.dataset_split == "validation"
    assert card.data.model_name == "model"


def test_reported_and_measured_figures_have_separate_tables(folder):
    (folder / "conversion.json").write_text(json.dumps(record()))
    text = model_card(folder).text
    reported, measured = text.split("## Figures")[1].split("## Intended use")[0].split("Measured")
    assert "Reported by the authors" in reported and "| 46.2 | 47.1 |" in reported
    assert "nothing yet" in measured and published_row(ROW)["note"] in reported
    text = model_card(folder, measured=[results(protocol__scales=[0.5, 1.0], protocol__flip=True)]).text
    reported, measured = text.split("## Figures")[1].split("Measured with")
    assert "46.12" in measured and "46.12" not in reported and "scales 0.5, 1.0 and flip" in measured


def test_authors_figures_are_not_shown_after_further_training(folder):
    description = json.loads((folder / "config.json").read_text()) | {"source_config": ROW}
    (folder / "config.json").write_text(json.dumps(description))
    card = model_card(folder)
    assert "Reported by the authors: none" in card.text and card.data.eval_results is None
    assert f"`{ROW}` by further training" in card.text and card.data.license is None
    assert "was not stated" in card.text


def test_provenance(folder):
    (folder / "conversion.json").write_text(json.dumps(record()))
    text = " ".join(model_card(folder).text.split())
    for part in (
        "Converted from `d.pth` (123456 bytes, SHA-256 `" + "ab" * 32,
        "fetched from https://github.com/a/b/releases/download/c/d.pth",
        "segtransformers 0.1.0 with torch 2.14.1 and transformers 5.24.0",
        "stored in float16",
        "1 were used and 1 were not; 1 tensors of the model have no original",
        "All 436 tensors were read back",
        "relative error of 1.2e-03",
    ):
        assert part in text, part


def test_a_checkpoint_from_the_hub_is_the_base_model(folder):
    url = "https://huggingface.co/OpenGVLab/InternImage/resolve/main/x.pth"
    (folder / "conversion.json").write_text(json.dumps(record(url=url)))
    assert model_card(folder).data.base_model == "OpenGVLab/InternImage"
    assert model_card(folder, base_model="me/mine").data.base_model == "me/mine"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model__class": "Other"}, "another model: its class is 'Other'"),
        ({"model__num_labels": 150}, "its num_labels is 150, not 10"),
        ({"model__source_config": ROW}, "its source_config is"),
        ({"mean_iou": None}, "not in the form that `segtransformers evaluate` writes"),
        ({"data": {}}, "not in the form that `segtransformers evaluate` writes"),
    ],
)
def test_figures_of_another_model_are_refused(folder, change, message):
    with pytest.raises(ValueError, match=message):
        model_card(folder, measured=[results(**change)])


def test_the_snippet_of_a_backbones_card_runs(tmp_path):
    stages = ["stage1", "stage2", "stage3", "stage4"]
    config = InternImageConfig(embed_dim=16, depths=[1] * 4, num_groups=[1, 2, 4, 8], out_features=stages)
    InternImageBackbone(config).save_pretrained(tmp_path / "backbone")
    card = model_card(tmp_path / "backbone", name=str(tmp_path / "backbone"))
    (snippet,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    names: dict = {}
    exec(snippet, names)
    assert names["model"].config.num_labels == 7
    assert card.data.pipeline_tag is None and "Figures" not in card.text


def test_the_snippet_of_a_model_with_bands_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = SegUperNetForSemanticSegmentation.from_pretrained(packaged_model_path())
    with_input_channels(model, 4).save_pretrained("model")
    processor = AutoImageProcessor.from_pretrained(packaged_model_path())
    fields = {"bands": [4, 3, 2, 1], "band_dtype": "uint16", "do_convert_rgb": False, "rescale_factor": 1 / 65535}
    fields |= {"image_mean": [0.1] * 4, "image_std": [0.2] * 4}
    type(processor).from_dict({**processor.to_dict(), **fields}).save_pretrained("model")
    np.save("scene.npy", np.random.default_rng(0).integers(0, 9000, (5, 64, 96), dtype=np.uint16))
    card = str(model_card(Path("model"), "model"))
    assert "the bands [4, 3, 2, 1] of a file (uint16)" in card and "red, green and blue" not in card
    for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        names: dict = {}
        exec(code.replace("scene.tif", "scene.npy"), names)
    assert names["labels"].shape == (64, 96)


def test_folders_without_a_model_of_ours_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        model_card(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ValueError, match=r"no model of segtransformers: its config\.json says 'vit'"):
        model_card(tmp_path)


def test_edited_cards_are_recognised(folder):
    (folder / "conversion.json").write_text(json.dumps(record()))
    write_model_card(folder)
    assert has_generated_card(folder)
    (folder / "README.md").write_text((folder / "README.md").read_text() + "\nMine.\n")
    assert not has_generated_card(folder)


@pytest.mark.parametrize("family", ORIGINALS)
def test_every_published_row_has_a_card(folder, family):
    for name, row in published_rows(family).items():
        (folder / "conversion.json").write_text(json.dumps(record(row=name)))
        card = model_card(folder, repo_id="me/model")
        yaml.safe_load(str(card.data))
        assert len(card.data.eval_results or []) == sum(row[key] is not None for key in ("miou", "miou_ms"))
        terms = "non-commercial" in card.text.partition("## Licences")[2]
        assert terms == (row["dataset"] in ("ade20k", "cityscapes", "mapillary"))


def test_the_document_describes_the_template():
    sections = [line for line in TEMPLATE.read_text().splitlines() if line.startswith("## ")]
    assert sections
    for section in sections:
        assert f"| {section.removeprefix('## ')} |" in DOCUMENT, section


def test_names_from_files_are_no_markup(tmp_path):
    """Names of classes, files and tensors come from a checkpoint of somebody else."""
    folder = tmp_path / 'x")\nimport os'
    packaged = packaged_model_path()
    folder.mkdir()
    config = json.loads((packaged / "config.json").read_text())
    hostile = ["<img src=x onerror=alert(1)>", "[a](javascript:b)", "a\n# b", "\x1b[2J", "www.evil.example", "sky"]
    config["id2label"] = {str(index): name for index, name in enumerate(hostile)}
    config["architectures"] = ["A`<script>`"]
    (folder / "config.json").write_text(json.dumps(config))
    processor = json.loads((packaged / "preprocessor_config.json").read_text()) | {"size": "`<b>", "image_mean": "<b>"}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    text = str(model_card(folder))
    body = text.split("---", 2)[2]
    for raw in ("<img", "<script", "<b>", "](javascript", "\n# b", "\x1b", " www.evil", 'x")\n'):
        assert raw not in body, raw
    assert r"\x1b" in body.replace("\\\\", "\\") and ", sky" in body
