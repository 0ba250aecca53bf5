# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Saved folders carry what trust_remote_code needs; test_publishing.py loads them in processes of their own."""

import json

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
from segtransformers.hub.registration import BACKBONES, SEGMENTERS
from segtransformers.remote_code import MODULE

STAGES = ["stage1", "stage2", "stage3", "stage4"]


class Derived(SegUperNetConfig):
    """Somebody's own, outside the package."""

    model_type = "somebodys_own"


def entries(folder, file="config.json") -> dict:
    return json.loads((folder / file).read_text())["auto_map"]


@pytest.mark.parametrize("config_class", [*BACKBONES, *SEGMENTERS])
def test_every_config_names_classes_that_its_module_imports(tmp_path, config_class):
    config_class().save_pretrained(tmp_path)
    names: dict = {}
    exec((tmp_path / f"{MODULE}.py").read_text(), names)
    auto_map = entries(tmp_path)
    auto_class = "AutoBackbone" if config_class in BACKBONES else "AutoModelForSemanticSegmentation"
    assert set(auto_map) == {"AutoConfig", auto_class}
    for reference in auto_map.values():
        module, name = reference.split(".")
        assert module == MODULE and names[name] is getattr(segtransformers, name)
    assert names[auto_map["AutoConfig"].split(".")[1]] is config_class
    assert ("custom_pipelines" in json.loads((tmp_path / "config.json").read_text())) == (config_class in SEGMENTERS)


@pytest.mark.parametrize("processor_class", [SegmentationImageProcessor, SegmentationImageProcessorPil])
def test_processors_add_to_the_module_of_the_model(tmp_path, processor_class):
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
        raise AssertionError("nobody is there to answer")

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


def test_classes_derived_elsewhere_are_saved_as_transformers_does(tmp_path):
    Derived().save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    Derived.register_for_auto_class()
    ViTCoMerConfig.register_for_auto_class()  # transformers does so after it loaded remote code
    SegmentationImageProcessor.register_for_auto_class()
    assert Derived._auto_class == "AutoConfig"
    assert ViTCoMerConfig._auto_class is None and SegmentationImageProcessor._auto_class is None
