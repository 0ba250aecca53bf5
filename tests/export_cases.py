# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Small models of each family with each of its heads, for tests of exported files."""

import torch
from model_tests import randomise
from test_combinations import OURS
from test_dino_mask2former import frozen_config, native_config
from test_eva01 import eva_config
from test_flash_internimage import small_flash
from test_internimage import small_internimage
from test_seg_linear import small_linear, small_plain_vit
from test_segmenter import small_segmenter, small_vit
from test_vit_adapter import small_config
from test_vit_comer import small_comer
from test_vit_simple_pyramid import small_pyramid

from segtransformers import (
    SegLinearForSemanticSegmentation,
    SegMask2FormerConfig,
    SegMask2FormerForSemanticSegmentation,
    SegmentationImageProcessor,
    SegmenterForSemanticSegmentation,
    SegSegformerConfig,
    SegSegformerForSemanticSegmentation,
    SegUperNetConfig,
    SegUperNetForSemanticSegmentation,
)
from segtransformers.models.pyramid.modeling_pyramid import PyramidBackbone

SIZE = (64, 96)
ONE_LAYER = {"num_hidden_layers": 1, "interaction_indexes": [[0, 0]], "add_trunk_features": False}
BACKBONES = {
    "vit_adapter": lambda: small_config(**ONE_LAYER),
    "vit_adapter_beit": lambda: small_config(trunk="beitv2_base_patch16_224", **ONE_LAYER),
    "vit_adapter_dinov3": lambda: small_config(trunk="vit_small_patch16_dinov3", **ONE_LAYER),
    "vit_adapter_windowed": lambda: small_config(window_sizes=[3], use_prefix_tokens=False, **ONE_LAYER),
    "vit_comer": lambda: small_comer(**ONE_LAYER),
    "internimage": lambda: small_internimage(depths=[1, 1, 1, 1]),
}


def upernet(backbone):
    config = SegUperNetConfig(backbone_config=backbone(), hidden_size=16, auxiliary_channels=8, num_labels=5)
    return SegUperNetForSemanticSegmentation(config)


def mask2former(backbone, **changes):
    config = SegMask2FormerConfig(
        backbone_config=backbone(),
        hidden_dim=16,
        mask_feature_size=16,
        num_attention_heads=2,
        encoder_layers=1,
        encoder_feedforward_dim=24,
        encoder_attention_heads=2,
        norm_groups=4,
        decoder_layers=2,
        dim_feedforward=24,
        num_queries=7,
        num_labels=5,
        **changes,
    )
    return SegMask2FormerForSemanticSegmentation(config)


def segformer(backbone):
    config = SegSegformerConfig(backbone_config=backbone(), hidden_size=16, num_labels=5)
    return SegSegformerForSemanticSegmentation(config)


def linear(**changes):
    backbone = small_plain_vit(num_hidden_layers=2, out_indices=[1, 2], **changes)
    return SegLinearForSemanticSegmentation(small_linear(backbone))


def segmenter(**changes):
    vit = small_vit(num_hidden_layers=1)
    return SegmenterForSemanticSegmentation(small_segmenter(vit, decoder_num_hidden_layers=1, **changes))


MODELS = {
    **{f"{name}-upernet": (lambda backbone=backbone: upernet(backbone)) for name, backbone in BACKBONES.items()},
    **{
        f"{name}-mask2former": (lambda backbone=backbone: mask2former(backbone)) for name, backbone in BACKBONES.items()
    },
    "dinov2_adapter-mask2former": lambda: mask2former(lambda: native_config(**ONE_LAYER)),
    "dinov3_adapter-mask2former": lambda: mask2former(lambda: frozen_config(**ONE_LAYER), resize_mask_logits=True),
    "one_peace-upernet": lambda: upernet(lambda: small_config(trunk="one_peace_giant_patch16", **ONE_LAYER)),
    "eva01-upernet": lambda: upernet(lambda: eva_config(**ONE_LAYER)),
    "eva02-upernet": lambda: upernet(lambda: small_pyramid(num_hidden_layers=2)),
    "flash_internimage-upernet": lambda: upernet(lambda: small_flash(depths=[1, 1, 1, 1])),
    "dinov3-linear": lambda: linear(trunk="vit_small_patch16_dinov3"),
    "swin-upernet": lambda: upernet(OURS["seg_swin"]),
    "convnext-upernet": lambda: upernet(OURS["seg_convnext"]),
    "resnet-upernet": lambda: upernet(OURS["seg_resnet"]),
    "internimage-segformer": lambda: segformer(BACKBONES["internimage"]),
    "dinov2-linear": linear,
    "dinov2-registers-linear": lambda: SegLinearForSemanticSegmentation(
        small_linear(
            small_plain_vit(
                trunk="vit_small_patch14_reg4_dinov2",
                position_interpolation_offset=0,
                position_interpolation_antialias=True,
                num_hidden_layers=1,
                out_indices=[1],
            )
        )
    ),
    "segmenter-mask_transformer": segmenter,
    "segmenter-linear": lambda: segmenter(decoder_type="linear"),
}


def small(name):
    """Return a small model that runs in windows, and its processor."""
    model = randomise(MODELS[name]()).eval()
    model.config.inference_mode, model.config.window_size, model.config.window_stride = "slide", [32, 32], [32, 32]
    return model, SegmentationImageProcessor()


def expected(model, images):
    options = {"sliding_window": False} if hasattr(model.config, "sliding_window") else {}
    with torch.no_grad():
        return model(images, **options).logits


def run_onnx(path, images):
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return torch.from_numpy(logits)


def assert_close(actual, wanted):
    assert actual.shape == wanted.shape and wanted.abs().max() > 1e-2
    torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-4)


def allowed_norms(model):
    """Return the operators of norms that follow a sum instead of a convolution, so that nothing can take them over."""
    follows_sum = any(isinstance(module, PyramidBackbone) for module in model.modules())
    return {"BatchNormalization"} if follows_sum or isinstance(model, SegLinearForSemanticSegmentation) else set()
