# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Optimized models with the kernel's products of packed weights, by vectors or by a CPU's matrix unit."""

import copy
from types import SimpleNamespace

import pytest
import torch
from model_tests import randomise
from test_optimize import MODELS, outputs
from test_segmenter import small_segmenter, small_vit
from test_trunk import small_backbone
from timm.layers import Mlp
from torch import nn
from torch.nn import functional as F

from segtransformers import SegmenterForSemanticSegmentation, SegmenterViTBackbone
from segtransformers.models.layers.resize import AddUpsampled
from segtransformers.models.optimize import (
    matrix_attention,
    onednn_linear,
    optimize_for_inference,
    packed_layers,
    winograd,
)
from segtransformers.models.optimize.channels_last import DoublingConvolution
from segtransformers.models.optimize.matrix_attention import MatrixAttention, OffsetBias, TokenAttention
from segtransformers.models.optimize.optimize import AFTER_CONVERSION
from segtransformers.models.optimize.packed_layers import (
    AddPackedDoubling,
    PackedConvolution,
    PackedLinear,
    unpacked,
)
from segtransformers.models.optimize.winograd import WinogradConvolution
from segtransformers.operators import compiled_operators, dispatcher

SMALL = {
    **{name: MODELS[name] for name in ("vit-adapter-upernet", "internimage-upernet", "vit-adapter-mask2former")},
    "segmenter": lambda: SegmenterForSemanticSegmentation(small_segmenter()),
    "beit": lambda: small_backbone("beit_base_patch16_224"),
    "beit in windows": lambda: small_backbone(
        "beit_base_patch16_224", window_sizes=(3, 0, 3, 0), use_prefix_tokens=False
    ),
    "eva02": lambda: small_backbone("eva02_tiny_patch14_224"),
    "dinov3": lambda: small_backbone("vit_small_patch16_dinov3"),
    "plain in windows": lambda: small_backbone(
        "vit_tiny_patch16_224", window_sizes=(3, 0, 3, 0), use_prefix_tokens=False
    ),
}


@pytest.fixture
def matrix(kernel_build, monkeypatch):
    """The operators of a fresh build, for layers of any size. Their calls are counted by name."""
    monkeypatch.setenv("LOCAL_KERNELS", f"{dispatcher.KERNEL_ID}={kernel_build / 'build'}")
    monkeypatch.setattr(onednn_linear, "mkl_is_slow", lambda: True)  # on every processor
    for module, name in (
        (winograd, "MIN_CHANNELS"),
        (winograd, "MIN_CHANNELS_PACKED"),
        (winograd, "MIN_PIXELS_COMPILED"),
        (packed_layers, "MIN_FEATURES"),
    ):
        monkeypatch.setattr(module, name, 1)
    dispatcher.reset()
    kernel = dispatcher.find_kernel()
    assert kernel is not None, dispatcher._state.problems
    operators, calls = kernel.functions.matrix, {}
    if operators.PRODUCTS[torch.float32] is None:
        pytest.skip("this processor has neither AVX-512 nor AMX")

    def counted(name):
        function = getattr(operators, name)

        def call(*arguments, **options):
            calls[name] = calls.get(name, 0) + 1
            return function(*arguments, **options)

        monkeypatch.setattr(operators, name, call)

    counted("product")
    counted("attention")
    yield calls
    dispatcher.reset()


