# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`optimize_for_inference` gives the results of the plain layers, and refuses what needs those."""

import copy
import pickle

import pytest
import torch
from model_tests import Calls, randomise
from test_flash_internimage import small_flash
from test_internimage import small_internimage
from test_seg_mask2former import small_head as small_mask2former
from test_seg_upernet import small_head as small_upernet
from test_vit_adapter import small_config
from test_vit_comer import small_comer
from test_vit_simple_pyramid import small_pyramid
from timm.layers import GluMlp
from timm.models.beit import Block as TimmBeitBlock
from timm.models.eva import EvaBlock as TimmEvaBlock
from timm.models.vision_transformer import Block as TimmPlainBlock
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForSemanticSegmentation, ResNetConfig

from segtransformers import (
    InternImageBackbone,
    SegMask2FormerForSemanticSegmentation,
    SegUperNetForSemanticSegmentation,
    ViTAdapterBackbone,
    packaged_model_path,
)
from segtransformers.models.optimize import OPTIMIZATIONS, onednn_linear, optimize_for_inference, winograd
from segtransformers.models.optimize.channels_last import ChannelAffine, DoublingConvolution
from segtransformers.models.optimize.layer_scale import fold_layer_scales
from segtransformers.models.optimize.norm_folding import fold_norms
from segtransformers.models.optimize.onednn_linear import OneDnnLinear, left_product, linear
from segtransformers.models.optimize.upernet_head import CHANNELS_PER_STEP, ResizedConvolution
from segtransformers.models.optimize.winograd import WinogradConvolution, transformed_filters, winograd_convolution
from segtransformers.models.trunk.blocks import BeitTrunkBlock, EvaTrunkBlock, PlainTrunkBlock
from segtransformers.models.upernet.upsampled_convolution import upsampled_convolution

RESNET = ResNetConfig(
    embedding_size=8,
    hidden_sizes=[8, 8, 8, 8],
    depths=[1, 1, 1, 1],
    out_features=["stage1", "stage2", "stage3", "stage4"],
)
MODELS = {
    "vit-adapter-upernet": lambda: SegUperNetForSemanticSegmentation(small_upernet(small_config())),
    "vit-comer-upernet": lambda: SegUperNetForSemanticSegmentation(small_upernet(small_comer())),
    "internimage-upernet": lambda: SegUperNetForSemanticSegmentation(small_upernet(small_internimage())),
    "flash-internimage-upernet": lambda: SegUperNetForSemanticSegmentation(small_upernet(small_flash())),
    "eva02-upernet": lambda: SegUperNetForSemanticSegmentation(small_upernet(small_pyramid())),
    "resnet-upernet": lambda: SegUperNetForSemanticSegmentation(small_upernet(RESNET)),
    "vit-adapter-mask2former": lambda: SegMask2FormerForSemanticSegmentation(small_mask2former(small_config())),
    "vit-adapter": lambda: ViTAdapterBackbone(small_config(add_trunk_features=False)),
}


@pytest.fixture
def mkl_is_slow(monkeypatch):
    """Behave as on an AMD processor, with the two threads that the detour needs."""
    monkeypatch.setattr(onednn_linear, "mkl_is_slow", lambda: True)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small_layers_count(monkeypatch):
    """Let the faster layers take inputs of any size."""
    monkeypatch.setattr(winograd, "MIN_CHANNELS", 1)
    monkeypatch.setattr(winograd, "MIN_CHANNELS_PACKED", 1)
    monkeypatch.setattr(winograd, "MIN_PIXELS", 1)
    monkeypatch.setattr(onednn_linear, "MIN_ROWS", 1)


