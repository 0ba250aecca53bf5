# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Segmenter against both originals, and tests of its own options."""

import accelerate
import pytest
import torch
from model_tests import SIZES, BackboneTests, SegmentationTests, randomise
from reference_cases import ReferenceCase, relative_error
from torch.nn import functional as F
from transformers import AutoModelForSemanticSegmentation, ConvNextConfig

from segtransformers import (
    SegmenterConfig,
    SegmenterForSemanticSegmentation,
    SegmenterViTBackbone,
    SegmenterViTConfig,
    ViTAdapterConfig,
    ViTCoMerConfig,
)
from segtransformers.conversion import convert_checkpoint
from segtransformers.models.segmenter.modeling_segmenter import _covering
from segtransformers.models.trunk.pretrained import load_trunk_weights

MMSEG = ["mask", "mask-no-patch-bias", "mask-same-token-count", "mask-slide", "linear"]
OFFICIAL = ["official-mask", "official-deit-mask", "official-linear"]


def small_vit(**changes) -> SegmenterViTConfig:
    settings = {
        "trunk": "vit_tiny_patch16_384",
        "pretrain_image_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "drop_path_rate": 0.2,
    }
    return SegmenterViTConfig(**{**settings, **changes})


def small_segmenter(backbone_config=None, **changes) -> SegmenterConfig:
    settings = {"num_labels": 5, "decoder_num_attention_heads": 2, "decoder_drop_path_rate": 0.2}
    return SegmenterConfig(backbone_config=backbone_config or small_vit(), **{**settings, **changes})


class ViTTests(BackboneTests):
    model_class = SegmenterViTBackbone
    strides = (16,)

    def test_a_small_image_is_padded_to_one_patch(self):
        for feature_map in self.run(self.model(), self.images(size=(1, 5))):
            assert feature_map.shape[2:] == (1, 1) and feature_map.isfinite().all()


class TestViT(ViTTests):
    def config(self):
        return small_vit()


class TestDistilledWithSmallPatches(ViTTests):
    """Two prefix tokens, patches of 8 pixels, and a feature map after each of two blocks."""

    strides = (8, 8)

    def config(self):
        return small_vit(
            trunk="deit_tiny_distilled_patch16_224", patch_size=8, out_indices=[2, 4], position_interpolation="bilinear"
        )


class TestDinov3(ViTTests):
    """A trunk with rotated queries and keys and with registers, which neither original has."""

    def config(self):
        return small_vit(trunk="vit_small_patch16_dinov3")


class SegmenterModelTests(SegmentationTests):
    model_class = SegmenterForSemanticSegmentation

    def test_a_small_image_is_padded_to_one_patch(self):
        (logits,) = self.run(self.model(), self.images(size=(1, 5)))
        assert logits.shape == (2, 5, 1, 5) and logits.isfinite().all()


class TestMaskTransformer(SegmenterModelTests):
    def config(self):
        return small_segmenter()


class TestLinear(SegmenterModelTests):
    """Padding, resizing and averaging of the official repository."""

    def config(self):
        return small_segmenter(decoder_type="linear", padding_divisor=16, count_ignored_pixels=False)


def compared(name: str) -> tuple[ReferenceCase, SegmenterForSemanticSegmentation]:
    """Return a case and its converted model after comparing features and logits with the original's."""
    case = ReferenceCase(f"segmenter/tiny-{name}")
    model = convert_checkpoint(case.state_dict(), case.config)
    outputs = case.outputs()
    mode, model.config.inference_mode = model.config.inference_mode, "whole"
    with torch.no_grad():
        maps = model.backbone(case.pixel_values()).feature_maps
        actual = {"feature_0": maps[0], "logits": model.decode_head(maps)}
        actual["segmentation_logits"] = model(case.pixel_values()).logits
        if "tokens" in outputs:
            states = model.backbone(case.pixel_values(), output_hidden_states=True).hidden_states
            actual["tokens"] = model.backbone.trunk.norm(states[-1])
        model.config.inference_mode = mode
        if "slide_logits" in outputs:
            actual["slide_logits"] = model(case.pixel_values()).logits
    assert actual.keys() == outputs.keys()
    for key, tensor in actual.items():
        assert relative_error(case.sampled(key, tensor), outputs[key]) < 2e-6, key
    return case, model


