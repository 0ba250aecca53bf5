# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
import accelerate
import pytest
import torch
from model_tests import BackboneTests
from reference_cases import ReferenceCase, relative_error
from transformers import (
    CONFIG_MAPPING,
)

from segtransformers import (
    InternImageBackbone,
    InternImageConfig,
)
from segtransformers.conversion import ConversionError, convert_checkpoint
from segtransformers.operators import DeformableConvolutionV3

MAPS = ["stage1", "stage2", "stage3", "stage4"]


def small_internimage(**changes) -> InternImageConfig:
    """Return a small config with the options of InternImage-T."""
    settings = {
        "embed_dim": 16,
        "depths": [1, 1, 3, 1],
        "num_groups": [1, 2, 4, 8],
        "drop_path_rate": 0.2,
        "out_features": MAPS,
    }
    return InternImageConfig(**{**settings, **changes})


class InternImageTests(BackboneTests):
    model_class = InternImageBackbone

    def test_hidden_states(self):
        model, images = self.model(), self.images()
        with torch.no_grad():
            outputs = model(images, output_hidden_states=True)
            assert model(images).hidden_states is None
            picked = model(images, output_hidden_states=[-1]).hidden_states
        shapes = [tuple(state.shape) for state in outputs.hidden_states]
        assert shapes == [(2, 16, 16, 24), (2, 16, 16, 24), (2, 32, 8, 12), (2, 64, 4, 6), (2, 128, 2, 3)]
        assert all(map(torch.equal, outputs.hidden_states[1:], outputs.feature_maps))
        assert torch.equal(picked[-1], outputs.hidden_states[-1]) and picked[0] is None


class TestT(InternImageTests):
    def config(self):
        return small_internimage()


class TestL(InternImageTests):
    """Post-norm with layer scale and widely spaced points."""

    def config(self):
        return small_internimage(post_norm=True, offset_scale=2.0)


class TestH(InternImageTests):
    """Norms of inputs and outputs, gates, a larger depthwise kernel, norms between blocks, no center point."""

    def config(self):
        return small_internimage(
            layer_scale_init_value=None,
            res_post_norm=True,
            center_feature_scale=True,
            depthwise_kernel_size=5,
            stage3_norm_block_ids=[0, 2],
            remove_center=True,
        )


class TestG(InternImageTests):
    """Post-norm without a layer scale, and gates."""

    def config(self):
        return small_internimage(layer_scale_init_value=None, post_norm=True, center_feature_scale=True)


@pytest.mark.parametrize("name", ["t", "b", "l", "h", "g", "plain"])
def test_segmentors_equal_the_original(name):
    case = ReferenceCase(f"internimage/tiny-{name}-upernet")
    model = convert_checkpoint(case.state_dict(), case.config)
    outputs = case.outputs()
    with torch.no_grad():
        maps = model.backbone(case.pixel_values()).feature_maps
        actual = {f"feature_{level}": feature_map for level, feature_map in enumerate(maps)}
        actual["logits"], actual["auxiliary_logits"] = model.decode_head(maps), model.auxiliary_head(maps)
        actual["segmentation_logits"] = model(case.pixel_values()).logits
    assert actual.keys() == outputs.keys()
    for key, tensor in actual.items():
        assert relative_error(case.sampled(key, tensor), outputs[key]) < 2e-6, key


def test_mask2former_over_windows_equals_the_original():
    case = ReferenceCase("internimage/tiny-h-mask2former-slide")
    model = convert_checkpoint(case.state_dict(), case.config)
    outputs = case.outputs()
    assert model.config.inference_mode == "slide" and model.config.window_size == case.config["test_cfg"]["crop_size"]
    with torch.no_grad():
        actual = {
            f"feature_{level}": feature_map
            for level, feature_map in enumerate(model.backbone(case.pixel_values()).feature_maps)
        }
        actual["sliding_window_logits"] = model(case.pixel_values()).logits
        model.config.inference_mode = "whole"
        actual["segmentation_logits"] = model(case.pixel_values()).logits
    for key, tensor in actual.items():
        assert relative_error(case.sampled(key, tensor), outputs[key]) < 2e-6, key