def outputs(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        result = model(images)
    return [result.logits] if hasattr(result, "logits") else list(result.feature_maps)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch", [1, 2])
def test_outputs_stay_the_same(name, batch, small_layers_count, mkl_is_slow):
    model = randomise(MODELS[name]()).eval()
    images = torch.randn(batch, 3, 75, 130)
    expected = outputs(model, images)
    optimized = optimize_for_inference(model)
    assert any("models.optimize" in type(module).__module__ for module in optimized.modules())
    for actual, plain in zip(outputs(optimized, images), expected, strict=True):
        assert ((actual - plain).norm() / plain.norm()).item() < 1e-5
    if hasattr(optimized(images), "logits"):
        assert optimized(images).logits.stride(3) == 1  # channels first, whatever the layers prefer
    # the original is as it was
    for actual, plain in zip(outputs(model, images), expected, strict=True):
        assert torch.equal(actual, plain)


@pytest.mark.parametrize("name", MODELS)
def test_double_precision_agrees_to_the_last_digits(name, small_layers_count):
    model = randomise(MODELS[name]()).double().eval()
    images = torch.randn(2, 3, 96, 64, dtype=torch.float64)
    for actual, plain in zip(outputs(optimize_for_inference(model), images), outputs(model, images), strict=True):
        torch.testing.assert_close(actual, plain, rtol=1e-10, atol=1e-10)


def test_fewer_norms_and_no_pass_over_memory_for_them():
    model = randomise(MODELS["vit-adapter-upernet"]()).eval()
    images = torch.randn(1, 3, 64, 64)
    optimized = optimize_for_inference(model)
    with torch.no_grad(), Calls() as plain:
        model(images)
    with torch.no_grad(), Calls() as calls:
        optimized(images)
    assert "native_batch_norm" in plain.names and "native_batch_norm" not in calls.names


def test_inplace_changes_the_model_and_twice_changes_nothing():
    model = randomise(MODELS["vit-adapter-upernet"]())
    optimized = optimize_for_inference(model, inplace=True)
    assert optimized is model and not model.training and model.is_optimized
    layers = dict(model.named_modules())
    assert optimize_for_inference(model, inplace=True) is model and optimize_for_inference(model) is model
    assert dict(model.named_modules()) == layers
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_training_saving_and_adapters_are_refused(tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = optimize_for_inference(MODELS["vit-adapter-upernet"]())
    with pytest.raises(RuntimeError, match=r"cannot be trained: load the model again with from_pretrained"):
        model.train()
    with pytest.raises(RuntimeError, match=r"cannot be saved: load the model again"):
        model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"cannot get an adapter: load the model again"):
        peft.get_peft_model(model, peft.LoraConfig(target_modules=["qkv"]))
    with pytest.raises(RuntimeError, match=r"cannot get an adapter"):
        model.add_adapter(peft.LoraConfig(target_modules=["qkv"]))
    assert not any("lora" in name for name, _ in model.named_modules()) and not list(tmp_path.iterdir())
    assert model.eval() is model


def test_an_optimized_model_can_be_copied():
    model = optimize_for_inference(randomise(MODELS["vit-adapter-upernet"]()))
    images = torch.randn(1, 3, 64, 64)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.is_optimized
        for actual, expected in zip(outputs(twin, images), outputs(model, images), strict=True):
            assert torch.equal(actual, expected)
        with pytest.raises(RuntimeError, match="cannot be trained"):
            twin.train()


def test_other_models_are_refused():
    with pytest.raises(TypeError, match="takes a model or backbone of segtransformers, got Linear"):
        optimize_for_inference(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"unknown names \['winograd2'\]"):
        optimize_for_inference(MODELS["vit-adapter"](), without=["winograd2"])


@pytest.mark.parametrize("left_out", OPTIMIZATIONS)
def test_each_optimization_can_be_left_out(left_out):
    model = randomise(MODELS["vit-adapter-upernet"]()).eval()
    images = torch.randn(1, 3, 64, 96)
    actual, expected = (outputs(each, images)[0] for each in (optimize_for_inference(model, without=[left_out]), model))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_half_precision_keeps_its_layers():
    model = randomise(MODELS["vit-adapter-upernet"]()).bfloat16().eval()
    images = torch.randn(1, 3, 64, 64, dtype=torch.bfloat16)
    assert torch.equal(outputs(optimize_for_inference(model), images)[0], outputs(model, images)[0])


def test_layers_with_hooks_or_other_classes_stay():
    """Quantised and wrapped layers are not what the faster layers stand for."""
    model = MODELS["resnet-upernet"]().eval()
    block = model.decode_head.fpn_convs[0]
    block.conv = nn.Sequential(block.conv)
    norm = model.decode_head.fpn_bottleneck.batch_norm
    model.decode_head.fpn_bottleneck.batch_norm = nn.SyncBatchNorm(norm.num_features)
    optimized = optimize_for_inference(model)
    assert type(optimized.decode_head) is type(model.decode_head)
    assert type(optimized.decode_head.fpn_convs[0].batch_norm) is nn.BatchNorm2d


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_folded_norms(bias, affine):
    layers = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=bias), nn.BatchNorm2d(6, affine=affine), nn.ReLU()
    )
    randomise(layers).double().eval()
    features = torch.randn(2, 4, 9, 17, dtype=torch.float64)
    expected = layers(features)
    assert fold_norms(layers) == 1
    assert [type(layer) for layer in layers] == [nn.Conv2d, nn.Identity, nn.ReLU]
    torch.testing.assert_close(layers(features), expected, rtol=1e-12, atol=1e-12)


