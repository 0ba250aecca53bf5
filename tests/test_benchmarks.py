# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Benchmarks compare like with like: transformers' models with our weights give our outputs."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from dino_stand_ins import DINOV2
from model_tests import randomise
from test_internimage import small_internimage
from test_seg_mask2former import small_head as small_mask2former
from test_seg_upernet import small_head as small_upernet
from test_vit_adapter import small_config as small_adapter
from test_vit_comer import small_comer

from segtransformers import SegMask2FormerForSemanticSegmentation, SegUperNetForSemanticSegmentation

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """A module of the folder, which its scripts import from one another."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


BACKBONES = {"vit_adapter": small_adapter, "vit_comer": small_comer, "internimage": small_internimage}

# what transformers' Mask2Former does not let one choose
SAME_AS_THEIRS = {"hidden_dim": 32, "norm_groups": 32, "encoder_attention_heads": 2}


@pytest.mark.parametrize("head", ["upernet", "mask2former"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_transformers_models_with_our_weights_give_our_outputs(benchmark, head, backbone):
    twins = benchmark("twins")
    config = BACKBONES[backbone]()
    if head == "upernet":
        model = SegUperNetForSemanticSegmentation(small_upernet(config))
    else:
        model = SegMask2FormerForSemanticSegmentation(small_mask2former(config, **SAME_AS_THEIRS))
    randomise(model).eval()
    ours, twin = twins.Ours(model), twins.twin_of(model).eval()
    images, labels = torch.randn(2, 3, 96, 64), torch.randint(5, (2, 96, 64))
    with torch.no_grad():
        torch.testing.assert_close(ours(images), twin(images), rtol=1e-4, atol=1e-4)
        # of random points, or without a part of it: a loss is made otherwise, so that it is only there
        assert torch.isfinite(ours(images, labels)) and torch.isfinite(twin(images, labels))


def test_models_are_measured_side_by_side(benchmark, monkeypatch, tmp_path, capsys):
    models = benchmark("models")
    arguments = "--models vit-adapter-t-upernet --size 64 --rounds 1 --seconds 0 --threads 1 --no-memory --no-peers"
    monkeypatch.setattr(sys, "argv", ["models.py", *arguments.split(), "--json", str(tmp_path / "results.json")])
    models.main()
    (result,) = json.loads((tmp_path / "results.json").read_text())["results"]
    assert result["agreement"]["relative_error"] < 1e-4 and result["agreement"]["argmax_agreement"] > 0.99
    assert {row["rounds"] for row in result["implementations"].values()} == {1}
    assert "same class at" in capsys.readouterr().out


def test_a_step_with_a_frozen_trunk_is_measured(benchmark, monkeypatch, capsys):
    frozen_trunk = benchmark("frozen_trunk")
    arguments = f"--recipe dinov2-linear --trunk {DINOV2} --size 28 --rounds 1 --threads 1"
    monkeypatch.setattr(sys, "argv", ["frozen_trunk.py", *arguments.split(), "--inside", "frozen trunk, bfloat16"])
    frozen_trunk.main()
    figures = json.loads(capsys.readouterr().out)
    assert figures.keys() == {"seconds", "peak"} and figures["seconds"] > 0


def test_a_step_on_cached_features_is_measured(benchmark, monkeypatch, capsys):
    arguments = f"--trunk {DINOV2} --size 42 --images 2 --versions 2 --batch 2 --rounds 1 --threads 1"
    monkeypatch.setattr(sys, "argv", ["feature_cache.py", *arguments.split()])
    benchmark("feature_cache").main()
    output = capsys.readouterr().out
    assert "| cached features |" in output and "2 versions of an image are paid after" in output
