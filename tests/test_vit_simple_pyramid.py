# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""A plain ViT with a simple feature pyramid: EVA-02's segmentors, their protocol and rows, and other trunks."""

import json

import pytest
import torch
from model_tests import BackboneTests
from reference_cases import FOLDER, ReferenceCase, relative_error
from safetensors.torch import load_file

from segtransformers import SegUperNetConfig, SegUperNetForSemanticSegmentation
from segtransformers import ViTSimplePyramidBackbone as Backbone
from segtransformers import ViTSimplePyramidConfig as Config
from segtransformers.conversion import ConversionError, convert_checkpoint
from segtransformers.conversion.convert import convert_with_report, empty_model
from segtransformers.conversion.protocol import read_test_pipeline
from segtransformers.conversion.trunks import load_pretrained_trunk
from segtransformers.inference import InferenceProtocol, image_scores, segment_image
from segtransformers.inference.views import image_views
from segtransformers.models.trunk.positions import resize_positions
from segtransformers.published import published_rows
from segtransformers.training import get_recipe, parameter_groups
from segtransformers.training.starting_points import starting_model

MAPS = ["stage1", "stage2", "stage3", "stage4"]
CASES = sorted(folder.name for folder in (FOLDER / "eva").glob("tiny-eva02-*upernet"))
PROTOCOL = json.loads((FOLDER / "eva" / "inference_protocol.json").read_text())["cases"]
ROWS = published_rows("eva02")


def small_pyramid(**changes) -> Config:
    """Return a small config with the options of EVA-02 B."""
    settings = {
        "trunk": "eva02_base_patch14_224",
        "patch_size": 16,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "pretrain_image_size": 64,
        "drop_path_rate": 0.2,
        "out_features": MAPS,
    }
    return Config(**{**settings, **changes})


class TestEva02(BackboneTests):
    model_class = Backbone

    def config(self):
        return small_pyramid()