def test_norms_of_batch_statistics_are_not_folded():
    layers = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, track_running_stats=False))
    assert fold_norms(layers) == 0


BLOCK = {"dim": 24, "num_heads": 2, "qkv_bias": True, "init_values": 0.5}


@torch.no_grad()
@pytest.mark.parametrize(
    "block",
    [
        lambda: PlainTrunkBlock(TimmPlainBlock(**BLOCK)),
        lambda: PlainTrunkBlock(TimmPlainBlock(**BLOCK, mlp_layer=GluMlp), window=2),
        lambda: BeitTrunkBlock(TimmBeitBlock(**BLOCK), 0, table_grid=(3, 4)),
        lambda: BeitTrunkBlock(TimmBeitBlock(**BLOCK), 0, table_grid=None, window=2),
        lambda: EvaTrunkBlock(TimmEvaBlock(**BLOCK, swiglu_mlp=True, scale_attn_inner=True), 0),
        lambda: EvaTrunkBlock(TimmEvaBlock(**BLOCK, qkv_fused=False), 0),
    ],
)
def test_layer_scales_are_folded(block):
    layer = randomise(block()).double().eval()
    tokens = torch.randn(2, 12, 24, dtype=torch.float64)
    positions = None
    if isinstance(layer, EvaTrunkBlock):
        positions = torch.randn(12, 24, dtype=torch.float64)  # sines and cosines of 12 channels of a head
    expected = layer(tokens, (3, 4), positions)
    hooked = copy.deepcopy(layer)
    assert fold_layer_scales(layer) == 2
    torch.testing.assert_close(layer(tokens, (3, 4), positions), expected, rtol=1e-12, atol=1e-12)
    assert fold_layer_scales(layer) == 0
    hooked.mlp.drop2.register_forward_hook(lambda *_: None)  # it expects the output before the scale
    assert fold_layer_scales(hooked) == 1


