# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Optimized models with the kernel's dense operators, and in bfloat16."""

import logging

import pytest
import torch
from model_tests import randomise
from test_internimage import small_internimage
from test_optimize import mkl_is_slow, outputs  # noqa: F401, a fixture
from test_seg_mask2former import small_head as small_mask2former
from test_seg_upernet import small_head as small_upernet
from test_vit_adapter import small_config
from test_vit_comer import small_comer
from timm.layers import LayerNorm as TimmLayerNorm
from torch import nn

from segtransformers import SegMask2FormerForSemanticSegmentation, SegUperNetForSemanticSegmentation
from segtransformers.models.optimize import optimize_for_inference, winograd
from segtransformers.models.optimize.dense_layers import FastAddResized, FastResize, FastSoftmax, use_dense_operators
from segtransformers.models.optimize.onednn_linear import packed_products, use_onednn_for_linear
from segtransformers.models.optimize.packed_layers import use_packed_layers
from segtransformers.models.optimize.upernet_head import ResizedConvolution
from segtransformers.models.optimize.winograd import WinogradConvolution
from segtransformers.operators import compiled_operators, dispatcher

MODELS = {
    "vit-adapter-upernet": lambda: SegUperNetForSemanticSegmentation(small_upernet(small_config(), hidden_size=32)),
    "vit-comer-upernet": lambda: SegUperNetForSemanticSegmentation(small_upernet(small_comer(), hidden_size=32)),
    "internimage-upernet": lambda: SegUperNetForSemanticSegmentation(
        small_upernet(small_internimage(), hidden_size=32)
    ),
    "vit-adapter-mask2former": lambda: SegMask2FormerForSemanticSegmentation(small_mask2former(small_config())),
}


@pytest.fixture
def dense(kernel_build, monkeypatch):
    """The operators of a fresh build, in models of any size. Their calls are counted by name."""
    monkeypatch.setenv("LOCAL_KERNELS", f"{dispatcher.KERNEL_ID}={kernel_build / 'build'}")
    monkeypatch.setattr(winograd, "MIN_CHANNELS", 1)
    monkeypatch.setattr(winograd, "MIN_CHANNELS_PACKED", 1)
    monkeypatch.setattr(winograd, "MIN_PIXELS_COMPILED", 1)
    dispatcher.reset()
    kernel = dispatcher.find_kernel()
    assert kernel is not None, dispatcher._state.problems
    operators, calls = kernel.functions.dense, {}

    def counted(name):
        function = getattr(operators, name)

        def call(*arguments):
            calls[name] = calls.get(name, 0) + 1
            return function(*arguments)

        monkeypatch.setattr(operators, name, call)

    for name in ("winograd_inputs", "winograd_outputs", "add_resized", "add_resized_taps", "resize_planes"):
        counted(name)
    counted("softmax_rows")
    counted("layer_norm_rows")
    yield calls
    dispatcher.reset()


@pytest.mark.parametrize("name", MODELS)
def test_outputs_stay_the_same(name, dense):
    model = randomise(MODELS[name]()).eval()
    images = torch.randn(2, 3, 75, 130)
    with compiled_operators("off"):
        (expected,) = outputs(model, images)
    assert not dense
    (actual,) = outputs(optimize_for_inference(model), images)
    assert ((actual - expected).norm() / expected.norm()).item() < 1e-5
    upernet = {"winograd_inputs", "winograd_outputs", "add_resized", "add_resized_taps", "resize_planes"}
    expected_calls = {"vit-adapter-mask2former": {"resize_planes"}}.get(name, upernet)
    assert set(dense) >= expected_calls and ("softmax_rows" in dense) == (name == "internimage-upernet")


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16(name, dense):
    """Folded weights are rounded once, and the model's numbers stay as near as those of the plain model in bfloat16."""
    model = randomise(MODELS[name]()).eval()
    images = torch.randn(1, 3, 64, 96)
    (expected,) = outputs(model, images)
    optimized = optimize_for_inference(model, dtype=torch.bfloat16)
    assert optimized.dtype == torch.bfloat16 and model.dtype == torch.float32
    has_filters = any(isinstance(module, WinogradConvolution) for module in optimized.modules())
    # the small Mask2Former has 24 channels, not a multiple of 16
    assert has_filters == (packed_products(torch.bfloat16) is not None and name != "vit-adapter-mask2former")
    (actual,) = outputs(optimized, images.bfloat16())
    (plain,) = outputs(model.bfloat16(), images.bfloat16())
    assert actual.dtype == torch.bfloat16 and "resize_planes" in dense
    error, plain_error = ((output.float() - expected).norm() / expected.norm() for output in (actual, plain))
    assert error < 2 * plain_error + 0.01