class TestOtherTrunks:
    @pytest.mark.parametrize(
        "changes",
        [
            {"trunk": "beitv2_base_patch16_224", "layer_scale_init_value": 0.1},
            {"trunk": "vit_small_patch14_dinov2", "patch_size": None, "final_norm": True},
            {"trunk": "vit_small_patch16_dinov3"},
            {"trunk": "eva02_tiny_patch14_224", "use_relative_position_bias": True, "pretrain_image_size": 32},
            {"trunk": "vit_base_patch8_224", "patch_size": 8},
            {"trunk": "vit_small_patch16_224", "tapped_blocks": [3]},
        ],
        ids=lambda changes: changes["trunk"],
    )
    def test_any_size_and_every_parameter_gets_a_gradient(self, changes):
        torch.manual_seed(0)
        backbone = Backbone(small_pyramid(drop_path_rate=0.0, **changes))
        for size in ((1, 1), (48, 80), (75, 130)):
            feature_maps = backbone(torch.randn(2, 3, *size)).feature_maps
            expected = [(2, 32, -(-size[0] // stride), -(-size[1] // stride)) for stride in (4, 8, 16, 32)]
            assert [tuple(feature_map.shape) for feature_map in feature_maps] == expected
        sum(feature_map.square().mean() for feature_map in feature_maps).backward()
        assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_number_of_recorded_cases():
    assert len(CASES) == len(set(CASES)) == 6


@pytest.mark.parametrize("name", CASES)
def test_segmentors_equal_the_original(name):
    case = ReferenceCase(f"eva/{name}")
    model, outputs, images = convert_checkpoint(case.state_dict(), case.config), case.outputs(), case.pixel_values()
    model.config.inference_mode = "whole"
    with torch.no_grad():
        maps = model.backbone(images).feature_maps
        actual = {f"feature_{level}": feature_map for level, feature_map in enumerate(maps)}
        actual["logits"], actual["auxiliary_logits"] = model.decode_head(maps), model.auxiliary_head(maps)
        actual["segmentation_logits"] = model(images).logits
        if "rope_cos" in outputs:
            height, width = (side // case.config["backbone"]["patch_size"] for side in images.shape[2:])
            sines, cosines = model.backbone.trunk.rotary((height, width)).chunk(2, -1)
            for key, table in (("rope_sin", sines), ("rope_cos", cosines)):
                torch.testing.assert_close(table.float(), outputs[key].float(), rtol=1e-5, atol=1e-6)
    for key, tensor in actual.items():
        assert relative_error(case.sampled(key, tensor), outputs[key]) < 2e-6, key


@pytest.mark.parametrize("name", ["upernet", "bare-upernet", "plain-upernet"])
def test_tables_in_the_file_are_not_read(name):
    """Rotary tables and indices of relative positions follow from the config."""
    case = ReferenceCase(f"eva/tiny-eva02-{name}")
    derived = [entry for entry in case.manifest["state_dict"] if entry[0] in case.manifest["derived"]]
    assert len(derived) >= 4
    junk = {key: torch.full(shape, torch.nan if "rope" in key else 0) for key, shape, _ in derived}
    model, report = convert_with_report({**case.state_dict(), **junk}, case.config)
    assert set(report.unused) == set(junk) and set(report.unused.values()) == {"follows from the grid"}
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_sizes_other_than_the_crop():
    """The original takes its crop alone. Here the result is that of a model whose positions were resized before."""
    case = ReferenceCase("eva/tiny-eva02-upernet")
    backbone = convert_checkpoint(case.state_dict(), case.config).backbone
    config = Config.from_dict({**backbone.config.to_dict(), "pretrain_image_size": [96, 128]})
    other, weights = Backbone(config).double().eval(), backbone.state_dict()
    positions = weights["trunk.embeddings.pos_embed"]
    patches = resize_positions(positions[:, 1:], (4, 4), (6, 8))
    other.load_state_dict({**weights, "trunk.embeddings.pos_embed": torch.cat([positions[:, :1], patches], 1)})
    images = torch.randn(1, 3, 96, 128, dtype=torch.float64)
    with torch.no_grad():
        for one, two in zip(backbone(images).feature_maps, other(images).feature_maps, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)
    assert not torch.equal(patches[:, :16], positions[:, 1:])


@pytest.mark.parametrize("protocol_case", PROTOCOL, ids=lambda case: case["name"])
def test_protocol_equals_the_original(protocol_case):
    """From an 8-bit image to class indices, at one scale and at six with flips."""
    name, stride = protocol_case["name"], protocol_case["stride_of_maps"]
    recorded = load_file(FOLDER / "eva" / "tiny-eva02-inference-protocol" / "outputs.safetensors")
    case = ReferenceCase("eva/tiny-eva02-upernet")
    model = convert_checkpoint(case.state_dict(), {**case.config, "test_cfg": protocol_case["test_cfg"]})
    steps = {key: protocol_case[key] for key in ("img_scale", "img_ratios", "flip", "transforms")}
    pipeline = [{"type": "LoadImageFromFile"}, {"type": "MultiScaleFlipAug", **steps}]
    if steps["img_ratios"] is None:
        del steps["img_ratios"]
        pipeline[1] = {"type": "MultiScaleFlipAug", **steps}
    processor = read_test_pipeline(pipeline, reduce_labels=False)
    is_single = "img_ratios" not in steps
    protocol = InferenceProtocol() if is_single else InferenceProtocol.multi_scale(processor)
    image = recorded[f"{name}.image"].numpy()
    views = image_views(processor, image, protocol)
    assert len(views) == len(protocol_case["augmentations"])
    for augmentation, view in zip(protocol_case["augmentations"], views, strict=True):
        assert list(view.pixel_values.shape) == augmentation["shape"] and view.flipped == augmentation["flip"]
        expected = recorded.get(f"{name}.input.{augmentation['index']}")
        if expected is not None:
            assert torch.equal(view.pixel_values[:, :, ::2, ::2].view(expected.shape), expected)
    with torch.no_grad():
        logits = model(views[0].pixel_values.double()).logits
    assert relative_error(logits[:, :, ::stride, ::stride], recorded[f"{name}.logits_0"]) < 1e-6
    scores = image_scores(model, processor, image, protocol)[None, :, ::stride, ::stride]
    if not is_single:
        assert relative_error(scores, recorded[f"{name}.probabilities"].view(scores.shape)) < 1e-6
    predicted = segment_image(model, processor, image, protocol)
    assert torch.equal(predicted, recorded[f"{name}.prediction"].long())


def test_beit_of_unilm_has_the_same_names():
    """`BEiT` of microsoft/unilm has one layer for queries, keys and values, and otherwise the names of `EVA2`."""
    case = ReferenceCase("eva/tiny-eva02-plain-upernet")
    config, state_dict = case.config, case.state_dict()
    for index in range(4):
        parts = [state_dict.pop(f"backbone.blocks.{index}.attn.{part}_proj.weight") for part in "qkv"]
        state_dict[f"backbone.blocks.{index}.attn.qkv.weight"] = torch.cat(parts)
    config["backbone"]["type"] = "BEiT"
    for name in ("rope", "pt_hw_seq_len", "intp_freq", "subln", "xattn", "naiveswiglu"):
        del config["backbone"][name]
    model = convert_checkpoint(state_dict, config)
    assert model.config.backbone_config.trunk == "beit_base_patch16_224"
    with torch.no_grad():
        for level, feature_map in enumerate(model.backbone(case.pixel_values()).feature_maps):
            expected = case.outputs()[f"feature_{level}"]
            assert relative_error(case.sampled(f"feature_{level}", feature_map), expected) < 2e-6


def _change(**values):
    return lambda config: config["backbone"].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_change(surprise=1), "backbone has unknown settings: surprise"),
        (_change(rope=False), "rope is False and naiveswiglu True; only both or none"),
        (_change(intp_freq=False), "pt_hw_seq_len is 16 and img_size 64"),
        (_change(out_indices=[0, 1]), "tapped_blocks must be one block or four"),
        (_change(out_indices=[0, 1, 2, 6]), r"tapped_blocks\[3\] must be a whole number from 0 to 5"),
        (_change(patch_size=32), "needs tokens every 8 or 16 pixels"),
        (_change(img_size=96), "pos_embed is 1x17x64, expected 1x37x64"),
        (_change(subln=False), "tensors that the model does not have: .*q_bias|q_proj"),
        (_change(use_rel_pos_bias=True, xattn=False), "subln, rope and relative position biases"),
    ],
)
def test_configs_that_do_not_fit_are_refused(change, message):
    case = ReferenceCase("eva/tiny-eva02-upernet")
    config = case.config
    change(config)
    with pytest.raises(ConversionError, match=message):
        convert_checkpoint(case.state_dict(), config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tapped_blocks": [0, 1]}, "tapped_blocks must be one block or four"),
        ({"tapped_blocks": [0, 1, 2, 4]}, r"tapped_blocks\[3\] must be a whole number from 0 to 3"),
        ({"rotary_reference_grid": [16]}, r"rotary_reference_grid must be \[rows, columns\]"),
        ({"patch_size": 32}, "needs tokens every 8 or 16 pixels"),
    ],
)
def test_impossible_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small_pyramid(**changes)


