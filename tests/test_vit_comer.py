# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""ViT-CoMer against the original, its conversion script, and the table of what was published."""

import json
import subprocess
import sys
from pathlib import Path

import accelerate
import pytest
import timm
import torch
from model_tests import BackboneTests, randomise
from reference_cases import ReferenceCase, relative_error
from transformers import (
    AutoModelForSemanticSegmentation,
)

from segtransformers import (
    SegMask2FormerForSemanticSegmentation,
    ViTAdapterConfig,
    ViTCoMerBackbone,
    ViTCoMerConfig,
)
from segtransformers.conversion import ConversionError, convert_checkpoint
from segtransformers.conversion.convert import empty_model
from segtransformers.conversion.protocol import read_test_pipeline
from segtransformers.datasets import get_dataset_info
from segtransformers.models.trunk.pretrained import load_trunk_weights
from segtransformers.published import PUBLISHED_FIELDS, published_rows

SCRIPT = Path(__file__).parent.parent / "conversion_scripts" / "convert_vit_comer.py"
MAPS = ["stage1", "stage2", "stage3", "stage4"]
ROWS = published_rows("vit_comer")
CASES = [
    "upernet",
    "upernet-base-options",
    "upernet-no-cffn",
    "upernet-no-interaction",
    "upernet-no-tov",
    "upernet-small-ratio",
    "mask2former",
]


def small_comer(**changes) -> ViTCoMerConfig:
    settings = {
        "trunk": "vit_tiny_patch16_224",
        "pretrain_image_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "layer_scale_init_value": 1.0,
        "drop_path_rate": 0.2,
        "spatial_prior_channels": 8,
        "injector_init_value": 0.1,
        "deformable_value_ratio": 0.5,
        "receptive_field_ratio": 1.5,
        "out_features": MAPS,
    }
    return ViTCoMerConfig(**{**settings, **changes})


class TestViTCoMerBackbone(BackboneTests):
    model_class = ViTCoMerBackbone

    def config(self):
        return small_comer()


class TestSwitchedOff(BackboneTests):
    """Each part is missing in one interaction; fewer interactions than maps, and none of the extras."""

    model_class = ViTCoMerBackbone

    def config(self):
        return small_comer(
            interaction_indexes=[[0, 0], [1, 1], [2, 3]],
            use_to_trunk=[True, False, True],
            use_to_pyramid=[True, False, True],
            use_feature_interaction=[False, True, True],
            add_trunk_features=False,
            use_conv_ffn=False,
            use_extra_extractors=False,
        )


class TestBeit(BackboneTests):
    """A class token and tables of relative positions: a trunk that the original never released."""

    model_class = ViTCoMerBackbone

    def config(self):
        return small_comer(trunk="beitv2_base_patch16_224")


@pytest.mark.parametrize("name", CASES)
def test_maps_equal_the_original(name):
    case = ReferenceCase(f"vit_comer/tiny-{name}")
    model = convert_checkpoint(case.state_dict(), case.config)
    outputs = case.outputs()
    with torch.no_grad():
        maps = model.backbone(case.pixel_values()).feature_maps
        logits = model(case.pixel_values()).logits if "segmentation_logits" in outputs else None
    for level, map_ in enumerate(maps):
        assert relative_error(case.sampled(f"feature_{level}", map_), outputs[f"feature_{level}"]) < 2e-6
    if logits is not None and model.config.inference_mode == "whole":
        key = "segmentation_logits"
        assert relative_error(case.sampled(key, logits), outputs[key]) < 2e-6
    assert (type(model) is SegMask2FormerForSemanticSegmentation) == (name == "mask2former")


def test_windows_equal_the_original():
    case = ReferenceCase("vit_comer/tiny-upernet-base-options")
    model = convert_checkpoint(case.state_dict(), case.config)
    assert model.config.inference_mode == "slide"
    with torch.no_grad():
        logits = model(case.pixel_values()).logits
    assert relative_error(case.sampled("slide_logits", logits), case.outputs()["slide_logits"]) < 2e-6


@pytest.mark.parametrize("name", ["upernet", "upernet-no-interaction", "upernet-no-tov"])
def test_what_the_original_builds_but_never_uses_is_left_out(name):
    case = ReferenceCase(f"vit_comer/tiny-{name}")
    model = convert_checkpoint(case.state_dict(), case.config)
    shapes = {name: shape for name, shape, _ in case.manifest["state_dict"]}
    # buffers of unused batch norms are no parameters; the first position belongs to a class token that is not there
    unused = sum(torch.Size(shapes[name]).numel() for name in case.manifest["unused"] if "running" not in name)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert case.manifest["num_parameters"] - count == unused + model.config.backbone_config.hidden_size


def test_what_is_used_may_not_be_missing():
    case = ReferenceCase("vit_comer/tiny-upernet")
    state_dict = case.state_dict()
    for name in ("mrfp.dwconv.bn2.weight", "cti_toc.query_norm.bias"):
        del state_dict[f"backbone.interactions.1.{name}"]
    with pytest.raises(ConversionError, match=r"lacks .*interactions.1.feature_pyramid.levels.1.norm.weight"):
        convert_checkpoint(state_dict, case.config)
    state_dict = case.state_dict()
    state_dict["backbone.interactions.1.surprise"] = torch.zeros(3).double()
    with pytest.raises(ConversionError, match=r"model does not have: backbone.interactions.1.surprise"):
        convert_checkpoint(state_dict, case.config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra_num": 4}, "unknown settings: extra_num"),  # of the repository's detection folder
        ({"use_CTI_toV": [True]}, "use_to_trunk must be one flag or one for each of the 4 interactions, got 1"),
        ({"dim_ratio": 0.25, "embed_dim": 36}, "even number of channels, got 9"),
    ],
)
def test_configs_that_cannot_be_converted(changes, message):
    case = ReferenceCase("vit_comer/tiny-upernet")
    config = case.config
    config["backbone"].update(changes)
    with pytest.raises(ConversionError, match=message):
        empty_model(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_to_pyramid": [True, True]}, "use_to_pyramid must be one flag or one for each of the 4 interactions"),
        ({"receptive_field_ratio": 0.01}, "even number of channels, got 0"),
        ({"hidden_size": 34, "receptive_field_ratio": 0.5, "deformable_value_ratio": 1}, "channels, got 17"),
        ({"conv_ffn_ratio": 0.01, "use_conv_ffn": False}, r"conv_ffn_ratio \(0.01\) leaves no channel"),
        ({"interaction_indexes": [[0, 3]]}, "add_trunk_features needs four interactions"),
    ],
)
def test_impossible_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small_comer(**changes)


