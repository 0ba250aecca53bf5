# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`optimize_for_inference` replaces a layer only if nothing but the layer itself takes part in its call."""

import accelerate
import pytest
import torch
from model_tests import randomise
from test_optimize import MODELS, mkl_is_slow, outputs, small_layers_count  # noqa: F401 (fixtures)
from test_seg_upernet import small_head as small_upernet
from test_vit_adapter import small_config
from torch import nn
from torch.nn.utils import prune

from segtransformers import SegUperNetForSemanticSegmentation
from segtransformers.models.optimize import optimize_for_inference

pytestmark = pytest.mark.usefixtures("mkl_is_slow", "small_layers_count")


def small_model() -> SegUperNetForSemanticSegmentation:
    torch.manual_seed(0)
    return randomise(MODELS["vit-adapter-upernet"]()).eval()


def beit_model() -> SegUperNetForSemanticSegmentation:
    config = small_upernet(small_config(trunk="beit_base_patch16_224", deformable_num_heads=2))
    return randomise(SegUperNetForSemanticSegmentation(config)).eval()


def assert_same_logits(optimized: nn.Module, plain: nn.Module, bound: float = 1e-5) -> None:
    images = torch.randn(1, 3, 64, 96)
    (actual,), (expected,) = outputs(optimized, images), outputs(plain, images)
    assert ((actual - expected).norm() / expected.norm()).item() < bound


def test_hooks_on_every_module_still_fire():
    model, images = beit_model(), torch.randn(1, 3, 64, 96)
    called: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: called.append(name))
    outputs(model, images)
    plain = sorted(called)
    called.clear()
    outputs(optimize_for_inference(model), images)
    assert [name for name in sorted(called) if not name.startswith("backbone.spatial_prior.stem.")] == [
        name for name in plain if not name.startswith("backbone.spatial_prior.stem.")
    ]


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.Linear, nn.BatchNorm2d])
def test_a_replaced_forward_is_called(kind):
    model = small_model()
    for layer in [module for module in model.modules() if type(module) is kind]:
        layer.forward = lambda features, forward=layer.forward: 1.5 * forward(features)
    assert_same_logits(optimize_for_inference(model), model)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.Linear])
def test_pruned_layers_keep_their_mask(kind):
    model, images = small_model(), torch.randn(1, 3, 64, 96)
    for layer in [module for module in model.modules() if type(module) is kind]:
        prune.l1_unstructured(layer, "weight", 0.3)
    (expected,) = outputs(model, images)
    optimized = optimize_for_inference(model, inplace=True)  # torch cannot copy pruned layers
    torch.testing.assert_close(outputs(optimized, images)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", ["cpu", "disk"])
def test_offloaded_weights_are_left_to_accelerate(target, tmp_path):
    plain, offloaded = small_model(), small_model()
    if target == "cpu":
        accelerate.cpu_offload(offloaded, "cpu")
    else:
        accelerate.disk_offload(offloaded, str(tmp_path), "cpu")
    assert_same_logits(optimize_for_inference(offloaded, inplace=True), plain)


def test_torchao_weights():
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    model = small_model()
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    optimized = optimize_for_inference(model)
    assert quantization.Int8Tensor in {
        type(module.weight) for module in optimized.modules() if type(module) is nn.Linear
    }
    assert_same_logits(optimized, model)


@pytest.mark.parametrize("build", [small_model, beit_model])
def test_a_model_with_an_optimized_backbone(build, tmp_path):
    model, plain = build(), build()
    plain.load_state_dict(model.state_dict())
    model.backbone = optimize_for_inference(model.backbone)
    assert_same_logits(model, plain)
    with pytest.raises(RuntimeError, match="cannot be saved"):
        model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="cannot be trained"):
        model.train()
    assert not list(tmp_path.iterdir())
    assert_same_logits(optimize_for_inference(model), plain)


def test_the_backbone_of_an_optimized_model_refuses_too(tmp_path):
    backbone = optimize_for_inference(small_model()).backbone
    with pytest.raises(RuntimeError, match="cannot be saved"):
        backbone.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="cannot be trained"):
        backbone.train()
