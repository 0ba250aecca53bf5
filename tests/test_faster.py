# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Faster ways give the numbers of the layers as written, and are taken where they may be."""

import copy

import pytest
import torch
from model_tests import Calls, randomise
from test_seg_mask2former import small_head as small_mask2former
from test_seg_upernet import small_head as small_upernet
from test_vit_adapter import small_config
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from transformers import AutoModelForSemanticSegmentation

from segtransformers import (
    SegMask2FormerForSemanticSegmentation,
    SegUperNetForSemanticSegmentation,
    ViTAdapterBackbone,
    packaged_model_path,
)
from segtransformers.datasets.scenes import draw_scene, normalized
from segtransformers.models.optimize import faster
from segtransformers.models.optimize.faster import layers_as_written, left_product, linear
from segtransformers.models.upernet.upsampled_convolution import upsampled_convolution


@pytest.fixture
def products_are_slow(monkeypatch):
    """As on a CPU where matrix products are slower than convolutions; two threads, which the way needs."""
    monkeypatch.setattr(faster, "_products_are_slow", lambda: True)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "sizes",
    [
        [(32, 48), (16, 24), (8, 12), (4, 6)],
        [(33, 47), (17, 24), (9, 12), (5, 6)],  # odd ones, as of images that no stride divides
        [(7, 5), (1, 1), (9, 2)],  # and smaller and larger ones
        [(6, 6)],
    ],
)
@pytest.mark.parametrize("grad", [False, True])  # step by step, or with channels last
def test_upsampled_convolution_is_resize_and_convolution(sizes, grad, monkeypatch):
    monkeypatch.setattr("segtransformers.models.upernet.upsampled_convolution.CHANNELS_AT_ONCE", 4)
    monkeypatch.setattr("segtransformers.models.upernet.upsampled_convolution.FEW_PIXELS", 100)
    channels = [3, 5, 2, 4][: len(sizes)]
    maps = [
        torch.randn(2, count, *size, dtype=torch.float64, requires_grad=grad)
        for count, size in zip(channels, sizes, strict=True)
    ]
    weight = torch.randn(10, sum(channels), 3, 3, dtype=torch.float64, requires_grad=grad)
    bias = torch.randn(10, dtype=torch.float64)
    resized = [F.interpolate(map_, size=sizes[0], mode="bilinear", align_corners=False) for map_ in maps]
    expected = F.conv2d(torch.cat(resized, dim=1), weight, bias, padding=1)
    with torch.set_grad_enabled(grad):
        actual = upsampled_convolution(maps, weight, bias)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    scale = torch.randn_like(bias)
    torch.testing.assert_close(
        upsampled_convolution(maps, weight, None, scale),
        (expected - bias[:, None, None]) * scale[:, None, None],
        rtol=1e-12,
        atol=1e-12,
    )
    if grad:
        upstream = torch.randn_like(expected)
        leaves = [*maps, weight]
        for one, other in zip(
            torch.autograd.grad(actual, leaves, upstream), torch.autograd.grad(expected, leaves, upstream), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_a_model_on_the_meta_device_tells_its_shapes():
    model = SegUperNetForSemanticSegmentation(small_upernet(small_config())).to("meta").eval()
    assert model(torch.empty(1, 3, 64, 96, device="meta")).logits.shape == (1, 5, 64, 96)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(100, 12), (2, 70, 12), (3, 8, 9, 12)])