def test_defaults_are_the_tiny_model():
    case = ROWS["upernet_vit_comer_tiny_512_160k_ade20k"]["model"]
    released = empty_model(case)[0].config.backbone_config
    default = ViTCoMerConfig()
    for name in ("hidden_size", "num_hidden_layers", "interaction_indexes", "receptive_field_ratio", "use_to_trunk"):
        assert getattr(default, name) == getattr(released, name), name
    assert released.use_to_pyramid == released.use_feature_interaction == [True] * 4
    assert default.injector_init_value == 0 and default.model_type != ViTAdapterConfig.model_type


@pytest.mark.parametrize("trunk", ["vit_small_patch16_dinov3", "vit_small_patch14_reg4_dinov2"])
def test_from_trunk(trunk):
    """timm's weights in the trunk: they are random here, under the names of a download."""
    fields = {"num_hidden_layers": 4, "hidden_size": 96, "num_attention_heads": 2, "out_features": MAPS}
    backbone = ViTCoMerBackbone.from_trunk(trunk, pretrained=False, **fields)
    source = randomise(timm.create_model(trunk, depth=4, embed_dim=96, num_heads=2, num_classes=0))
    load_trunk_weights(
        backbone.trunk, backbone.config, source.state_dict(), tuple(source.patch_embed.grid_size), "random weights"
    )
    assert not backbone.training
    assert torch.equal(backbone.trunk.blocks[3].mlp.fc1.weight, source.blocks[3].mlp.fc1.weight)
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 75, 130)).feature_maps
    assert [tuple(map_.shape) for map_ in maps] == [(1, 96, 19, 33), (1, 96, 10, 17), (1, 96, 5, 9), (1, 96, 3, 5)]
    with pytest.raises(ValueError, match="has no pre-trained weights"):
        ViTCoMerBackbone.from_trunk(f"{trunk}.no_such_weights", **fields)


def test_weights_can_stay_on_disk_until_they_are_needed(tmp_path):
    model = ViTCoMerBackbone(small_comer()).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(images).feature_maps
        accelerate.disk_offload(model, tmp_path, execution_device="cpu")
        for map_, other in zip(model(images).feature_maps, expected, strict=True):
            torch.testing.assert_close(map_, other, rtol=1e-5, atol=1e-5)


def test_statistics_of_batch_norms_are_updated_once_with_checkpointing():
    model = ViTCoMerBackbone(small_comer()).train()
    model.gradient_checkpointing_enable()
    sum(map_.mean() for map_ in model(torch.randn(2, 3, 64, 64)).feature_maps).backward()
    counts = {name: int(tensor) for name, tensor in model.named_buffers() if name.endswith("num_batches_tracked")}
    assert set(counts.values()) == {1} and any("feature_pyramid" in name for name in counts)


@pytest.mark.slow  # test_conversion.py runs such a script by default
def test_script_runs_from_the_command_line(tmp_path):
    case = ReferenceCase("vit_comer/tiny-upernet-base-options")
    torch.save({"meta": case.manifest["meta"], "state_dict": case.state_dict(torch.float32)}, tmp_path / "original.pth")
    (tmp_path / "config.json").write_text(json.dumps(case.config))
    arguments = ["--checkpoint", "original.pth", "--config", "config.json", "--output", "converted"]
    done = subprocess.run([sys.executable, SCRIPT, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "converted").double()
    assert model.config.backbone_config.receptive_field_ratio == 1.0
    with torch.no_grad():
        logits = model(case.pixel_values()).logits
    assert relative_error(case.sampled("slide_logits", logits), case.outputs()["slide_logits"]) < 1e-6


@pytest.mark.parametrize("name", ROWS)
def test_published_rows_describe_models_that_exist(name):
    row = ROWS[name]
    assert list(row) == [*PUBLISHED_FIELDS, "model", "test_pipeline", "multi_scale_pipeline"]
    info = get_dataset_info(row["dataset"])
    processor = read_test_pipeline(row["test_pipeline"], info.reduce_zero_label)
    assert dict(processor.size) == {"shortest_edge": 512, "longest_edge": 2048} and processor.size_divisor == 32
    model, _, _ = empty_model(row["model"])
    config = model.config
    assert config.num_labels == len(info.classes) and config.window_size == [row["crop_size"]] * 2
    count = sum(parameter.numel() for parameter in model.parameters())
    assert row["num_parameters"] - count == config.backbone_config.hidden_size  # the position of no token
    assert round(row["num_parameters"] / 1e6, 1) == float(row["parameters"].removesuffix("M"))


def test_published_table():
    assert [row["miou"] for row in ROWS.values()] == [43.5, 46.5, 48.8]
    assert ROWS["upernet_vit_comer_base_512_160k_ade20k"]["download"] is None