def test_an_optimized_model_keeps_its_dtype():
    model = optimize_for_inference(MODELS["vit-adapter-upernet"](), dtype=torch.bfloat16)
    assert optimize_for_inference(model, dtype=torch.bfloat16) is model
    with pytest.raises(ValueError, match=r"optimized for torch.bfloat16 already: load the model again"):
        optimize_for_inference(model, dtype=torch.float32)


@torch.no_grad()
@pytest.mark.parametrize("channels", [8, 48])  # products by oneDNN, as for AMD's processors, and of the kernel
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_resized_convolution(memory_format, channels, dense, mkl_is_slow):  # noqa: F811
    """A backbone of transformers has feature maps with channels first."""
    convolution = nn.Conv2d(3 * channels, 64, 3, padding=1)
    feature_maps = [
        torch.randn(1, channels, *size).to(memory_format=memory_format) for size in ((20, 26), (10, 13), (3, 5))
    ]
    resized = [nn.functional.interpolate(one, (20, 26), mode="bilinear") for one in feature_maps]
    expected = convolution(torch.cat(resized, 1)).relu()
    layer = nn.Sequential(ResizedConvolution(convolution, [channels] * 3))
    use_packed_layers(layer)
    use_onednn_for_linear(layer)
    torch.testing.assert_close(layer(feature_maps), expected, rtol=1e-4, atol=1e-5)
    assert dense["add_resized_taps"] == 1


@torch.no_grad()
@pytest.mark.parametrize("kind", [nn.LayerNorm, TimmLayerNorm])
def test_layer_norms(kind, dense):
    norm = randomise(kind(32, eps=1e-3))
    fast = nn.Sequential(norm)
    assert use_dense_operators(fast) == 1 and not use_dense_operators(nn.Sequential(nn.LayerNorm(32, bias=False)))
    for features in (torch.randn(2, 3, 5, 32), torch.randn(2, 32, 7).transpose(1, 2), torch.randn(0, 32)):
        torch.testing.assert_close(fast(features), norm(features), rtol=1e-5, atol=1e-5)
    assert dense["layer_norm_rows"] == 3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(fast(features.bfloat16()), norm(features.bfloat16()))
    narrow = nn.Sequential(nn.LayerNorm(24))
    assert use_dense_operators(narrow) == 1 and narrow(torch.randn(3, 24)).shape == (3, 24)
    assert dense["layer_norm_rows"] == 3


def test_a_build_of_another_version_is_not_used(dense, monkeypatch, caplog):
    assert dispatcher.dense_operators(torch.empty(0)) is not None
    monkeypatch.setattr(dispatcher, "DENSE_INTERFACE", 0)
    assert dispatcher.dense_operators(torch.empty(0)) is None
    dispatcher.reset()
    logger = logging.getLogger("segtransformers")
    logger.addHandler(caplog.handler)
    try:
        dispatcher.find_kernel()
    finally:
        logger.removeHandler(caplog.handler)
    assert "was built for another version of segtransformers" in caplog.text


@torch.no_grad()
def test_layers_leave_their_inputs_alone(dense):
    """Layers that are called with other tensors than those of our models still are what they replace."""
    features, other = torch.randn(1, 16, 8, 8).to(memory_format=torch.channels_last), torch.randn(1, 16, 4, 4)
    copies = features.clone(), other.clone()
    torch.testing.assert_close(FastAddResized()(features, other), features + FastResize()(other, (8, 8)))
    torch.testing.assert_close(FastAddResized()(features, features), features + features)
    logits = torch.randn(2, 3, 9)
    torch.testing.assert_close(FastSoftmax(dim=-1)(logits.transpose(1, 2)), logits.transpose(1, 2).softmax(-1))
    assert torch.equal(features, copies[0]) and torch.equal(other, copies[1])
    corners = FastResize(align_corners=True)(other, (8, 8))
    torch.testing.assert_close(corners, nn.functional.interpolate(other, (8, 8), mode="bilinear", align_corners=True))


@torch.no_grad()
def test_odd_numbers_of_channels_and_other_devices_are_served_by_pytorch(dense):
    features = torch.randn(1, 9, 8, 8).to(memory_format=torch.channels_last)
    FastAddResized()(features, torch.randn(1, 9, 4, 4))
    WinogradConvolution(nn.Conv2d(9, 9, 3, padding=1))(features)
    FastResize()(features.double(), (16, 16))
    FastSoftmax(dim=-1)(torch.randn(3, 9, device="meta"))
    assert not dense
