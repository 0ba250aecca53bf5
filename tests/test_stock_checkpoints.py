# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints of transformers' own UperNet and Mask2Former under our heads, from folders and from a Hub."""

import json
import os
import subprocess
import sys

import pytest
import torch
from hub_server import client_environment, running_hub
from model_tests import randomise
from PIL import Image
from transformers import (
    ConvNextConfig,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    SegformerImageProcessor,
    SwinConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)
from typer.testing import CliRunner

from segtransformers import (
    SegMask2FormerForSemanticSegmentation,
    SegmentationImageProcessor,
    SegUperNetForSemanticSegmentation,
    example_image_path,
)
from segtransformers.cli import app
from segtransformers.model_loading import load_trained_model

STAGES = ["stage1", "stage2", "stage3", "stage4"]
BACKBONES = {
    "swin": lambda: SwinConfig(embed_dim=16, depths=[2, 1, 2, 1], num_heads=[1, 2, 2, 4], out_features=STAGES),
    "convnext": lambda: ConvNextConfig(
        hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 2, 1], layer_scale_init_value=0.5, out_features=STAGES
    ),
}
NAMES = {"id2label": {0: "sky", 1: "sea", 2: "land"}, "label2id": {"sky": 0, "sea": 1, "land": 2}}
ADE_SIZE = {"shortest_edge": 512, "longest_edge": 2048}


def upernet(backbone: str, folder) -> UperNetForSemanticSegmentation:
    """Save a small `openmmlab/upernet-*` with its processor."""
    config = UperNetConfig(
        backbone_config=BACKBONES[backbone](), hidden_size=16, auxiliary_channels=8, auxiliary_in_channels=None, **NAMES
    )
    config.auxiliary_in_channels = 16 if backbone == "convnext" else 64
    model = randomise(UperNetForSemanticSegmentation(config)).eval()
    model.save_pretrained(folder)
    SegformerImageProcessor(do_reduce_labels=True).save_pretrained(folder)
    return model


def mask2former(backbone: str, folder) -> Mask2FormerForUniversalSegmentation:
    """Save a small `facebook/mask2former-*-semantic` with its processor."""
    config = Mask2FormerConfig(
        backbone_config=BACKBONES[backbone](),
        hidden_dim=32,
        feature_size=32,
        mask_feature_size=32,
        num_attention_heads=4,
        encoder_layers=2,
        encoder_feedforward_dim=48,
        decoder_layers=4,
        dim_feedforward=64,
        num_queries=9,
        **NAMES,
    )
    model = randomise(Mask2FormerForUniversalSegmentation(config)).eval()
    model.save_pretrained(folder)
    Mask2FormerImageProcessor(size=ADE_SIZE, do_reduce_labels=True, num_labels=3).save_pretrained(folder)
    return model