@torch.no_grad()
def test_without_feature_maps():
    backbone = Backbone(small_pyramid(out_indices=[], out_features=None)).eval()
    output = backbone(torch.randn(1, 3, 32, 32), output_hidden_states=True)
    assert not output.feature_maps and len(output.hidden_states) == 1 + backbone.config.num_hidden_layers
    assert not backbone(torch.randn(1, 3, 32, 32)).feature_maps


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trunk": "vit_small_patch16_224", "rotary_reference_grid": [4, 4]}, "rotary_reference_grid is for EVA-02"),
        ({"use_relative_position_bias": True}, "of Eva with one layer for queries, keys and values"),
    ],
)
def test_impossible_trunks_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Backbone(small_pyramid(**changes))


@pytest.mark.parametrize("trunk", ["eva02_base_patch14_224", "eva02_tiny_patch14_224"])
def test_pretrained_files_of_the_authors(tmp_path, trunk):
    """`eva02_*_p14to16.pt` have rotary tables, a mask token, a norm and a head, and positions for 14x14 tokens."""
    name = "upernet" if "base" in trunk else "fused-upernet"
    case = ReferenceCase(f"eva/tiny-eva02-{name}")
    expected = convert_checkpoint(case.state_dict(), case.config).backbone
    heads = "head", "fpn"
    file = {key.removeprefix("backbone."): value for key, value in case.state_dict().items()}
    file = {key: value.float() for key, value in file.items() if not any(part in key for part in heads)}
    width = expected.config.hidden_size
    side = expected.config.pretrain_grid[0]
    file |= {"mask_token": torch.zeros(1, 1, width), "norm.weight": torch.ones(width), "norm.bias": torch.ones(width)}
    file |= {"lm_head.weight": torch.zeros(9, width), "rope.freqs_cos": torch.zeros(16, 16, 64)}
    torch.save({"model": file}, tmp_path / "eva02.pt")
    same = Backbone(expected.config)
    unused = load_pretrained_trunk(same, tmp_path / "eva02.pt")
    assert {"mask_token", "norm.weight", "lm_head.weight", "rope.freqs_cos"} <= set(unused)
    for key, tensor in same.trunk.state_dict().items():
        torch.testing.assert_close(tensor, expected.trunk.state_dict()[key].float(), rtol=0, atol=0, msg=key)
    config = type(expected.config).from_dict(
        {**expected.config.to_dict(), "pretrain_image_size": [16 * (side + 2)] * 2}
    )
    larger = Backbone(config)
    load_pretrained_trunk(larger, tmp_path / "eva02.pt")
    positions = larger.trunk.embeddings.pos_embed
    assert positions.shape[1] == 1 + (side + 2) ** 2
    torch.testing.assert_close(positions[:, :1], file["pos_embed"][:, :1])