@pytest.mark.parametrize("name", MMSEG)
def test_equals_mmsegmentation(name):
    case, model = compared(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == case.manifest["num_parameters"]
    config = model.config
    assert (config.padding_divisor, config.enlarge_to_window, config.count_ignored_pixels) == (None, False, True)
    assert (config.backbone_config.patch_bias is False) == (name == "mask-no-patch-bias")
    # the epsilon that the head's norms have by default is not the one that the configs set for the backbone
    assert (config.backbone_config.layer_norm_eps, config.decoder_layer_norm_eps) == (1e-6, 1e-5)


@pytest.mark.parametrize("name", OFFICIAL)
def test_equals_the_official_repository(name):
    case, model = compared(name)
    shapes = {name: torch.Size(shape).numel() for name, shape, _ in case.manifest["state_dict"]}
    unused = sum(shapes[name] for name in case.manifest["unused"])  # the classifier of ImageNet
    assert sum(parameter.numel() for parameter in model.parameters()) == case.manifest["num_parameters"] - unused
    config, backbone = model.config, model.config.backbone_config
    assert (config.inference_mode, config.window_size, config.window_stride) == ("slide", [64, 64], [48, 48])
    assert (config.enlarge_to_window, config.count_ignored_pixels) == (True, False)
    assert config.padding_divisor == backbone.patch_size == backbone.token_stride
    assert backbone.position_interpolation == "bilinear" and backbone.layer_norm_eps == 1e-5
    assert model.backbone.trunk.num_prefix_tokens == (2 if name == "official-deit-mask" else 1)


def test_a_reloaded_model_is_the_same(tmp_path):
    """Every field that distinguishes the two originals is saved."""
    case, model = compared("official-mask")
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(case.pixel_values()).logits, model(case.pixel_values()).logits, rtol=1e-10, atol=1e-12
        )


def test_padding_is_part_of_what_logits_cover_or_is_cropped():
    model = SegmenterForSemanticSegmentation(small_segmenter()).eval()
    images = torch.randn(1, 3, 50, 70)
    with torch.no_grad():
        low = model.decode_head(model.backbone(images).feature_maps).contiguous()  # resized by the same code
        assert low.shape[2:] == (4, 5)
        stretched = F.interpolate(low, size=(50, 70), mode="bilinear", align_corners=False)
        assert torch.equal(model(images).logits, stretched)
        model.config.padding_divisor = 16
        cropped = F.interpolate(low, size=(64, 80), mode="bilinear", align_corners=False)[:, :, :50, :70]
        assert torch.equal(model(images).logits, cropped)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((30, 50), (64, 106)), ((50, 30), (106, 64)), ((64, 64), (64, 64)), ((63, 200), (64, 203)), ((1, 1), (64, 64))],
)
def test_size_that_a_window_fits_into(size, expected):
    assert _covering(size, (64, 64)) == expected


def test_images_smaller_than_the_window_are_enlarged():
    config = small_segmenter(inference_mode="slide", window_size=64, window_stride=48, enlarge_to_window=True)
    model = SegmenterForSemanticSegmentation(config).eval()
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[2:])))
    images = torch.randn(2, 3, 40, 100)
    labels = torch.randint(5, (2, 40, 100))
    with torch.no_grad():
        outputs = model(images, labels=labels)
        assert outputs.logits.shape == (2, 5, 40, 100) and outputs.loss.isfinite()
        assert seen == [(64, 64)] * 3  # 64 x 160 pixels
        large = F.interpolate(images, size=(64, 160), mode="bilinear", align_corners=False)
        expected = F.interpolate(model(large).logits, size=(40, 100), mode="bilinear", align_corners=False)
        torch.testing.assert_close(outputs.logits, expected)
        model.config.enlarge_to_window = False
        seen.clear()
        model(images)
        assert seen == [(40, 64)] * 2
        model.config.enlarge_to_window = True
        seen.clear()
        model(images[:, :, :, :64])
        model.train()(images)
        assert seen == [(64, 64), (64, 64), (40, 100)]  # 64 x 102 pixels; training never slides


def test_which_pixels_the_loss_is_averaged_over():
    model = SegmenterForSemanticSegmentation(small_segmenter(decoder_drop_path_rate=0.0)).double().eval()
    images, labels = torch.randn(2, 3, 64, 64).double(), torch.randint(5, (2, 64, 64))
    labels[:, 16:] = 255
    with torch.no_grad():
        outputs = model(images, labels=labels)
        valid = F.cross_entropy(outputs.logits, labels, ignore_index=255)
        torch.testing.assert_close(outputs.loss, valid / 4)
        model.config.count_ignored_pixels = False
        model.set_losses(None)
        torch.testing.assert_close(model(images, labels=labels).loss, valid)
        assert model(images, labels=torch.full_like(labels, 255)).loss == 0


def test_positions_stay_on_a_grid_of_as_many_tokens_only_where_the_config_says_so():
    states = {}
    for keep in (False, True):
        torch.manual_seed(0)
        model = randomise(SegmenterViTBackbone(small_vit(keep_positions_of_same_count=keep))).eval()
        model.trunk.load_state_dict(states.setdefault("weights", model.trunk.state_dict()))
        with torch.no_grad():
            for size in ((64, 64), (32, 128), (32, 64)):
                states[keep, size] = model(torch.ones(1, 3, *size)).feature_maps[0]
    assert torch.equal(states[False, (64, 64)], states[True, (64, 64)])
    assert torch.equal(states[False, (32, 64)], states[True, (32, 64)])
    assert not torch.allclose(states[False, (32, 128)], states[True, (32, 128)])