@pytest.mark.parametrize("bias", [None, torch.randn(7)])
def test_linear_layers_by_convolutions(products_are_slow, shape, bias):
    features, weight = torch.randn(shape), torch.randn(7, 12)
    with Calls() as calls:
        actual = linear(features, weight, bias)
    assert "convolution" in calls.names and not {"addmm", "mm"} & set(calls.names)
    assert actual.is_contiguous()
    torch.testing.assert_close(actual, F.linear(features, weight, bias), rtol=1e-5, atol=1e-5)
    strided = features.repeat_interleave(2, dim=0)[::2]
    torch.testing.assert_close(linear(strided, weight, bias), F.linear(strided, weight, bias), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_products_from_the_left(products_are_slow):
    matrix, batch = torch.randn(5, 8), torch.randn(9, 8, 33)
    with Calls() as calls:
        actual = left_product(matrix, batch)
    assert "convolution" in calls.names and "bmm" not in calls.names
    torch.testing.assert_close(actual, matrix @ batch, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(left_product(matrix.double(), batch.double()), matrix.double() @ batch.double())


@torch.no_grad()
def test_linear_layers_stay_where_they_must(products_are_slow):
    features, weight = torch.randn(100, 12), torch.randn(7, 12)

    class Quantised(torch.Tensor):
        pass

    for arguments in (
        (features[:10], weight),  # not worth it
        (features.double(), weight.double()),
        (features, weight.as_subclass(Quantised)),
        (features.half(), weight.half()),
    ):
        with Calls() as calls:
            linear(*arguments, None)
        assert "convolution" not in calls.names
    with torch.enable_grad(), Calls() as calls:
        linear(features, weight.requires_grad_(), None)
    assert "convolution" not in calls.names


@pytest.mark.parametrize("head", ["upernet", "mask2former"])
def test_models_give_what_their_layers_give(products_are_slow, head):
    if head == "upernet":
        model = SegUperNetForSemanticSegmentation(small_upernet(small_config()))
    else:
        model = SegMask2FormerForSemanticSegmentation(small_mask2former(small_config()))
    randomise(model).eval()
    kinds = {type(module) for module in model.modules() if isinstance(module, nn.Linear)}
    assert kinds == {faster.FasterLinear}
    images = torch.randn(2, 3, 75, 130)
    with torch.no_grad():
        with Calls() as calls:
            actual = model(images).logits
        with layers_as_written(), Calls() as written:
            expected = model(images).logits
    assert calls.names.count("native_batch_norm") < written.names.count("native_batch_norm")
    assert calls.names.count("addmm") < written.names.count("addmm")
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert actual.stride(3) == 1  # rows of pixels, which is what callers expect, whatever the layers like
    assert copy.deepcopy(model).state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("add_trunk_features", [True, False])
def test_pyramids_are_assembled_as_written(batch, add_trunk_features):
    backbone = randomise(ViTAdapterBackbone(small_config(add_trunk_features=add_trunk_features))).double().eval()
    images = torch.randn(batch, 3, 96, 160, dtype=torch.float64)
    with torch.no_grad():
        with Calls() as calls:
            actual = backbone(images).feature_maps
        with layers_as_written():
            expected = backbone(images).feature_maps
        assert "addcmul" in calls.names
        for one, other in zip(actual, expected, strict=True):
            assert one.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
        seen = []
        for module in (backbone.upsample, backbone.norms[2]):  # what has a hook is called
            module.register_forward_hook(lambda *arguments: seen.append(arguments[0]))
        for one, other in zip(backbone(images).feature_maps, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
        assert seen == [backbone.upsample, backbone.norms[2]]
        backbone.upsample = nn.Sequential(backbone.upsample)  # wrapped by somebody
        torch.testing.assert_close(backbone(images).feature_maps[0], expected[0], rtol=1e-11, atol=1e-11)


def test_what_depends_on_sizes_alone_is_kept():
    made = []

    @faster.remembered(maxsize=2)
    def ones(size: int, device: torch.device) -> torch.Tensor:
        made.append(size)
        return torch.ones(size, device=device)

    cpu = torch.device("cpu")
    with torch.inference_mode():
        kept = ones(3, cpu)
    assert ones(3, cpu) is kept and not kept.is_inference() and made == [3]
    with FakeTensorMode():
        assert ones(3, cpu) is not kept
    assert ones(3, torch.device("meta")).device.type == "meta"
    assert torch.equal(torch.compile(lambda size: ones(size, cpu), backend="eager", fullgraph=True)(3), kept)
    assert ones(3, cpu) is kept
    ones(4, cpu), ones(5, cpu), ones(3, cpu)
    assert made[-3:] == [4, 5, 3]  # no more than two are kept


@pytest.mark.parametrize("head", ["upernet", "mask2former"])
def test_a_second_pass_makes_no_tensor_of_python_numbers(head, monkeypatch):
    """On a GPU that would send them to the device, and CUDA graphs would refuse it."""
    if head == "upernet":
        model = SegUperNetForSemanticSegmentation(small_upernet(small_config()))
    else:
        model = SegMask2FormerForSemanticSegmentation(small_mask2former(small_config()))
    model.eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = model(images).logits
        monkeypatch.setattr(torch, "tensor", None)
        for name in ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__"):
            monkeypatch.setattr(torch.Tensor, name, None)  # nor waits for one
        assert model(images).logits.sub(expected).abs().max().lt(1e-6).data_ptr()


@pytest.fixture(scope="module")
def packaged() -> torch.nn.Module:
    return AutoModelForSemanticSegmentation.from_pretrained(packaged_model_path(), dtype=torch.float32).eval()


def agreement(model: torch.nn.Module, run) -> float:
    """The share of the pixels of a few drawn scenes for which a way of running gives the model's class."""
    same = []
    with torch.no_grad():
        for seed in range(3):
            images = normalized(draw_scene(seed)[0])[None]
            same.append((run(images).logits.argmax(1) == model(images).logits.argmax(1)).double().mean())
    return torch.stack(same).mean().item()


def test_half_precision_and_autocast_find_the_same_classes(packaged):
    half = copy.deepcopy(packaged).bfloat16()
    assert agreement(packaged, lambda images: half(images.bfloat16())) > 0.995

    def autocast(images):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return packaged(images)

    assert 0.995 < agreement(packaged, autocast) < 1


def test_eight_bits_by_torchao_find_the_same_classes(packaged):
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    quantised = copy.deepcopy(packaged)
    quantization.quantize_(quantised, quantization.Int8DynamicActivationInt8WeightConfig())
    linears = [module for module in quantised.modules() if isinstance(module, nn.Linear)]
    assert linears and all(type(module.weight) is not nn.Parameter for module in linears)
    assert 0.995 < agreement(packaged, quantised) < 1
