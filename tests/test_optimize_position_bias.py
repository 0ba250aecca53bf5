# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Memory that the blocks of an optimized BEiT share for their relative position biases."""

import copy
import threading

import pytest
import torch
from model_tests import randomise
from test_segmenter import small_vit

from segtransformers import SegmenterViTBackbone
from segtransformers.models.optimize import optimize_for_inference
from segtransformers.models.optimize.position_bias import SharedRelativePositionBias

SIZES = [(64, 64), (64, 96), (33, 47)]


@pytest.fixture(params=[True, False], ids=["class token", "patches"])
def model(request):
    config = small_vit(trunk="beit_base_patch16_224", use_prefix_tokens=request.param)
    return randomise(SegmenterViTBackbone(config)).eval()


def without_shared_memory(model):
    """Return an optimized model whose blocks compute their biases one by one; the numbers are equal."""
    return optimize_for_inference(model, without=["position_bias"])


def run(model, size, mode=torch.no_grad):
    with mode():
        return model(torch.ones(1, 3, *size)).feature_maps[0].clone()


def test_results_are_equal_and_the_memory_is_shared_and_given_up(model):
    optimized, model = optimize_for_inference(model), without_shared_memory(model)
    layers = [layer for layer in optimized.modules() if isinstance(layer, SharedRelativePositionBias)]
    assert len(layers) == 4
    addresses = []
    for layer in layers:
        layer.register_forward_hook(lambda _, inputs, bias: addresses.append(bias.data_ptr()))
    for size in SIZES:
        for mode in (torch.no_grad, torch.inference_mode):
            assert torch.equal(run(optimized, size, mode), run(model, size, mode))
            assert len(set(addresses)) == 1
            addresses.clear()
            assert layers[0].memory is layers[3].memory and layers[0].memory.bias is None
    assert torch.equal(run(copy.deepcopy(optimized), (64, 64)), run(model, (64, 64)))


def test_memory_left_by_an_interrupted_pass_does_no_harm(model):
    optimized, model = optimize_for_inference(model), without_shared_memory(model)
    handle = optimized.trunk.blocks[2].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(optimized, (64, 64), torch.inference_mode)
    handle.remove()
    assert torch.equal(run(optimized, (64, 64)), run(model, (64, 64)))


def test_gradients_of_the_image_see_memory_of_their_own(model):
    gradients = []
    for each in (optimize_for_inference(model), model):
        images = torch.ones(1, 3, 64, 96, requires_grad=True)
        each(images).feature_maps[0].square().mean().backward()
        gradients.append(images.grad)
    torch.testing.assert_close(*gradients)


def test_threads_do_not_share_it(model):
    optimized, model = optimize_for_inference(model), without_shared_memory(model)
    expected = {size: run(model, size) for size in SIZES}
    wrong = []

    def work(size):
        for _ in range(5):
            if not torch.equal(run(optimized, size), expected[size]):
                wrong.append(size)

    threads = [threading.Thread(target=work, args=(size,)) for size in SIZES * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
