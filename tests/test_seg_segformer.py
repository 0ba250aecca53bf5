# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch
from model_tests import SegmentationTests
from reference_cases import ReferenceCase, relative_error
from test_internimage import small_internimage
from transformers import SwinConfig

from segtransformers import SegSegformerConfig, SegSegformerForSemanticSegmentation
from segtransformers.conversion import convert_checkpoint


def small_segformer(backbone_config=None, **changes) -> SegSegformerConfig:
    settings = {
        "backbone_config": backbone_config if backbone_config is not None else small_internimage(),
        "hidden_size": 16,
        "num_labels": 5,
        **changes,
    }
    return SegSegformerConfig(**settings)


class TestSegSegformer(SegmentationTests):
    model_class = SegSegformerForSemanticSegmentation

    def config(self):
        return small_segformer()


def test_any_number_of_maps():
    backbone_config = SwinConfig(
        embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=2, out_features=["stage1", "stage2"]
    )
    model = SegSegformerForSemanticSegmentation(small_segformer(backbone_config)).eval()
    assert model(torch.randn(1, 3, 64, 64)).logits.shape == (1, 5, 64, 64)


def test_logits_equal_the_original():
    case = ReferenceCase("internimage/tiny-l-segformer")
    model = convert_checkpoint(case.state_dict(), case.config)
    assert type(model) is SegSegformerForSemanticSegmentation
    with torch.no_grad():
        maps = model.backbone(case.pixel_values()).feature_maps
        actual = {"logits": model.decode_head(maps), "segmentation_logits": model(case.pixel_values()).logits}
    for key, tensor in actual.items():
        assert relative_error(case.sampled(key, tensor), case.outputs()[key]) < 2e-6, key


def test_loss_is_the_mean_over_all_pixels():
    model = SegSegformerForSemanticSegmentation(small_segformer()).eval()
    images, labels = torch.randn(1, 3, 64, 64), torch.ones(1, 64, 64, dtype=torch.long)
    labels[:, :32] = 255
    with torch.no_grad():
        outputs = model(images, labels=labels)
        expected = torch.nn.functional.cross_entropy(outputs.logits[:, :, 32:], labels[:, 32:]) / 2
    assert outputs.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_windows_cover_large_images():
    model = SegSegformerForSemanticSegmentation(small_segformer()).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        left, right = model(images[..., :64]).logits, model(images[..., 32:]).logits
        model.config.inference_mode, model.config.window_size, model.config.window_stride = "slide", [64, 64], [64, 32]
        merged = model(images).logits
    torch.testing.assert_close(merged[..., :32], left[..., :32], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(merged[..., 32:64], (left[..., 32:] + right[..., :32]) / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 0}, "hidden_size must be a whole number from 1"),
        ({"classifier_dropout": 1.0}, r"\[0, 1\)"),
        ({"backbone_config": {"model_type": "no_such"}}, "model_type 'no_such'"),
    ],
)
def test_impossible_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small_segformer(**changes)
