# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The linear head over plain ViTs and other backbones, against DINOv2's and DINOv3's own."""

import pytest
import torch
from model_tests import BackboneTests, SegmentationTests
from reference_cases import ReferenceCase, fill, relative_error
from torch.nn import functional as F
from transformers import AutoModelForSemanticSegmentation, SwinConfig

from segtransformers import PlainViTBackbone, PlainViTConfig, SegLinearConfig, SegLinearForSemanticSegmentation
from segtransformers.conversion import ConversionError, convert_checkpoint
from segtransformers.models.linear.modeling_seg_linear import SegLinearDecodeHead

DINOV2 = ["linear", "linear-native", "linear-odd", "linear-registers", "ms-registers-shrink", "ms-resize-factors"]
DINOV2 += ["ms-swiglu", "ms-whole-batch"]
DINOV3 = ["last", "four", "floor"]
CASES = [
    *(f"dinov2_segmentors/tiny-{name}" for name in DINOV2),
    *(f"dinov3_segmentors/tiny-linear-{n}" for n in DINOV3),
]


def small_plain_vit(**changes) -> PlainViTConfig:
    settings = {
        "trunk": "vit_small_patch14_dinov2",
        "pretrain_image_size": 70,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "position_interpolation_offset": 0.1,
        "padding": "center",
        "out_indices": [2, 4],
    }
    return PlainViTConfig(**{**settings, **changes})


def small_linear(backbone_config=None, **changes) -> SegLinearConfig:
    return SegLinearConfig(backbone_config=backbone_config or small_plain_vit(), **{"num_labels": 5, **changes})


class TestPlainViT(BackboneTests):
    model_class = PlainViTBackbone
    strides = (14, 14)

    def config(self):
        return small_plain_vit()


class TestDinov3PlainViT(BackboneTests):
    """Rotated queries and keys with biases, registers and a SwiGLU."""

    model_class = PlainViTBackbone
    strides = (16,)

    def config(self):
        trunk = "vit_small_plus_patch16_dinov3_qkvb"
        return small_plain_vit(trunk=trunk, position_interpolation_offset=0, padding="bottom_right", out_indices=[4])


class TestSegLinear(SegmentationTests):
    model_class = SegLinearForSemanticSegmentation

    def config(self):
        return small_linear(resize_factors=[1, 0.5])


def described(case: ReferenceCase) -> tuple[dict[str, torch.Tensor], dict]:
    """Return the checkpoint without the buffers that follow from the config, and the config."""
    derived = case.manifest.get("derived", ())
    entries = [entry for entry in case.manifest["state_dict"] if entry[0] not in derived]
    return fill.state_dict(entries, torch.float64), case.config


@pytest.mark.parametrize("name", CASES)
def test_equals_the_original(name):
    case = ReferenceCase(name)
    model = convert_checkpoint(*described(case))
    assert type(model) is SegLinearForSemanticSegmentation
    images, outputs = case.pixel_values(), case.outputs()
    window = case.manifest.get("slide") or case.config.get("test_cfg", {})
    with torch.no_grad():
        feature_maps = model.backbone(images).feature_maps
        actual = {f"feature_{index}": feature_map for index, feature_map in enumerate(feature_maps)}
        actual["logits"] = model.decode_head(feature_maps)
        actual["segmentation_logits"] = model(images, sliding_window=False).logits
        if "sliding_window_logits" in outputs:
            model.config.inference_mode = "slide"
            model.config.window_size, model.config.window_stride = window["crop_size"], window["stride"]
            actual["sliding_window_logits"] = model(images).logits
    recorded = {key for key in outputs if key in case.manifest["outputs"] and not key.endswith("probabilities")}
    assert recorded == actual.keys()
    for key in recorded:
        assert relative_error(case.sampled(key, actual[key]), outputs[key]) < 2e-6, key


def test_every_tensor_of_the_original_is_used_or_named():
    """Counts of parameters agree except for those of pre-training."""
    for name in ("dinov2_segmentors/tiny-linear-registers", "dinov3_segmentors/tiny-linear-last"):
        case = ReferenceCase(name)
        model = convert_checkpoint(*described(case))
        shapes = {name: torch.Size(shape).numel() for name, shape, _ in case.manifest["state_dict"]}
        unused = sum(shapes[name] for name in case.manifest["unused"] if not name.endswith("tracked"))
        count = sum(parameter.numel() for parameter in model.parameters())
        if name.startswith("dinov3"):  # the biases of the keys, which are masked
            count += sum(size for name, size in shapes.items() if name.endswith("qkv.bias")) // 3
        # the position of the class token is added to the token
        moved = shapes["backbone.cls_token"] if name.endswith("registers") else 0
        assert count + unused + moved == case.manifest["num_parameters"]


def test_a_reloaded_model_is_the_same(tmp_path):
    case = ReferenceCase("dinov2_segmentors/tiny-ms-registers-shrink")
    model = convert_checkpoint(*described(case)).eval()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    with torch.no_grad():
        images = case.pixel_values()
        torch.testing.assert_close(loaded(images).logits, model(images).logits, rtol=1e-10, atol=1e-12)


def test_padding_is_centered_and_logits_cover_the_whole_image():
    """DINOv2 stretches the logits of the padded grid over the image and cuts nothing off."""
    model = SegLinearForSemanticSegmentation(small_linear()).double().eval()
    images = torch.randn(1, 3, 75, 101, dtype=torch.float64)  # 84 x 112 pixels
    with torch.no_grad():
        padded = F.pad(images, (5, 6, 4, 5))
        low = model.decode_head(model.backbone(padded).feature_maps)
        assert low.shape[2:] == (6, 8)
        torch.testing.assert_close(
            model(images).logits, F.interpolate(low, size=(75, 101), mode="bilinear", align_corners=False)
        )
        model.backbone.config.padding = "none"
        low = model.decode_head(model.backbone(images[..., :70, :98]).feature_maps)
        torch.testing.assert_close(
            model(images).logits, F.interpolate(low, size=(75, 101), mode="bilinear", align_corners=False)
        )
        assert model(images[..., :5, :9]).logits.shape == (1, 5, 5, 9)