@pytest.mark.parametrize("name", ["t", "l", "h", "remove-center"])
def test_classifiers_of_the_hub_become_backbones(name):
    case = ReferenceCase(f"internimage/tiny-hub-{name}")
    backbone = convert_checkpoint(case.state_dict(), case.config)
    assert type(backbone) is InternImageBackbone and not backbone.training
    assert backbone.out_features == MAPS
    with torch.no_grad():
        maps = backbone(case.pixel_values()).feature_maps
    outputs = case.outputs()
    for level, feature_map in enumerate(maps):
        assert relative_error(case.sampled(f"feature_{level}", feature_map), outputs[f"feature_{level}"]) < 2e-6
    kept = {name: tensor for name, tensor in case.state_dict().items() if name not in case.manifest["not_backbone"]}
    counted = sum(tensor.numel() for name, tensor in kept.items() if "conv_head" not in name)  # running statistics
    assert sum(parameter.numel() for parameter in backbone.parameters()) == counted


def test_classifier_files_become_backbones():
    """Names in `.pth` files have no prefix. InternImage-T's file has no layer scale, which segmentors start at 1."""
    case = ReferenceCase("internimage/tiny-hub-t")
    state_dict = {name.removeprefix("model."): tensor for name, tensor in case.state_dict().items()}
    names = ("channels", "depths", "groups", "mlp_ratio", "offset_scale", "post_norm")
    config = {"type": "InternImage", "layer_scale": 1.0, **{name: case.config[name] for name in names}}
    backbone = convert_checkpoint(state_dict, config)
    assert backbone.config.layer_scale_init_value == 1.0 and (backbone.stages[0].blocks[0].spatial.gamma == 1).all()
    outputs = case.outputs()
    with torch.no_grad():
        for level, feature_map in enumerate(backbone(case.pixel_values()).feature_maps):
            assert relative_error(case.sampled(f"feature_{level}", feature_map), outputs[f"feature_{level}"]) < 2e-6


def test_trained_layer_scale_of_a_classifier_is_kept():
    case = ReferenceCase("internimage/tiny-hub-l")
    backbone = convert_checkpoint(case.state_dict(), case.config)
    gamma = case.state_dict()["model.levels.2.blocks.1.layer_scale2"]
    assert torch.equal(backbone.stages[2].blocks[1].channel.gamma, gamma)


def test_what_the_original_builds_and_does_not_use_is_left_out():
    case = ReferenceCase("internimage/tiny-l-upernet")
    config, state_dict = case.config, case.state_dict()
    config["backbone"]["res_post_norm"] = True
    for name in [name for name in state_dict if ".norm1.0." in name and "blocks" in name]:
        state_dict[name.replace("norm1", "res_post_norm1")] = torch.zeros_like(state_dict[name])
    model = convert_checkpoint(state_dict, config)
    with torch.no_grad():
        logits = case.sampled("segmentation_logits", model(case.pixel_values()).logits)
    assert relative_error(logits, case.outputs()["segmentation_logits"]) < 2e-6


def _change(**values):
    return lambda config: config["backbone"].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_change(surprise=1), "backbone has unknown settings: surprise"),
        (_change(norm_layer="BN"), "backbone.norm_layer is 'BN'; only 'LN'"),
        (_change(core_op="DCNv4"), "core_op is 'DCNv4'; only 'DCNv3' or 'DCNv3_pytorch'"),
        (_change(use_dcn_v4_op=True), "use_dcn_v4_op is True; only False"),
        (_change(groups=[3, 4, 8, 16]), "an impossible model: num_groups"),
        (_change(depths=[1, 1, 1]), "an impossible model: depths must be 4 numbers"),
        (_change(depths="deep"), "depths is 'deep'; expected a list of integers"),
        (_change(out_indices=[4]), r"out_indices is \[4\]"),
        (_change(layer_scale=None), "tensors that the model does not have: backbone.levels.0.blocks.0.gamma1"),
        (_change(dw_kernel_size=5), "dcn.dw_conv.0.weight is 32x1x3x3, expected 32x1x5x5"),
        (_change(post_norm=True), "does not have: backbone.levels.0.norm.0.weight"),
        (_change(center_feature_scale=True), "the checkpoint lacks .*center_gate"),
        (_change(level2_post_norm=True, level2_post_norm_block_ids=[7]), "an impossible model: stage3_norm_block_ids"),
        (lambda config: config["decode_head"].update(num_classes=150), "auxiliary_head.num_classes differs"),
        (lambda config: config.update(model_type="resnet"), "type is 'resnet'; known types are"),
    ],
)
def test_configs_that_do_not_fit_are_refused(change, message):
    case = ReferenceCase("internimage/tiny-t-upernet")
    config = case.config
    change(config)
    with pytest.raises(ConversionError, match=message):
        convert_checkpoint(case.state_dict(), config)


