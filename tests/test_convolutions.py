# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Convolutions of inference: folded norms and Winograd's filtering give what the layers give."""

import copy

import pytest
import torch
from model_tests import Calls, randomise
from torch import nn
from torch.nn import functional as F

from segtransformers.models.optimize import convolutions, faster
from segtransformers.models.optimize.convolutions import conv_norm_relu, convolution3x3, folded, winograd_convolution
from segtransformers.models.optimize.faster import layers_as_written


def convolution_and_norm(bias: bool = True, affine: bool = True) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    convolution = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=bias)
    norm = nn.BatchNorm2d(6, affine=affine)
    randomise(nn.Sequential(convolution, norm)).double().eval()
    return convolution, norm


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_folded_norms_change_nothing(bias, affine):
    convolution, norm = convolution_and_norm(bias, affine)
    state = copy.deepcopy((convolution.state_dict(), norm.state_dict()))
    features = torch.randn(2, 4, 9, 17, dtype=torch.float64)
    with torch.no_grad():
        with Calls() as calls:
            actual = conv_norm_relu(convolution, norm, features)
        assert not any("batch_norm" in name for name in calls.names)
        torch.testing.assert_close(actual, norm(convolution(features)).relu(), rtol=1e-12, atol=1e-12)
        with layers_as_written(), Calls() as calls:
            assert torch.equal(conv_norm_relu(convolution, norm, features), norm(convolution(features)).relu())
        assert any("batch_norm" in name for name in calls.names)
        with Calls() as calls:
            conv_norm_relu(convolution, norm, features[:, :, :3, :3])
        assert any("batch_norm" in name for name in calls.names)  # less work than to fold it
        norm.running_mean += 1  # nothing is kept that could be out of date
        torch.testing.assert_close(
            conv_norm_relu(convolution, norm, features), norm(convolution(features)).relu(), rtol=1e-12, atol=1e-12
        )
        norm.running_mean -= 1
    for before, module in zip(state, (convolution, norm), strict=True):
        for name, tensor in module.state_dict().items():
            torch.testing.assert_close(tensor, before[name])


@pytest.mark.parametrize(
    "touch",
    [
        lambda convolution, norm: norm.train(),
        lambda convolution, norm: convolution.register_forward_hook(lambda *_: None),
        lambda convolution, norm: norm.register_forward_pre_hook(lambda *_: None),
        lambda convolution, norm: setattr(convolution, "forward", lambda features: F.conv2d(features, features)),
        lambda convolution, norm: nn.utils.parametrizations.weight_norm(convolution),
        lambda convolution, norm: convolution.half(),
    ],
)
def test_what_something_else_has_its_hand_on_is_not_folded(touch):
    convolution, norm = convolution_and_norm()
    with torch.no_grad():
        assert folded(convolution, norm) is not None
        touch(convolution, norm)
        assert folded(convolution, norm) is None


def test_nothing_is_folded_where_gradients_are_wanted():
    assert folded(*convolution_and_norm()) is None


@torch.no_grad()
@pytest.mark.parametrize("size", [(2, 2), (4, 10), (14, 6), (32, 30)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_minimal_filtering_is_convolution(size, bias, layout, monkeypatch):
    monkeypatch.setattr(convolutions, "TILES_AT_ONCE", 12)  # bands that do and do not fill the map
    features = torch.randn(2, 5, *size, dtype=torch.float64).to(memory_format=layout)
    weight = torch.randn(7, 5, 3, 3, dtype=torch.float64)
    shift = torch.randn(7, dtype=torch.float64) if bias else None
    actual = winograd_convolution(features, weight, shift)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(actual, F.conv2d(features, weight, shift, padding=1), rtol=1e-13, atol=1e-13)


@torch.no_grad()
def test_minimal_filtering_rounds_little():
    features, weight = torch.randn(1, 512, 32, 32).relu(), torch.randn(512, 512, 3, 3)
    exact = F.conv2d(features.double(), weight.double(), padding=1)
    errors = [
        ((output - exact).norm() / exact.norm()).item()
        for output in (winograd_convolution(features, weight, None), F.conv2d(features, weight, padding=1))
    ]
    assert errors[0] < 1e-6 and errors[0] < 4 * errors[1]


@torch.no_grad()
@pytest.mark.parametrize(
    "features, weight, threads, taken",
    [
        ((1, 8, 16, 16), (8, 8, 3, 3), 2, True),
        ((1, 8, 16, 16), (8, 8, 3, 3), 1, False),  # products are slower than convolutions with one thread
        ((1, 8, 16, 15), (8, 8, 3, 3), 2, False),
        ((1, 8, 8, 8), (8, 8, 3, 3), 2, False),
        ((1, 8, 16, 16), (4, 8, 3, 3), 2, False),
    ],
)
def test_minimal_filtering_where_it_pays(features, weight, threads, taken, monkeypatch):
    monkeypatch.setattr(convolutions, "FEWEST_CHANNELS", 8)
    monkeypatch.setattr(convolutions, "FEWEST_TILES", 64)
    monkeypatch.setattr(faster, "_products_are_slow", lambda: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    features, weight = torch.randn(features), torch.randn(weight)
    expected = F.conv2d(features, weight, padding=1)
    with Calls() as calls:
        actual = convolution3x3(features, weight, None)
    assert ("sub" in calls.names) == taken
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    with layers_as_written():
        assert torch.equal(convolution3x3(features, weight, None), expected)
    with torch.enable_grad():
        assert torch.equal(convolution3x3(features, weight, None), expected)


@torch.no_grad()
@pytest.mark.parametrize("stride, padding, dilation", [(1, 1, 1), (2, 1, 1), (1, 0, 1), (1, 2, 2)])
def test_only_ordinary_kernels_are_filtered(stride, padding, dilation, monkeypatch):
    monkeypatch.setattr(convolutions, "FEWEST_CHANNELS", 1)
    monkeypatch.setattr(convolutions, "FEWEST_TILES", 1)
    monkeypatch.setattr(convolutions, "products_are_fast", lambda: True)
    convolution = nn.Conv2d(4, 4, 3, stride, padding, dilation)
    norm = randomise(nn.Sequential(nn.BatchNorm2d(4)))[0]
    convolution.eval(), norm.eval()
    features = torch.randn(1, 4, 24, 24)
    torch.testing.assert_close(
        conv_norm_relu(convolution, norm, features), norm(convolution(features)).relu(), rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
def test_transforms_and_forward_derivatives_take_the_plain_way(monkeypatch):
    monkeypatch.setattr(convolutions, "FEWEST_CHANNELS", 1)
    monkeypatch.setattr(convolutions, "FEWEST_TILES", 1)
    monkeypatch.setattr(convolutions, "products_are_fast", lambda: True)
    features, weights = torch.randn(1, 2, 6, 6), torch.randn(3, 4, 2, 3, 3)
    expected = torch.stack([F.conv2d(features, weight, padding=1) for weight in weights])
    mapped = torch.func.vmap(lambda weight: convolution3x3(features, weight, None))(weights)
    torch.testing.assert_close(mapped, expected, rtol=1e-4, atol=1e-4)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(features, torch.ones_like(features))
        tangent = torch.autograd.forward_ad.unpack_dual(convolution3x3(dual, weights[0], None)).tangent
    torch.testing.assert_close(tangent, F.conv2d(torch.ones_like(features), weights[0], padding=1))