@pytest.mark.parametrize("size", SIZES)
def test_patches_of_14_pixels_stay_as_they_are(size):
    backbone = SegmenterViTBackbone(small_vit(trunk="vit_small_patch14_dinov2", pretrain_image_size=70)).eval()
    with torch.no_grad():
        (feature_map,) = backbone(torch.randn(1, 3, *size)).feature_maps
    assert feature_map.shape == (1, 32, -(-size[0] // 14), -(-size[1] // 14))
    assert backbone.config.token_stride == 14


@pytest.mark.parametrize("decoder", ["mask_transformer", "linear"])
@pytest.mark.parametrize(
    "backbone",
    [
        ConvNextConfig(hidden_sizes=[8, 16, 16, 24], depths=[1, 1, 1, 1], out_features=["stage3", "stage4"]),
        ViTAdapterConfig(num_hidden_layers=4, hidden_size=24, num_attention_heads=2, spatial_prior_channels=8),
    ],
    ids=["convnext", "vit_adapter"],
)
def test_over_other_backbones(backbone, decoder, tmp_path):
    """The decoder reads the last feature map, whose width differs from its own."""
    config = small_segmenter(backbone, decoder_type=decoder, decoder_hidden_size=16)
    model = SegmenterForSemanticSegmentation(config).eval()
    images, labels = torch.randn(2, 3, 75, 130), torch.randint(5, (2, 75, 130))
    outputs = model(images, labels=labels)
    outputs.loss.backward()
    assert outputs.logits.shape == (2, 5, 75, 130)
    assert all(parameter.grad.isfinite().all() for parameter in model.decode_head.parameters())
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        again = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)(images).logits
    torch.testing.assert_close(again, outputs.logits.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("trunk", ["vit_tiny_patch16_384", "beit_base_patch16_224"])
def test_from_trunk(trunk):
    """Load weights under the names of a download. BEiT's have no final norm, so that of the trunk stays."""
    fields = {"num_hidden_layers": 4, "hidden_size": 96, "num_attention_heads": 2, "pretrain_image_size": 128}
    backbone = SegmenterViTBackbone.from_trunk(trunk, pretrained=False, **fields)
    other = SegmenterViTBackbone.from_trunk(trunk, pretrained=False, **{**fields, "pretrain_image_size": 256})
    weights = {
        name.removeprefix("embeddings.").replace(
            "relative_position_bias_table", "attn.relative_position_bias_table"
        ): tensor
        for name, tensor in randomise(other).trunk.state_dict().items()
        if "beit" not in trunk or not name.startswith("norm.")
    }
    load_trunk_weights(backbone.trunk, backbone.config, weights, (16, 16), "the weights")
    assert torch.equal(backbone.trunk.blocks[3].mlp.fc1.weight, weights["blocks.3.mlp.fc1.weight"])
    expected = torch.ones(96) if "beit" in trunk else weights["norm.weight"]
    assert torch.equal(backbone.trunk.norm.weight, expected)
    del weights["norm.bias" if "beit" not in trunk else "blocks.0.norm1.bias"]
    with pytest.raises(ValueError, match=r"norm1?\.bias is missing"):
        load_trunk_weights(backbone.trunk, backbone.config, weights, (16, 16), "the weights")


def test_defaults():
    config = SegmenterConfig()
    assert type(config.backbone_config) is SegmenterViTConfig and config.backbone_config.out_features == ["stage12"]
    assert (config.decoder_type, config.backbone_config.token_stride, config.initializer_range) == (
        "mask_transformer",
        16,
        0.02,
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: small_segmenter(decoder_type="deeplab"),
            "decoder_type must be 'mask_transformer' or 'linear', got 'deeplab'",
        ),
        (lambda: small_segmenter(decoder_hidden_size=0), "decoder_hidden_size must be a whole number from 1"),
        (lambda: small_segmenter(padding_divisor=0), "padding_divisor must be a whole number from 1"),
        (
            lambda: small_segmenter(decoder_num_hidden_layers=0),
            "decoder_num_hidden_layers must be a whole number from 1",
        ),
        (lambda: small_segmenter(decoder_dropout=1.0), r"decoder_dropout must be a share in \[0, 1\)"),
        (lambda: small_segmenter(decoder_mlp_ratio=0), "decoder_mlp_ratio must be positive"),
        (
            lambda: SegmenterForSemanticSegmentation(small_segmenter(decoder_num_attention_heads=5)),
            r"width \(32\) must be a multiple of its 5 heads",
        ),
        (lambda: small_vit(position_interpolation="nearest"), "must be 'bicubic' or 'bilinear', got 'nearest'"),
        (lambda: small_vit(token_stride=8), r"token_stride is 8 and .* patches of 16x16 pixels"),
        (lambda: small_vit(out_features=["stage5"]), "stage5"),
        (lambda: ViTCoMerConfig(token_stride=8, patch_size=8), "token_stride must be 16"),
        (lambda: small_vit(trunk="vit_base_r50_s16_224"), "its embedding is a HybridEmbed"),
    ],
)
def test_impossible_configs_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_weights_can_stay_on_disk_until_they_are_needed(tmp_path):
    model = SegmenterForSemanticSegmentation(small_segmenter()).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(images).logits
        accelerate.disk_offload(model, tmp_path, execution_device="cpu")
        torch.testing.assert_close(model(images).logits, expected, rtol=1e-5, atol=1e-5)