@pytest.mark.parametrize("backbone", BACKBONES)
@torch.no_grad()
def test_upernet_has_the_same_logits(tmp_path, backbone):
    stock = upernet(backbone, tmp_path)
    ours, info = SegUperNetForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert ours.config.id2label == NAMES["id2label"] and not ours.training
    for size in ((64, 96), (75, 130)):
        images = torch.randn(1, 3, *size)
        torch.testing.assert_close(ours(images).logits, stock(images).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
@torch.no_grad()
def test_mask2former_has_the_same_logits_and_scores(tmp_path, backbone):
    stock = mask2former(backbone, tmp_path)
    ours, info = SegMask2FormerForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert ours.config.id2label == NAMES["id2label"] and ours.config.model_type == "seg_mask2former"
    processor = Mask2FormerImageProcessor.from_pretrained(tmp_path)
    for size in ((64, 96), (75, 130), (384, 384)):
        images = torch.randn(1, 3, *size)
        found, expected = ours(images), stock(images)
        for name in ("class_queries_logits", "masks_queries_logits"):
            theirs = getattr(expected, name)
            mine = getattr(found, name)
            torch.testing.assert_close(mine, theirs[..., : mine.shape[-2], : mine.shape[-1]], rtol=1e-5, atol=1e-5)
        masks = torch.nn.functional.interpolate(expected.masks_queries_logits, size, mode="bilinear")
        scores = torch.einsum("bqc,bqhw->bchw", expected.class_queries_logits.softmax(-1)[..., :-1], masks.sigmoid())
        torch.testing.assert_close(found.logits, scores, rtol=1e-5, atol=1e-5)
    # transformers' own label map, at the only size to which it resizes the mask logits
    (labels,) = processor.post_process_semantic_segmentation(expected, target_sizes=[(384, 384)])
    assert (found.logits[0].argmax(0) == labels).float().mean() > 0.9999


def test_what_was_loaded_is_saved_as_ours(tmp_path):
    mask2former("swin", tmp_path / "stock")
    model = SegMask2FormerForSemanticSegmentation.from_pretrained(tmp_path / "stock")
    model.save_pretrained(tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["model_type"] == "seg_mask2former" and config["resize_mask_logits"] and not config["pad_to_stride"]
    again, info = SegMask2FormerForSemanticSegmentation.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_a_new_head_for_other_classes(tmp_path):
    mask2former("convnext", tmp_path)
    model, info = SegMask2FormerForSemanticSegmentation.from_pretrained(
        tmp_path, num_labels=5, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert model.class_predictor.out_features == 6
    assert {name for name, *_ in info["mismatched_keys"]} == {"class_predictor.weight", "class_predictor.bias"}


def test_settings_that_our_head_lacks_are_refused(tmp_path):
    mask2former("convnext", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "pre_norm": True}))
    with pytest.raises(ValueError, match="SegMask2FormerConfig cannot take pre_norm=True"):
        SegMask2FormerForSemanticSegmentation.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("model", "size"),
    [(upernet, {"height": 512, "width": 512}), (mask2former, ADE_SIZE)],
    ids=["upernet", "mask2former"],
)
def test_the_processor_has_the_same_numbers(tmp_path, model, size):
    model("convnext", tmp_path)
    theirs = (SegformerImageProcessor if model is upernet else Mask2FormerImageProcessor).from_pretrained(tmp_path)
    ours = SegmentationImageProcessor.from_pretrained(tmp_path)
    assert {side: length for side, length in dict(ours.size).items() if length} == size
    assert ours.do_reduce_labels and (ours.size_divisor or 0) == (32 if model is mask2former else 0)
    image = Image.open(example_image_path()).resize((1152, 768))  # transformers resizes it once, as ours then does, too
    mine, other = (processor(images=image, return_tensors="pt").pixel_values for processor in (ours, theirs))
    assert mine.shape == other.shape
    assert (mine - other).abs().max() < 2.5 / 255 / 0.224  # grey levels are rounded at other places
    assert (mine - other).abs().mean() < 0.5 / 255 / 0.224


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {
                "feature_extractor_type": "MaskFormerFeatureExtractor",
                "size": 512,
                "max_size": 2048,
                "size_divisor": 32,
                "reduce_labels": True,
                "image_mean": [0.1, 0.2, 0.3],
            },
            {"size": ADE_SIZE, "size_divisor": 32, "do_reduce_labels": True, "image_mean": [0.1, 0.2, 0.3]},
        ),
        (
            {"feature_extractor_type": "SegformerFeatureExtractor", "size": 640, "reduce_labels": False},
            {"size": {"height": 640, "width": 640}, "size_divisor": 0, "do_reduce_labels": False},
        ),
    ],
)
def test_older_processor_files(tmp_path, values, expected):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    processor = SegmentationImageProcessor.from_pretrained(tmp_path)
    for name, value in expected.items():
        found = getattr(processor, name)
        found = {side: length for side, length in dict(found).items() if length} if name == "size" else found
        assert (list(found) if isinstance(found, tuple) else found) == value, name


def test_from_a_hub(tmp_path):
    """The names of the Hub, in a process of its own whose Hub is a local server."""
    upernet("swin", tmp_path / "upernet")
    mask2former("swin", tmp_path / "mask2former")
    code = (
        "import sys, torch\n"
        "from segtransformers import *\n"
        "torch.manual_seed(0); images = torch.randn(1, 3, 64, 64)\n"
        "for kind, name in ((SegUperNetForSemanticSegmentation, 'openmmlab/upernet-swin-tiny'), "
        "(SegMask2FormerForSemanticSegmentation, 'facebook/mask2former-swin-tiny-ade-semantic')):\n"
        "    model = kind.from_pretrained(name)\n"
        "    processor = SegmentationImageProcessor.from_pretrained(name)\n"
        "    print(tuple(model(images).logits.shape), processor.do_reduce_labels)\n"
    )
    with running_hub() as hub:
        for kind, name in (
            ("upernet", "openmmlab/upernet-swin-tiny"),
            ("mask2former", "facebook/mask2former-swin-tiny-ade-semantic"),
        ):
            files = {path.name: path.read_bytes() for path in (tmp_path / kind).iterdir()}
            hub.create(name, name.partition("/")[0]).commit("main", files, "weights")
        environment = client_environment(hub, tmp_path, None) | {"PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["(1, 3, 64, 64) True"] * 2


@pytest.mark.parametrize(
    ("make", "kind"),
    [(upernet, SegUperNetForSemanticSegmentation), (mask2former, SegMask2FormerForSemanticSegmentation)],
)
def test_commands_take_them(tmp_path, make, kind):
    make("convnext", tmp_path / "stock")
    assert type(load_trained_model(str(tmp_path / "stock"))) is kind
    words = ["segment", str(example_image_path()), "--model", str(tmp_path / "stock")]
    done = CliRunner().invoke(app, [*words, "--output", str(tmp_path / "out.png"), "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert "model of type" not in done.stderr  # transformers' warning of another model type
    assert f"model: {tmp_path / 'stock'}, 3 classes" in done.output and (tmp_path / "out.png").is_file()
