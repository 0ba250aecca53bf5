# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""New modules start as their authors start them, also where the layers are initialised by the module around them."""

import math

import pytest
import torch
from test_vit_adapter import small_config
from torch import nn
from transformers.models.upernet.modeling_upernet import UperNetConvModule

from segtransformers import (
    InternImageBackbone,
    InternImageConfig,
    SegMask2FormerConfig,
    SegMask2FormerForSemanticSegmentation,
    SegUperNetConfig,
    SegUperNetForSemanticSegmentation,
    ViTAdapterBackbone,
    ViTCoMerBackbone,
    ViTCoMerConfig,
)
from segtransformers.models.internimage.modeling_internimage import InternImageDeformableConvolution
from segtransformers.models.layers.deformable_attention import DeformableAttention


def comer_config() -> ViTCoMerConfig:
    return ViTCoMerConfig(
        trunk="vit_tiny_patch16_224",
        pretrain_image_size=64,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        spatial_prior_channels=8,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def mask2former() -> SegMask2FormerForSemanticSegmentation:
    config = SegMask2FormerConfig(
        backbone_config=small_config(),
        hidden_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        norm_groups=8,
        num_attention_heads=4,
        encoder_feedforward_dim=48,
        dim_feedforward=48,
        num_queries=6,
    )
    return SegMask2FormerForSemanticSegmentation(config)


def modules(model: nn.Module, kind: type[nn.Module]) -> list:
    found = [module for module in model.modules() if isinstance(module, kind)]
    assert found
    return found


@pytest.mark.parametrize(
    "make",
    [lambda: ViTAdapterBackbone(small_config()), lambda: ViTCoMerBackbone(comer_config()), mask2former],
    ids=["vit_adapter", "vit_comer", "mask2former"],
)
def test_deformable_attention_looks_in_all_directions(make):
    """Deformable DETR: point p of head m looks p + 1 pixels into direction m of a ring, all with equal weights."""
    for attention in modules(make(), DeformableAttention):
        assert not attention.sampling_offsets.weight.any() and not attention.attention_weights.weight.any()
        heads, levels, points = attention.num_heads, attention.num_levels, attention.num_points
        offsets = attention.sampling_offsets.bias.view(heads, levels, points, 2)
        reach = offsets.abs().amax(-1)
        torch.testing.assert_close(reach, torch.arange(1.0, points + 1).expand(heads, levels, points))
        directions = offsets[:, 0, 0]
        assert len(directions.round(decimals=3).unique(dim=0)) == heads


def test_internimage_starts_as_an_average_over_its_kernel():
    config = InternImageConfig(
        embed_dim=16, depths=[1, 1, 1, 1], num_groups=[1, 2, 4, 8], center_feature_scale=True, out_indices=[4]
    )
    for convolution in modules(InternImageBackbone(config), InternImageDeformableConvolution):
        for linear in (convolution.offset, convolution.mask, convolution.center_gate):
            assert not linear.weight.any() and not linear.bias.any()
        bound = math.sqrt(6 / (2 * convolution.input_proj.in_features))
        assert 0.9 * bound < convolution.input_proj.weight.abs().max() <= bound


def test_upernet_keeps_the_variance_of_its_input():
    model = SegUperNetForSemanticSegmentation(SegUperNetConfig(backbone_config=small_config(), hidden_size=16))
    for module in modules(model, UperNetConvModule):
        weight = module.conv.weight
        if weight.numel() > 1000:
            expected = math.sqrt(2 / (weight.shape[0] * weight[0, 0].numel()))
            assert abs(weight.std() / expected - 1) < 0.1
    assert model.decode_head.classifier.weight.std() < 0.02


def test_mask2former_predicts_from_small_weights():
    model = mask2former()
    for linear in (model.class_predictor, *modules(model.transformer_module.decoder.mask_predictor, nn.Linear)):
        bound = 1 / math.sqrt(linear.in_features)
        assert 0.8 * bound < linear.weight.abs().max() <= bound and linear.bias.any()


def test_loaded_weights_are_left_alone(tmp_path):
    """A new head around a trained backbone: what was loaded stays, what is new starts as above."""
    backbone = ViTAdapterBackbone(small_config())
    for parameter in backbone.parameters():
        parameter.data.normal_()
    backbone.save_pretrained(tmp_path)
    model = SegUperNetForSemanticSegmentation.from_pretrained(tmp_path, num_labels=3)
    for (name, tensor), other in zip(backbone.state_dict().items(), model.backbone.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name
    weight = model.decode_head.bottleneck.conv.weight
    assert abs(weight.std() / math.sqrt(2 / (weight.shape[0] * 9)) - 1) < 0.1