def error(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("name", SMALL)
def test_outputs_stay_the_same(name, matrix):
    model, images = randomise(SMALL[name]()).eval(), torch.randn(2, 3, 75, 130)
    with compiled_operators("off"):
        expected = outputs(model, images)
    assert not matrix
    optimized = optimize_for_inference(model)
    assert not any(type(module) is nn.Linear for module in optimized.modules())
    for actual, plain in zip(outputs(optimized, images), expected, strict=True):
        assert error(actual, plain) < 1e-5
    assert matrix["product"] > 10 and ("attention" in matrix) == (name != "internimage-upernet")
    matrix.clear()
    with compiled_operators("off"):  # packed weights are unpacked
        for actual, plain in zip(outputs(optimized, images), expected, strict=True):
            assert error(actual, plain) < 1e-5
    assert not matrix


def test_layers_of_one_family_are_all_replaced(matrix):
    """The layers that the figures of the documentation depend on."""
    model = optimize_for_inference(randomise(SMALL["vit-adapter-mask2former"]()).eval())
    kinds = [type(module) for module in model.modules()]
    for kind in (PackedLinear, PackedConvolution, AddPackedDoubling, TokenAttention, MatrixAttention):
        assert kind in kinds
    assert sum(module.activation == "gelu" for module in model.modules() if isinstance(module, PackedLinear)) == len(
        model.backbone.trunk.blocks
    )
    assert any(module.activation == "relu" for module in model.modules() if isinstance(module, PackedLinear))
    beit = optimize_for_inference(randomise(SMALL["beit"]()).eval())
    assert all(isinstance(block.position_bias, OffsetBias) for block in beit.trunk.blocks)
    assert all(block.attn.q_bias is None and block.attn.qkv.bias is not None for block in beit.trunk.blocks)


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16(name, matrix):
    """Errors are about those of a model in bfloat16 without the products."""
    if onednn_linear.packed_products(torch.bfloat16) is None:
        pytest.skip("this processor has no AVX512-BF16, or its matrix unit is faster")
    model, images = randomise(SMALL[name]()).eval(), torch.randn(2, 3, 64, 96)
    expected = outputs(model, images)
    plain = outputs(optimize_for_inference(model, dtype=torch.bfloat16, without=AFTER_CONVERSION), images.bfloat16())
    matrix.clear()
    optimized = optimize_for_inference(model, dtype=torch.bfloat16)
    actual = outputs(optimized, images.bfloat16())
    assert matrix["product"] > 10 and ("attention" in matrix) == (name != "internimage-upernet")
    for ours, theirs, exact in zip(actual, plain, expected, strict=True):
        assert ours.dtype == torch.bfloat16 and error(ours, exact) < 2 * error(theirs, exact) < 0.2
    with compiled_operators("off"):  # packed weights are unpacked
        for ours, theirs, exact in zip(outputs(optimized, images.bfloat16()), plain, expected, strict=True):
            assert error(ours, exact) < 2 * error(theirs, exact)


def test_gradients_of_the_image(matrix):
    """Layers that compute no gradients leave the pass to PyTorch's where one is asked for."""
    model, gradients = randomise(SegmenterViTBackbone(small_vit(trunk="beit_base_patch16_224"))).eval(), []
    for each in (optimize_for_inference(model), model):
        images = torch.ones(1, 3, 64, 96, requires_grad=True)
        each(images).feature_maps[0].square().mean().backward()
        gradients.append(images.grad)
    assert error(*gradients) < 1e-4


def test_copies_and_other_dtypes(matrix):
    model, images = randomise(SMALL["beit"]()).eval(), torch.randn(1, 3, 64, 96)
    optimized = optimize_for_inference(model)
    expected = outputs(model.double(), images.double())
    for actual, plain in zip(outputs(copy.deepcopy(optimized), images), expected, strict=True):
        assert error(actual, plain) < 1e-5
    for actual, plain in zip(outputs(optimized.double(), images.double()), expected, strict=True):
        assert actual.dtype == torch.float64 and error(actual, plain) < 1e-5  # the weights are those of float32


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(1, 2), (33, 64), (70, 50)])
def test_packed_weights_can_be_unpacked(size, dtype, matrix):
    weight = (torch.randn(size) * 10.0 ** torch.randint(-9, 9, size)).to(dtype)
    if dispatcher.matrix_operators(weight) is None:
        pytest.skip("this processor has no products of this dtype")
    packed = dispatcher.matrix_operators(weight).pack_weight(weight[None])
    assert torch.equal(unpacked(packed[0], *size), weight)


