# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch
from model_tests import BackboneTests
from reference_cases import ReferenceCase, relative_error

from segtransformers import ViTAdapterBackbone, ViTAdapterConfig
from segtransformers.conversion import convert_checkpoint

CASES = ["", "-light", "-nofeature", "-noscale", "-pretrain384", "-windowed"]
MAPS = ["stage1", "stage2", "stage3", "stage4"]


def small_config(**changes) -> ViTAdapterConfig:
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
        "out_features": MAPS,
    }
    return ViTAdapterConfig(**{**settings, **changes})


class TestViTAdapterBackbone(BackboneTests):
    model_class = ViTAdapterBackbone

    def config(self):
        return small_config()


class TestWindowed(BackboneTests):
    """Attention in windows that do not divide the token grid, and no prefix tokens."""

    model_class = ViTAdapterBackbone

    def config(self):
        return small_config(window_sizes=[3, 0, 2, 5], use_prefix_tokens=False)


class TestRegisters(BackboneTests):
    """A trunk with register tokens whose positions do not cover the prefix; the light settings."""

    model_class = ViTAdapterBackbone

    def config(self):
        return small_config(
            trunk="vit_medium_patch16_reg4_gap_256",
            interaction_indexes=[[0, 0], [1, 3]],
            add_trunk_features=False,
            use_conv_ffn=False,
            use_extra_extractors=False,
        )


@pytest.mark.parametrize("name", CASES)
def test_maps_equal_the_original(name):
    case = ReferenceCase(f"vit_adapter/tiny-vit{name}-upernet")
    backbone = convert_checkpoint(case.state_dict(), case.config).backbone
    with torch.no_grad():
        maps = backbone(case.pixel_values()).feature_maps
    outputs = case.outputs()
    for level, map_ in enumerate(maps):
        assert relative_error(case.sampled(f"feature_{level}", map_), outputs[f"feature_{level}"]) < 2e-6


def test_odd_sizes_are_padded_and_cropped():
    model = ViTAdapterBackbone(small_config()).eval()
    image = torch.randn(1, 3, 50, 70)
    padded = torch.zeros(1, 3, 64, 96)
    padded[:, :, :50, :70] = image
    with torch.no_grad():
        for map_, whole in zip(model(image).feature_maps, model(padded).feature_maps, strict=True):
            assert torch.equal(map_, whole[:, :, : map_.shape[2], : map_.shape[3]])


def test_defaults_are_the_tiny_model():
    config = ViTAdapterConfig()
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (192, 12, 3)
    assert config.interaction_indexes == [[0, 2], [3, 5], [6, 8], [9, 11]]
    assert (config.mlp_ratio, config.qkv_bias, config.layer_scale_init_value) == (4.0, True, 0.0)
    assert (config.layer_norm_eps, config.pretrain_image_size) == (1e-6, [224, 224])


def test_explicit_fields_survive_saving_even_where_timm_differs(tmp_path):
    small_config(trunk="vit_base_patch16_384", mlp_ratio=4.0, qkv_bias=False).save_pretrained(tmp_path)
    loaded = ViTAdapterConfig.from_pretrained(tmp_path)
    assert (loaded.mlp_ratio, loaded.qkv_bias, loaded.pretrain_image_size) == (4.0, False, [64, 64])


def test_loading_does_not_ask_timm_for_weights(tmp_path, monkeypatch):
    ViTAdapterBackbone(small_config()).save_pretrained(tmp_path)
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *args, **kwargs: pytest.fail("timm was asked"))
    ViTAdapterBackbone.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trunk": "no_such_model"}, "timm .* has no architecture 'no_such_model'.*plain ViT"),
        ({"trunk": "resnet18"}, "'resnet18' cannot be a trunk: it is a ResNet"),
        ({"trunk": "swin_tiny_patch4_window7_224"}, "it is a SwinTransformer"),
        ({"trunk": "vit_small_patch32_224"}, "patches of 32x32 pixels"),
        ({"trunk": "vit_base_patch16_224.augreg_in21k"}, "without a hub prefix or weight tag .*'vit_base_patch16_224'"),
        ({"trunk": "hf_hub:timm/vit_base_patch16_224"}, "did you mean 'vit_base_patch16_224'"),
        ({"interaction_indexes": [[0, 1], [3, 3]]}, "cover blocks 0 to 3 in order"),
        ({"interaction_indexes": [[0, 3]]}, "add_trunk_features needs four interactions"),
        ({"num_attention_heads": 5}, "multiple of num_attention_heads"),
        ({"deformable_num_heads": 3}, r"hidden_size \* deformable_value_ratio \(16\)"),
        ({"num_hidden_layers": 2}, "trunk of 2 blocks cannot be cut into 4"),
        ({"window_sizes": [2, 2], "use_prefix_tokens": False}, "window_sizes needs one side"),
        ({"window_sizes": [2, 2, 2, 2]}, "set use_prefix_tokens=False"),
        ({"pretrain_image_size": 8}, "at least one patch"),
        ({"out_features": ["stage9"]}, "stage9"),
    ],
)
def test_impossible_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ViTAdapterBackbone(small_config(**changes))
