# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Arguments of configs that are none of their fields work, are refused by name, or cause a warning."""

import json

import pytest
import torch
from test_internimage import small_internimage
from test_seg_upernet import small_head as small_upernet
from test_segmenter import small_segmenter, small_vit
from test_vit_adapter import small_config as small_adapter
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModelForSemanticSegmentation,
    ConvNextConfig,
    Mask2FormerConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)
from transformers.utils import logging

from segtransformers import (
    InternImageConfig,
    SegMask2FormerConfig,
    SegmenterConfig,
    SegmenterForSemanticSegmentation,
    SegSegformerConfig,
    SegUperNetConfig,
    SegUperNetForSemanticSegmentation,
    ViTAdapterConfig,
    ViTCoMerConfig,
)

MAPS = ["stage1", "stage2", "stage3", "stage4"]
CONVNEXT = {"hidden_sizes": [8, 16, 16, 24], "depths": [1, 1, 1, 1], "out_features": MAPS}


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (lambda: SegUperNetConfig(loss_ignore_index=0), "semantic_loss_ignore_index", 0),
        (lambda: SegMask2FormerConfig(ignore_value=0), "semantic_loss_ignore_index", 0),
        (lambda: SegMask2FormerConfig(hidden_size=64), "hidden_dim", 64),
        (lambda: SegSegformerConfig(classifier_dropout_prob=0.5), "classifier_dropout", 0.5),
        (lambda: SegSegformerConfig(decoder_hidden_size=64), "hidden_size", 64),
        (lambda: SegUperNetConfig(auxiliary_in_channels=192), "auxiliary_in_channels", 192),
        (lambda: SegmenterConfig(decoder="linear"), "decoder_type", "linear"),
        (lambda: ViTAdapterConfig(image_size=256), "pretrain_image_size", [256, 256]),
        (lambda: ViTCoMerConfig(layerscale_value=0.5), "layer_scale_init_value", 0.5),
        (lambda: ViTAdapterConfig(intermediate_size=768), "mlp_ratio", 4.0),
        (lambda: InternImageConfig(hidden_sizes=[64, 128, 256, 512]), "embed_dim", 64),
        (lambda: SegMask2FormerConfig(dropout=0.0, feature_size=64, hidden_size=64), "hidden_dim", 64),
    ],
)
def test_names_of_stock_configs_work(make, name, value, tmp_path):
    config = make()
    assert getattr(config, name) == value
    config.save_pretrained(tmp_path)
    assert getattr(AutoConfig.from_pretrained(tmp_path), name) == value


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SegMask2FormerConfig(dropout=0.1), r"cannot take dropout=0.1: the model always has 0.0; leave it out"),
        (lambda: SegMask2FormerConfig(feature_size=128), "cannot take feature_size=128"),
        (lambda: SegUperNetConfig(use_pretrained_backbone=True), "cannot take use_pretrained_backbone=True"),
        (
            lambda: ViTAdapterConfig(intermediate_size=100),
            "cannot take intermediate_size=100: the model always has 768",
        ),
        (
            lambda: InternImageConfig(hidden_sizes=[1, 2, 4, 8]),
            r"cannot take hidden_sizes=.* follows from other fields",
        ),
        (
            lambda: SegUperNetConfig(hiden_size=64),
            "SegUperNetConfig has no field 'hiden_size': did you mean 'hidden_size'",
        ),
        (lambda: ViTAdapterConfig(num_layers=4, num_hidden_layer=4), "did you mean 'num_hidden_layers'"),
        (lambda: InternImageConfig(depth=[1, 1, 1, 1]), "did you mean 'depths'"),
        (lambda: SegmenterConfig(decoder="deeplab"), "decoder_type must be"),
    ],
)
def test_what_the_model_cannot_follow_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_other_arguments_are_kept_with_a_warning(caplog, tmp_path):
    logging.enable_propagation()
    config = SegUperNetConfig(dataset="ADE20K", quantization_config={"bits": 4}, num_labels=3, label_smoothing=0.1)
    assert "SegUperNetConfig has no use for: dataset, label_smoothing." in caplog.text
    assert config.dataset == "ADE20K"
    caplog.clear()
    del config.dataset, config.label_smoothing
    config.save_pretrained(tmp_path)
    AutoConfig.from_pretrained(tmp_path)
    assert "no use" not in caplog.text
    logging.disable_propagation()


def test_auxiliary_channels_of_another_width_are_refused():
    config = small_upernet(ConvNextConfig(**CONVNEXT), auxiliary_in_channels=17)
    with pytest.raises(ValueError, match="auxiliary_in_channels is 17, but feature map 2 of the backbone has 16"):
        SegUperNetForSemanticSegmentation(config)
    config.auxiliary_in_channels = 16
    SegUperNetForSemanticSegmentation(config)