@torch.no_grad()
@pytest.mark.parametrize("name", ["mlp", "mlp.fc2", "attn"])
def test_layer_scales_of_shared_layers_stay(name):
    """Each block has a scale of its own."""
    blocks = nn.Sequential(PlainTrunkBlock(TimmPlainBlock(**BLOCK)), PlainTrunkBlock(TimmPlainBlock(**BLOCK)))
    blocks = randomise(blocks).double().eval()
    blocks[1].set_submodule(name, blocks[0].get_submodule(name))
    tokens = torch.randn(2, 12, 24, dtype=torch.float64)
    expected = [block(tokens, (3, 4)) for block in blocks]
    assert fold_layer_scales(blocks) == 2
    torch.testing.assert_close([block(tokens, (3, 4)) for block in blocks], expected, rtol=1e-12, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize(
    "changes", [{}, {"post_norm": True}, {"res_post_norm": True}, {"layer_scale_init_value": None}]
)
def test_layer_scales_of_internimage_are_folded(changes):
    backbone = randomise(InternImageBackbone(small_internimage(**changes))).double().eval()
    images = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    expected = backbone(images).feature_maps
    assert fold_layer_scales(backbone) == (0 if "layer_scale_init_value" in changes else 12)
    torch.testing.assert_close(backbone(images).feature_maps, expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (4, 10), (13, 7), (32, 30)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_minimal_filtering_is_convolution(size, bias, layout, monkeypatch):
    monkeypatch.setattr(winograd, "TILES_PER_STEP", 6)  # steps that do and do not fill the feature map
    features = torch.randn(2, 5, *size, dtype=torch.float64).to(memory_format=layout)
    weight = torch.randn(7, 5, 3, 3, dtype=torch.float64)
    shift = torch.randn(7, dtype=torch.float64) if bias else None
    actual = winograd_convolution(features, transformed_filters(weight), len(weight), shift)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(actual, F.conv2d(features, weight, shift, padding=1), rtol=1e-13, atol=1e-13)


@torch.no_grad()
def test_minimal_filtering_rounds_little():
    features, weight = torch.randn(1, 512, 32, 32).relu(), torch.randn(512, 512, 3, 3)
    exact = F.conv2d(features.double(), weight.double(), padding=1)
    filtered = winograd_convolution(features, transformed_filters(weight), len(weight), None)
    errors = [
        ((output - exact).norm() / exact.norm()).item() for output in (filtered, F.conv2d(features, weight, padding=1))
    ]
    assert errors[0] < 3e-6 and errors[0] < 8 * errors[1]


@torch.no_grad()
@pytest.mark.parametrize(
    "size, dtype, threads, filtered",
    [
        ((64, 64), torch.float32, 2, True),
        ((64, 64), torch.float32, 1, False),  # with one thread a matrix product is slower than a convolution
        ((65, 64), torch.float32, 2, True),
        ((32, 32), torch.float32, 2, False),
        ((64, 64), torch.float64, 2, False),
    ],
)
def test_minimal_filtering_where_it_pays(size, dtype, threads, filtered, monkeypatch):
    monkeypatch.setattr(winograd, "mkl_is_slow", lambda: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    convolution = nn.Conv2d(8, 8, 3, padding=1).to(dtype)
    features = torch.randn(1, 8, *size, dtype=dtype)
    with Calls() as calls:
        actual = WinogradConvolution(convolution)(features)
    assert ("sub" in calls.names) == filtered
    torch.testing.assert_close(actual, convolution(features), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "arguments", [{"stride": 2}, {"padding": 0}, {"padding": 2, "dilation": 2}, {"groups": 2}, {"kernel_size": 1}]
)
def test_only_ordinary_kernels_are_filtered(arguments, monkeypatch):
    monkeypatch.setattr(winograd, "MIN_CHANNELS", 1)
    monkeypatch.setattr(winograd, "MIN_CHANNELS_PACKED", 1)
    layers = nn.Sequential(
        nn.Conv2d(**{"in_channels": 4, "out_channels": 4, "kernel_size": 3, "padding": 1} | arguments)
    )
    assert winograd.use_winograd(layers) == 0
    assert winograd.use_winograd(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1))) == 1


@torch.no_grad()
@pytest.mark.parametrize(
    "sizes",
    [
        [(32, 48), (16, 24), (8, 12), (4, 6)],
        [(33, 47), (17, 24), (9, 12), (5, 6)],  # odd sizes
        [(7, 5), (1, 1), (9, 2)],  # smaller and larger ones
        [(6, 6)],
    ],
)
@pytest.mark.parametrize("out_channels", [10, CHANNELS_PER_STEP + 3])
def test_resized_convolution(sizes, out_channels):
    channels = [3, 5, 2, 4][: len(sizes)]
    convolution = nn.Conv2d(sum(channels), out_channels, 3, padding=1).double()
    feature_maps = [
        torch.randn(2, count, *size, dtype=torch.float64) for count, size in zip(channels, sizes, strict=True)
    ]
    expected = upsampled_convolution(feature_maps, convolution.weight, convolution.bias).relu()
    actual = ResizedConvolution(convolution, channels)(feature_maps)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
def test_doubling_convolution(bias):
    upsample = nn.ConvTranspose2d(3, 5, kernel_size=2, stride=2, bias=bias).double()
    features = torch.randn(2, 3, 4, 7, dtype=torch.float64).to(memory_format=torch.channels_last)
    actual = DoublingConvolution(upsample)(features)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(actual, upsample(features), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_channel_affine():
    norm = randomise(nn.BatchNorm2d(5)).double().eval()
    features = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(ChannelAffine(norm)(features), norm(features), rtol=1e-12, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(100, 12), (2, 70, 12), (3, 8, 9, 12)])
@pytest.mark.parametrize("bias", [None, torch.randn(7)])
def test_linear_layers_by_convolutions(mkl_is_slow, shape, bias):
    features, weight = torch.randn(shape), torch.randn(7, 12)
    with Calls() as calls:
        actual = linear(features, weight, bias)
    assert "convolution" in calls.names and not {"addmm", "mm"} & set(calls.names)
    assert actual.is_contiguous()
    torch.testing.assert_close(actual, F.linear(features, weight, bias), rtol=1e-5, atol=1e-5)
    strided = features.repeat_interleave(2, dim=0)[::2]
    torch.testing.assert_close(linear(strided, weight, bias), F.linear(strided, weight, bias), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_products_from_the_left(mkl_is_slow):
    matrix, batch = torch.randn(5, 8), torch.randn(9, 8, 33)
    with Calls() as calls:
        actual = left_product(matrix, batch)
    assert "convolution" in calls.names and "bmm" not in calls.names
    torch.testing.assert_close(actual, matrix @ batch, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(left_product(matrix.double(), batch.double()), matrix.double() @ batch.double())


@torch.no_grad()
@pytest.mark.parametrize("rows, dtype", [(10, torch.float32), (100, torch.float64), (100, torch.bfloat16)])
def test_small_products_and_other_dtypes_take_no_detour(mkl_is_slow, rows, dtype):
    with Calls() as calls:
        linear(torch.randn(rows, 12, dtype=dtype), torch.randn(7, 12, dtype=dtype), None)
    assert "convolution" not in calls.names


def test_linear_layers_are_exchanged_on_amd_only(mkl_is_slow, monkeypatch):
    layers = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 2, bias=False)))
    weight = layers[0].weight
    assert onednn_linear.use_onednn_for_linear(layers) == 2
    assert type(layers[0]) is type(layers[1][0]) is OneDnnLinear and layers[0].weight is weight
    monkeypatch.setattr(onednn_linear, "mkl_is_slow", lambda: False)
    assert onednn_linear.use_onednn_for_linear(nn.Sequential(nn.Linear(3, 4))) == 0


def test_the_packaged_model_gives_the_same_labels():
    model = AutoModelForSemanticSegmentation.from_pretrained(packaged_model_path(), dtype=torch.float32).eval()
    images = torch.randn(2, 3, 96, 128)
    actual, expected = outputs(optimize_for_inference(model), images)[0], outputs(model, images)[0]
    assert torch.equal(actual.argmax(1), expected.argmax(1))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
