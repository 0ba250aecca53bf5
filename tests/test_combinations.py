# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Any backbone under any head: ours and those of transformers, on images of odd sizes."""

import pytest
import torch
from test_internimage import small_internimage
from test_vit_adapter import MAPS, small_config
from test_vit_comer import small_comer
from transformers import (
    AutoModelForSemanticSegmentation,
    ConvNextConfig,
    DINOv3ConvNextConfig,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SwinConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from segtransformers import (
    SegConvNextConfig,
    SegLinearConfig,
    SegLinearForSemanticSegmentation,
    SegMask2FormerConfig,
    SegMask2FormerForSemanticSegmentation,
    SegResNetConfig,
    SegSegformerConfig,
    SegSegformerForSemanticSegmentation,
    SegSwinConfig,
    SegUperNetConfig,
    SegUperNetForSemanticSegmentation,
)

OURS = {
    "vit_adapter": small_config,
    "vit_adapter_beit": lambda: small_config(trunk="beitv2_base_patch16_224"),
    "vit_comer": small_comer,
    "vit_comer_dinov3": lambda: small_comer(trunk="vit_small_patch16_dinov3"),
    "internimage": small_internimage,
    "seg_swin": lambda: SegSwinConfig(
        embed_dim=16, depths=[1, 1, 1, 1], num_heads=[2, 2, 2, 2], window_size=2, patch_norm=False, out_features=MAPS
    ),
    "seg_convnext": lambda: SegConvNextConfig(hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], out_features=MAPS),
    "seg_resnet": lambda: SegResNetConfig(
        embedding_size=8, hidden_sizes=[16, 16, 32, 32], depths=[1, 1, 1, 1], out_features=MAPS
    ),
}
THEIRS = {
    "swin": lambda: SwinConfig(
        embed_dim=16, depths=[1, 1, 1, 1], num_heads=[2, 2, 2, 2], window_size=2, out_features=MAPS
    ),
    "convnext": lambda: ConvNextConfig(hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], out_features=MAPS),
    "dinov3_convnext": lambda: DINOv3ConvNextConfig(
        hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], out_features=MAPS
    ),
}
UPERNET = {"hidden_size": 16, "auxiliary_channels": 8, "num_labels": 5}
MASK2FORMER = {"hidden_dim": 32, "num_attention_heads": 2, "num_queries": 7, "num_labels": 5}
SEGFORMER = {"hidden_size": 16, "num_labels": 5}
HEADS = {
    SegLinearForSemanticSegmentation: (SegLinearConfig, {"num_labels": 5, "classifier_dropout": 0.0}),
    SegSegformerForSemanticSegmentation: (SegSegformerConfig, SEGFORMER),
    SegUperNetForSemanticSegmentation: (SegUperNetConfig, UPERNET),
    SegMask2FormerForSemanticSegmentation: (SegMask2FormerConfig, MASK2FORMER),
}
SIZE = (75, 130)


def images_and_labels() -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.randint(5, (2, *SIZE))
    labels[:, :9] = 255
    return torch.randn(2, 3, *SIZE), labels


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.config_class.model_type)
@pytest.mark.parametrize("backbone", [*OURS, *THEIRS])
def test_our_heads(backbone, head, tmp_path):
    """Logits at the size of the image, a loss that reaches the backbone, and a folder that gives the same again."""
    config_class, settings = HEADS[head]
    model = head(config_class(backbone_config=(OURS | THEIRS)[backbone](), **settings)).eval()
    images, labels = images_and_labels()
    outputs = model(images, labels=labels)
    assert outputs.logits.shape == (2, 5, *SIZE) and outputs.loss.isfinite()
    outputs.loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert next(parameter.grad for parameter in model.backbone.parameters() if parameter.dim() == 4).any()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert type(loaded) is head and type(loaded.backbone) is type(model.backbone)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images).logits, outputs.logits.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.config_class.model_type)
@pytest.mark.parametrize("backbone", [*OURS, *THEIRS])
def test_images_of_few_pixels(backbone, head):
    """Backbones of others fail on images below 32 pixels; our heads pad these and crop the feature maps."""
    config_class, settings = HEADS[head]
    settings = {**settings, "hidden_dim": 64} if "hidden_dim" in settings else settings
    model = head(config_class(backbone_config=(OURS | THEIRS)[backbone](), **settings))
    for size in ((1, 1), (1, 40), (20, 25)):
        labels = torch.randint(5, (2, *size))
        loss = model.train()(torch.randn(2, 3, *size), labels=labels).loss
        loss.backward()
        assert loss.isfinite()
        with torch.no_grad():
            outputs = model.eval()(torch.randn(1, 3, *size), labels=labels[:1])
        assert outputs.logits.shape == (1, 5, *size) and outputs.logits.isfinite().all() and outputs.loss.isfinite()


@pytest.mark.parametrize("backbone", OURS)
def test_transformers_upernet(backbone, tmp_path):
    model = UperNetForSemanticSegmentation(UperNetConfig(backbone_config=OURS[backbone](), **UPERNET)).eval()
    images, labels = images_and_labels()
    outputs = model(images, labels=labels)
    assert outputs.logits.shape == (2, 5, *SIZE) and outputs.loss.isfinite()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        again = UperNetForSemanticSegmentation.from_pretrained(tmp_path)(images).logits
    torch.testing.assert_close(again, outputs.logits.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backbone", OURS)
def test_transformers_mask2former(backbone):
    """Its head wants sides that are multiples of 32."""
    config = Mask2FormerConfig(
        backbone_config=OURS[backbone](),
        feature_size=32,
        mask_feature_size=32,
        encoder_feedforward_dim=32,
        dim_feedforward=32,
        **MASK2FORMER,
    )
    model = Mask2FormerForUniversalSegmentation(config)
    masks, classes = [torch.ones(1, 64, 96)], [torch.tensor([2])]
    loss = model(torch.randn(1, 3, 64, 96), mask_labels=masks, class_labels=classes).loss
    loss.backward()
    encoder = model.model.pixel_level_module.encoder
    assert loss.isfinite() and encoder.get_input_embeddings().weight.grad.any()
