# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Saved folders contain what trust_remote_code needs. test_publishing.py loads such folders in separate processes."""

import json
import subprocess
import sys

import pytest
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation, SwinConfig, pipeline

import segtransformers
from segtransformers import (
    InternImageConfig,
    SegmentationImageProcessor,
    SegmentationImageProcessorPil,
    SegUperNetConfig,
    SegUperNetForSemanticSegmentation,
    ViTAdapterConfig,
    ViTCoMerConfig,
)
from segtransformers.hub.registration import BACKBONES, MODELS
from segtransformers.remote_code import MODULE

STAGES = ["stage1", "stage2", "stage3", "stage4"]


class Derived(SegUperNetConfig):
    """A config of a user, outside the package."""

    model_type = "somebodys_own"


def entries(folder, file="config.json") -> dict:
    return json.loads((folder / file).read_text())["auto_map"]


@pytest.mark.parametrize("names", MODELS, ids=lambda names: names.config)
def test_every_config_names_classes_that_its_module_imports(tmp_path, names):
    getattr(segtransformers, names.config)().save_pretrained(tmp_path)
    imported: dict = {}
    exec((tmp_path / f"{MODULE}.py").read_text(), imported)
    auto_classes = ("AutoBackbone", "AutoModel") if names in BACKBONES else ("AutoModelForSemanticSegmentation",)
    expected = {"AutoConfig": names.config} | dict.fromkeys(auto_classes, names.model)
    auto_map = entries(tmp_path)
    assert auto_map == {auto_class: f"{MODULE}.{name}" for auto_class, name in expected.items()}
    for name in expected.values():
        assert imported[name] is getattr(segtransformers, name)
    pipelines = json.loads((tmp_path / "config.json").read_text()).get("custom_pipelines", {})
    assert list(pipelines) == ([] if names in BACKBONES else ["semantic-segmentation"])
    for pipeline_ in pipelines.values():
        assert pipeline_["impl"] == f"{MODULE}.SegmentationPipeline"
        assert imported["SegmentationPipeline"] is segtransformers.SegmentationPipeline


def test_a_config_is_saved_with_its_code_although_nothing_is_registered(tmp_path):
    code = f"""
import sys
import segtransformers
sys.meta_path.pop(0)  # what would register
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
config = segtransformers.InternImageConfig()
assert config.model_type not in CONFIG_MAPPING
config.save_pretrained({str(tmp_path)!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert entries(tmp_path)["AutoModel"] == f"{MODULE}.InternImageBackbone"
    assert "InternImageBackbone" in (tmp_path / f"{MODULE}.py").read_text()


@pytest.mark.parametrize("processor_class", [SegmentationImageProcessor, SegmentationImageProcessorPil])
def test_processors_add_their_classes_to_the_module_of_the_model(tmp_path, processor_class):
    InternImageConfig().save_pretrained(tmp_path)
    processor_class().save_pretrained(tmp_path)
    names: dict = {}
    exec((tmp_path / f"{MODULE}.py").read_text(), names)
    assert {"InternImageConfig", "SegmentationImageProcessor", "SegmentationImageProcessorPil"} <= names.keys()
    both = [f"{MODULE}.SegmentationImageProcessorPil", f"{MODULE}.SegmentationImageProcessor"]
    assert entries(tmp_path, "preprocessor_config.json") == {"AutoImageProcessor": both}


def test_saving_twice_changes_nothing(tmp_path):
    config = SegUperNetConfig(backbone_config=SwinConfig(out_features=STAGES))
    config.save_pretrained(tmp_path)
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


def test_folders_load_without_trust_and_without_a_question(tmp_path, monkeypatch):
    def question(*arguments):
        raise AssertionError("transformers asked whether the code is trusted")

    monkeypatch.setattr("builtins.input", question)
    for auto_class in (AutoModelForSemanticSegmentation, AutoImageProcessor):
        auto_class.from_pretrained(segtransformers.packaged_model_path()).save_pretrained(tmp_path)
    segmenter = pipeline("image-segmentation", model=str(tmp_path))
    assert isinstance(segmenter.model, SegUperNetForSemanticSegmentation)
    assert isinstance(segmenter.image_processor, SegmentationImageProcessor)


def test_a_backbones_module_is_not_named_inside_a_model(tmp_path):
    ViTAdapterConfig(out_features=STAGES).save_pretrained(tmp_path / "backbone")
    whole = SegUperNetConfig(backbone_config=AutoConfig.from_pretrained(tmp_path / "backbone"))
    whole.save_pretrained(tmp_path / "whole")
    inside = json.loads((tmp_path / "whole" / "config.json").read_text())["backbone_config"]
    assert inside["model_type"] == "seg_vit_adapter" and "auto_map" not in inside


def test_classes_of_users_are_saved_as_transformers_saves_them(tmp_path):
    Derived().save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    Derived.register_for_auto_class()
    ViTCoMerConfig.register_for_auto_class()  # transformers calls this after it loaded remote code
    SegmentationImageProcessor.register_for_auto_class()
    assert Derived._auto_class == "AutoConfig"
    assert ViTCoMerConfig._auto_class is None and SegmentationImageProcessor._auto_class is None