def test_a_stock_upernet_becomes_ours(tmp_path):
    """Config and weights: the two have the same names."""
    stock = UperNetConfig(
        backbone_config=ConvNextConfig(**CONVNEXT),
        num_labels=7,
        hidden_size=16,
        auxiliary_channels=8,
        loss_ignore_index=3,
    )
    config = SegUperNetConfig.from_dict(stock.to_dict())
    assert type(config.backbone_config) is ConvNextConfig and config.model_type == "seg_upernet"
    assert (config.num_labels, config.hidden_size, config.semantic_loss_ignore_index) == (7, 16, 3)
    model = UperNetForSemanticSegmentation(stock).eval()
    model.save_pretrained(tmp_path)
    ours, info = SegUperNetForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(images).logits, model(images).logits, rtol=1e-4, atol=1e-5)


def test_a_stock_mask2former_config_becomes_ours():
    stock = Mask2FormerConfig(backbone_config=ConvNextConfig(**CONVNEXT), num_labels=7, num_queries=9, ignore_value=3)
    config = SegMask2FormerConfig.from_dict(stock.to_dict())
    assert (config.num_queries, config.num_labels, config.semantic_loss_ignore_index) == (9, 7, 3)
    with pytest.raises(ValueError, match="pre_norm=True"):
        SegMask2FormerConfig.from_dict({**stock.to_dict(), "pre_norm": True})


def test_a_saved_segmenter_with_the_old_field_loads(tmp_path):
    model = SegmenterForSemanticSegmentation(small_segmenter(decoder_type="linear"))
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    saved["decoder"] = saved.pop("decoder_type")
    (tmp_path / "config.json").write_text(json.dumps(saved))
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert loaded.config.decoder_type == "linear" and not hasattr(loaded.config, "decoder")
    assert (
        loaded.config.get_text_config() is loaded.config
        and loaded.config.get_text_config(decoder=True) is loaded.config
    )


@pytest.mark.parametrize(
    "config", [small_vit(num_channels=4), small_internimage(num_channels=4), small_adapter(num_channels=4)]
)
def test_images_of_other_channels(config):
    backbone = AutoBackbone.from_config(config).eval()
    assert backbone.get_input_embeddings().weight.shape[1] == 4
    with torch.no_grad():
        assert backbone(torch.randn(1, 4, 64, 96)).feature_maps[-1].isfinite().all()
        with pytest.raises(ValueError, match=r"\(batch, 4, .*, got torch.float32 \(1, 3, 64, 96\).* num_channels=4"):
            backbone(torch.randn(1, 3, 64, 96))
    with pytest.raises(ValueError, match="num_channels must be a whole number from 1"):
        type(config)(num_channels=0)


@pytest.mark.parametrize(
    ("config_class", "fields", "message"),
    [
        (ViTAdapterConfig, {"interaction_indexes": [[0, 10**9]]}, "interaction_indexes must be pairs"),
        (ViTAdapterConfig, {"interaction_indexes": [[0, 11]] * 10**6}, "interaction_indexes must be pairs"),
        (ViTAdapterConfig, {"interaction_indexes": [[0, 2], [4, 11]]}, "interaction_indexes must be pairs"),
        (ViTAdapterConfig, {"num_hidden_layers": 10**9}, "num_hidden_layers must be a whole number from 1 to 1000"),
        (ViTAdapterConfig, {"pretrain_image_size": 10**9}, r"pretrain_image_size\[0\] must be a whole number"),
        (InternImageConfig, {"depths": [4, 4, 10**9, 4]}, r"depths\[2\] must be a whole number from 1 to 1000"),
        (
            InternImageConfig,
            {"depthwise_kernel_size": 10**6 + 1},
            "depthwise_kernel_size must be a whole number from 1",
        ),
        (SegUperNetConfig, {"pool_scales": [1] * 10**5}, "pool_scales must be 1 to 16 sides, got 100000"),
        (SegUperNetConfig, {"pool_scales": [10**5]}, r"pool_scales\[0\] must be a whole number from 1 to 256"),
        (SegUperNetConfig, {"num_labels": 10**9}, "num_labels must be a whole number from 1 to 65536"),
        (SegUperNetConfig, {"window_size": 0}, "window_size must be two whole numbers of pixels"),
        (SegUperNetConfig, {"window_size": [10**9, 32]}, "window_size must be two whole numbers of pixels"),
        (SegMask2FormerConfig, {"num_queries": 10**9}, "num_queries must be a whole number from 1"),
        (
            SegmenterConfig,
            {"decoder_num_hidden_layers": 10**9},
            "decoder_num_hidden_layers must be a whole number from 1",
        ),
    ],
)
def test_sizes_that_would_fill_the_memory_are_refused_at_once(config_class, fields, message):
    with pytest.raises(ValueError, match=message) as raised:
        config_class(**fields)
    assert len(str(raised.value)) < 300