def test_the_classifier_tells_the_number_of_classes():
    """The configs for Cityscapes have 150 classes, unlike the checkpoints."""
    case = ReferenceCase("internimage/tiny-t-upernet")
    config = case.config
    for head in ("decode_head", "auxiliary_head"):
        config[head]["num_classes"] = 150
    assert convert_checkpoint(case.state_dict(), config).config.num_labels == 7


def test_a_segmentor_is_no_classifier():
    case = ReferenceCase("internimage/tiny-t-upernet")
    with pytest.raises(ConversionError, match=r"does not have: backbone\.patch_embed"):
        convert_checkpoint(case.state_dict(), case.config["backbone"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dim": 15}, "embed_dim must be an even number"),
        ({"depths": [1, 1, 1]}, "depths must be 4 numbers of at least 1"),
        ({"depths": [1, 0, 1, 1]}, r"depths\[1\] must be a whole number from 1 to 1000, got 0"),
        ({"num_groups": [3, 2, 4, 8]}, "num_groups .* must divide the stages' channels"),
        ({"mlp_ratio": 0.01}, "leaves no channel of 16"),
        ({"offset_scale": 0}, "offset_scale must be more than 0"),
        ({"depthwise_kernel_size": 4}, "must be odd"),
        ({"drop_path_rate": 1.0}, r"\[0, 1\)"),
        ({"stage3_norm_block_ids": [3]}, "different blocks of the 3 of the third stage"),
        ({"stage3_norm_block_ids": [1, 1]}, "different blocks"),
        ({"out_features": ["stage5"]}, "stage5"),
    ],
)
def test_impossible_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small_internimage(**changes)


def test_defaults_are_the_tiny_model():
    config = InternImageConfig(out_features=MAPS)
    with torch.device("meta"):
        backbone = InternImageBackbone(config)
    assert backbone.channels == [64, 128, 256, 512]
    # the reference's count of the classifier less its convolution, norm and linear layer, with 2 * 2 scales per channel
    classifier = 768 * 512 + 2 * 768 + 1000 * 768 + 1000
    scales = 2 * sum(depth * width for depth, width in zip(config.depths, config.hidden_sizes, strict=True))
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 29918424 - classifier + scales


def test_drop_path_grows_over_all_blocks():
    backbone = InternImageBackbone(small_internimage(drop_path_rate=0.5))
    rates = [[block.spatial.drop_path.p for block in stage.blocks] for stage in backbone.stages]
    assert rates == [[0.0], [pytest.approx(0.1)], pytest.approx([0.2, 0.3, 0.4]), [0.5]]
    for stage in backbone.stages:
        for block in stage.blocks:
            assert block.spatial.drop_path.p == block.channel.drop_path.p


def test_does_not_take_the_originals_type():
    """OpenGVLab's checkpoints of the type `internimage` load with their own code."""
    assert InternImageConfig.model_type == "seg_internimage" and "internimage" not in CONFIG_MAPPING


def test_offsets_keep_their_precision_under_autocast():
    backbone = InternImageBackbone(small_internimage()).eval()
    seen = []
    for module in backbone.modules():
        if isinstance(module, DeformableConvolutionV3):
            module.register_forward_pre_hook(lambda _, arguments: seen.append([t.dtype for t in arguments[:3]]))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        backbone(torch.randn(1, 3, 64, 64))
    assert seen == [[torch.bfloat16, torch.float32, torch.bfloat16]] * 6


def test_weights_can_stay_on_disk_until_they_are_needed(tmp_path):
    model = InternImageBackbone(small_internimage(stage3_norm_block_ids=[1])).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(images).feature_maps
        accelerate.disk_offload(model, tmp_path, execution_device="cpu")
        for feature_map, other in zip(model(images).feature_maps, expected, strict=True):
            torch.testing.assert_close(feature_map, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["mlp_ratio", "offset_scale", "layer_norm_eps", "initializer_range"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_numbers_that_would_give_nan_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be more than 0"):
        InternImageConfig(**{name: value})