def test_blocks_behind_the_last_feature_map_do_not_run():
    backbone = PlainViTBackbone(small_plain_vit(out_indices=[2])).eval()
    ran = []
    for index, block in enumerate(backbone.trunk.blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    with torch.no_grad():
        backbone(torch.randn(1, 3, 28, 28))
        assert ran == [0, 1]
        assert len(backbone(torch.randn(1, 3, 28, 28), output_hidden_states=True).hidden_states) == 5
    assert ran == [0, 1, 0, 1, 2, 3]


def test_reads_the_chosen_feature_maps_of_any_backbone():
    backbone_config = SwinConfig(
        embed_dim=16, depths=[1, 1, 1], num_heads=[2, 2, 2], window_size=2, out_features=["stage1", "stage2", "stage3"]
    )
    model = SegLinearForSemanticSegmentation(small_linear(backbone_config, in_index=[0, 2])).eval()
    assert model.decode_head.batch_norm.num_features == 16 + 64
    assert model(torch.randn(1, 3, 64, 64)).logits.shape == (1, 5, 64, 64)


def test_resize_factors_follow_the_original():
    head = SegLinearDecodeHead(small_linear(resize_factors=[2, 0.5]), [3, 4]).eval()
    maps = [torch.randn(1, 3, 5, 7), torch.randn(1, 4, 5, 7)]
    large = F.interpolate(maps[0], scale_factor=2.0, mode="bilinear", align_corners=False)
    small = F.interpolate(maps[1], scale_factor=0.5, mode="area")
    joined = torch.cat([large, F.interpolate(small, size=(10, 14), mode="bilinear", align_corners=False)], dim=1)
    torch.testing.assert_close(head(maps), head.classifier(head.batch_norm(joined)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_index": [-1]}, "in_index must be"),
        ({"in_index": []}, "in_index must be"),
        ({"in_index": [4]}, "at least 5 feature maps"),
        ({"resize_factors": [1, 0]}, "must be positive"),
        ({"in_index": [0], "resize_factors": [1, 2]}, "one factor for each of the 1"),
        ({"backbone_config": {"model_type": "seg_plain_vit", "padding": "left"}}, "padding must be one of"),
        (
            {"backbone_config": {"model_type": "seg_plain_vit", "position_interpolation_offset": 1.5}},
            "position_interpolation_offset must be in",
        ),
    ],
)
def test_impossible_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small_linear(**changes)
    with pytest.raises(ValueError, match="one factor for each of the 2"):
        SegLinearForSemanticSegmentation(small_linear(resize_factors=[1]))


def without_trunk(case: ReferenceCase) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in described(case)[0].items() if not name.startswith("backbone.")}


@pytest.mark.parametrize("name", ["dinov2_segmentors/tiny-linear", "dinov3_segmentors/tiny-linear-last"])
def test_a_head_without_its_backbone_is_refused(name):
    case = ReferenceCase(name)
    head = {key: tensor for key, tensor in described(case)[0].items() if "backbone." not in key and ".0." not in key}
    with pytest.raises(ConversionError, match=r"head without its backbone.*--trunk-weights"):
        convert_checkpoint(head, case.config)


def test_a_backbone_that_does_not_fit_the_head_is_refused():
    case = ReferenceCase("dinov2_segmentors/tiny-linear")
    other = ReferenceCase("dinov2_segmentors/tiny-ms-registers-shrink")
    config = case.config
    config["backbone"] = {"type": "DinoVisionTransformer", "out_indices": [2, 3, 4, 5]}  # as the authors publish it
    trunk = {name: tensor for name, tensor in described(other)[0].items() if name.startswith("backbone.")}
    del trunk["backbone.register_tokens"]
    with pytest.raises(ConversionError, match=r"in_channels is .48. .* backbone has 64 channels: pass the backbone"):
        convert_checkpoint({**without_trunk(case), **trunk}, config)
    config["backbone"]["out_indices"] = [8, 9, 10, 11]
    with pytest.raises(ConversionError, match="the backbone has 6 blocks"):
        convert_checkpoint(described(case)[0], config)


def test_a_backbone_with_registers_is_refused_for_a_head_without():
    case = ReferenceCase("dinov2_segmentors/tiny-linear-registers")
    config = case.config
    config["backbone"] = {"type": "DinoVisionTransformer", "out_indices": [2, 3, 4, 5]}
    with pytest.raises(ConversionError, match="4 register tokens, but the head was trained with 0"):
        convert_checkpoint(described(case)[0], config)


@pytest.mark.parametrize("name", ["dinov2_segmentors/tiny-ms-whole-batch", "dinov2_segmentors/tiny-linear-odd"])
def test_sizes_come_from_the_tensors_where_the_config_lacks_them(name):
    """The authors' configs name the class of the backbone and the blocks that the head reads, and no size."""
    case = ReferenceCase(name)
    config = case.config
    config["backbone"] = {key: config["backbone"][key] for key in ("type", "out_indices", "num_heads")}
    images = case.pixel_values()
    with torch.no_grad():
        logits = convert_checkpoint(described(case)[0], config)(images, sliding_window=False).logits
    key = "segmentation_logits"
    assert relative_error(case.sampled(key, logits), case.outputs()[key]) < 2e-6