@torch.no_grad()
def test_layers_equal_those_they_replace(matrix):
    features = torch.randn(2, 40, 6, 10)
    for layout in (torch.contiguous_format, torch.channels_last):
        given = features.contiguous(memory_format=layout)
        convolution, upsample = nn.Conv2d(40, 50, 1, bias=False), nn.ConvTranspose2d(40, 50, 2, stride=2)
        torch.testing.assert_close(
            PackedConvolution(convolution.weight.flatten(1), None)(given), convolution(given), rtol=1e-5, atol=1e-5
        )
        doubling, finer = AddPackedDoubling(DoublingConvolution(upsample)), torch.randn(2, 50, 12, 20)
        expected = AddUpsampled()(finer, upsample(given))
        torch.testing.assert_close(doubling(finer, given), expected, rtol=1e-5, atol=1e-5)
    linear, tokens = nn.Linear(40, 50), features.permute(0, 2, 3, 1)
    for activation, function in ((None, nn.Identity()), ("relu", F.relu), ("gelu", F.gelu)):
        packed = PackedLinear(linear.weight, linear.bias, activation)
        for given in (tokens, tokens[:, ::2], tokens[0, 0, 0], tokens[:0]):
            torch.testing.assert_close(packed(given), function(linear(given)), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_hidden_layers_are_not_pages_apart(dtype, matrix):
    mlp = Mlp(64, 4096 // dtype.itemsize).to(dtype)
    packed = copy.deepcopy(mlp)
    assert packed_layers.use_packed_layers(packed) == 2
    tokens = torch.randn(3, 5, 64).to(dtype)
    hidden = packed.fc1(tokens)
    assert hidden.shape == (3, 5, mlp.fc1.out_features) and hidden.stride(1) * dtype.itemsize == 4096 + 64
    rounding = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.02}
    for layer in (packed, torch.compile(packed, backend="eager", fullgraph=True)):
        torch.testing.assert_close(layer(tokens), mlp(tokens), **rounding)
    assert packed(tokens[:0]).shape == (0, 5, 64)


def test_layers_that_others_hold_on_to_stay(matrix):
    """A hook on a layer, or an approximate GELU, keeps the layer and its neighbour apart."""
    model = randomise(SMALL["segmenter"]()).eval()
    first, second, *_ = model.backbone.trunk.blocks
    called = []
    first.mlp.act.register_forward_hook(lambda *_: called.append("act"))
    first.attn.register_forward_hook(lambda *_: called.append("attn"))
    second.mlp.act = nn.GELU(approximate="tanh")
    images = torch.randn(1, 3, 64, 64)
    (expected,) = outputs(model, images)
    called.clear()
    optimized = optimize_for_inference(model)
    (actual,) = outputs(optimized, images)
    assert error(actual, expected) < 1e-5 and called == ["attn", "act"]
    assert type(optimized.backbone.trunk.blocks[1].mlp.act) is nn.GELU
    assert isinstance(optimized.backbone.trunk.blocks[2].mlp.act, nn.Identity)


def test_the_compiler_takes_the_operators(matrix):
    layer = nn.Linear(40, 50)
    packed, tokens = PackedLinear(layer.weight, layer.bias), torch.randn(3, 40)
    with torch.no_grad():
        compiled = torch.compile(packed, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(tokens), layer(tokens), rtol=1e-5, atol=1e-5)


def test_nothing_is_replaced_without_products(kernel_build, monkeypatch):
    monkeypatch.setattr(dispatcher, "matrix_operators", lambda value: None)
    model = randomise(SMALL["vit-adapter-upernet"]()).eval()
    assert packed_layers.use_packed_layers(model) == matrix_attention.use_matrix_attention(model) == 0
    optimized = optimize_for_inference(model)
    assert not any(isinstance(module, PackedLinear) for module in optimized.modules())
    assert not any(layer.is_packed for layer in optimized.modules() if isinstance(layer, WinogradConvolution))


@pytest.mark.parametrize("to", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_an_optimized_model_in_another_dtype(dtype, to, matrix):
    """Weights that were packed for one dtype are unpacked in another one."""
    model, images = randomise(SMALL["segmenter"]()).eval(), torch.randn(1, 3, 64, 96)
    (expected,) = outputs(model, images)
    optimized = optimize_for_inference(model, dtype=dtype).to(to)
    (actual,) = outputs(optimized, images.to(to))
    assert actual.dtype == to and error(actual, expected) < 0.15


@pytest.mark.parametrize(
    ("float32", "bfloat16", "slow_mkl", "expected"),
    [
        ("matrix unit", "vectors", False, {torch.float32}),
        ("matrix unit", "vectors", True, {torch.float32}),
        ("vectors", "vectors", True, {torch.float32, torch.bfloat16}),
        ("vectors", "vectors", False, {torch.bfloat16}),
        ("vectors", None, False, set()),
        (None, None, True, set()),
    ],
)
def test_where_products_are_used(float32, bfloat16, slow_mkl, expected, monkeypatch):
    products = {torch.float32: float32, torch.bfloat16: bfloat16}
    module = SimpleNamespace(PRODUCTS=products)
    monkeypatch.setattr(onednn_linear, "cpu_capabilities", lambda: {"amx_bf16": float32 == "matrix unit"})
    monkeypatch.setattr(onednn_linear, "mkl_is_slow", lambda: slow_mkl)
    monkeypatch.setattr(dispatcher, "matrix_operators", lambda value: module if products[value.dtype] else None)
    assert {dtype for dtype in products if onednn_linear.packed_products(dtype) is not None} == expected


@torch.no_grad()
def test_weights_of_another_processor_are_unpacked(matrix):
    weight, features = torch.randn(40, 50), torch.randn(7, 50)
    layer = PackedLinear(weight, None)
    bits = weight.view(torch.int32)
    high, low = (bits >> 16 << 16).view(torch.float32), weight
    parts = [high, (low - high).to(torch.bfloat16).float()]
    parts.append((low - high - parts[1]).to(torch.bfloat16).float())
    blocks = torch.zeros(3, 64, 64)
    blocks[:, :40, :50] = torch.stack(parts)
    # (parts, blocks of columns, tiles, columns, blocks of inner, pairs of inner, 2)
    tiles = blocks.view(3, 2, 2, 16, 2, 16, 2).permute(1, 4, 0, 2, 5, 3, 6)
    packed_for_amx = (tiles.contiguous().view(torch.int32) >> 16).to(torch.int16).reshape(1, 2, 2, 3072)
    packed_for_vectors = F.pad(weight, (0, 0, 0, 24)).view(2, 32, 50).transpose(1, 2).contiguous()[None]
    for packed in (packed_for_amx, packed_for_vectors):
        layer.packed = packed
        torch.testing.assert_close(layer(features), F.linear(features, weight), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL)
def test_autocast(name, matrix):
    model, images = randomise(SMALL[name]()).eval(), torch.randn(1, 3, 64, 96)
    expected = outputs(model, images)
    optimized = optimize_for_inference(model)
    with torch.autocast("cpu", torch.bfloat16):
        plain, actual = outputs(model, images), outputs(optimized, images)
    for ours, theirs, exact in zip(actual, plain, expected, strict=True):
        assert error(ours.float(), exact) < 2 * error(theirs.float(), exact) + 1e-3