def test_recipe_builds_its_pyramid_around_another_trunk(tmp_path):
    """As the name of a trunk after `train --model` does; positions are resized to the crops."""
    source = Backbone(Config(trunk="vit_tiny_patch16_224", out_features=MAPS))
    weights = {key.removeprefix("embeddings."): value for key, value in source.trunk.state_dict().items()}
    torch.save(weights, tmp_path / "trunk.pth")
    recipe = get_recipe("eva02_B_ade_seg_upernet_sz512")
    model, processor = starting_model(
        "vit_tiny_patch16_224", recipe, {0: "a", 1: "b"}, crop_size=(64, 64), trunk_weights=tmp_path / "trunk.pth"
    )
    config = model.config.backbone_config
    assert type(model.backbone) is Backbone and config.tapped_blocks == [2, 5, 8, 11] and config.drop_path_rate == 0.15
    assert config.pretrain_image_size == [64, 64] and model.config.window_size == [64, 64]
    assert model.config.hidden_size == 768 and model.config.num_labels == 2 and processor.size_divisor == 0
    block = model.backbone.trunk.blocks[5].attn.qkv.weight
    assert torch.equal(block, source.trunk.blocks[5].attn.qkv.weight)


@pytest.mark.parametrize("name", ROWS)
def test_published_row_describes_a_model(name):
    row = ROWS[name]
    model, _, _ = empty_model(row["model"])
    assert model.config.num_labels == 150
    assert sum(parameter.numel() for parameter in model.parameters()) == row["num_parameters"]
    assert row["download"] == f"https://huggingface.co/Yuxin-CV/EVA-02/resolve/main/eva02/seg/{name}.pth"
    processor = read_test_pipeline(row["test_pipeline"], True, None, row["multi_scale_pipeline"])
    assert processor.size_divisor == 0 and model.config.inference_mode == "slide"
    assert model.config.window_stride == [row["crop_size"] * 2 // 3] * 2


def test_layer_decay_of_a_recipe():
    name = "eva02_B_ade_seg_upernet_sz512"
    groups = parameter_groups(empty_model(ROWS[name]["model"])[0], get_recipe(name))
    treated = {name: (group["lr_scale"], group["weight_decay"]) for group in groups for name in group["param_names"]}
    for parameter, layer, decay in (
        ("backbone.trunk.embeddings.pos_embed", 0, 0.05),
        ("backbone.trunk.embeddings.cls_token", 0, 0.05),
        ("backbone.trunk.embeddings.patch_embed.proj.bias", 0, 0.0),
        ("backbone.trunk.blocks.0.attn.q_proj.weight", 1, 0.05),
        ("backbone.trunk.blocks.11.mlp.norm.weight", 12, 0.0),
        ("backbone.pyramid.0.0.weight", 13, 0.05),
        ("decode_head.classifier.weight", 13, 0.05),
    ):
        assert treated[parameter] == (pytest.approx(0.85 ** (13 - layer)), decay), parameter


def test_loads_what_it_saves_with_a_head(tmp_path):
    config = SegUperNetConfig(backbone_config=small_pyramid(), hidden_size=16, auxiliary_channels=8, num_labels=5)
    model = SegUperNetForSemanticSegmentation(config).eval()
    model.save_pretrained(tmp_path)
    loaded = SegUperNetForSemanticSegmentation.from_pretrained(tmp_path)
    images = torch.randn(1, 3, 75, 90)
    with torch.no_grad():
        assert torch.equal(model(images).logits, loaded(images).logits)
