# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""torch.compile captures a whole model as one graph, which also serves new sizes.

Most tests look at the captured graphs alone, because generating code takes minutes; one small model is compiled by the
default backend.
"""

import copy
import shutil

import pytest
import torch
from model_tests import randomise
from test_flash_internimage import small_flash
from test_internimage import small_internimage
from test_seg_linear import small_linear
from test_seg_mask2former import small_head as small_mask2former
from test_seg_segformer import small_segformer
from test_seg_upernet import small_head as small_upernet
from test_vit_adapter import small_config as small_adapter
from test_vit_comer import small_comer
from test_vit_simple_pyramid import small_pyramid

from segtransformers import (
    SegLinearForSemanticSegmentation,
    SegMask2FormerForSemanticSegmentation,
    SegmenterConfig,
    SegmenterForSemanticSegmentation,
    SegmenterViTConfig,
    SegSegformerForSemanticSegmentation,
    SegUperNetForSemanticSegmentation,
)
from segtransformers.models.layers.sliding_windows import SlidingWindow
from segtransformers.models.mask2former.loss_seg_mask2former import semantic_targets


def upernet(backbone) -> SegUperNetForSemanticSegmentation:
    # without random layers, so that losses can be compared
    return SegUperNetForSemanticSegmentation(small_upernet(backbone, classifier_dropout=0.0))


def segmenter(num_hidden_layers: int = 2, **changes) -> SegmenterForSemanticSegmentation:
    trunk = SegmenterViTConfig(
        trunk="vit_tiny_patch16_224",
        pretrain_image_size=64,
        hidden_size=32,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=2,
    )
    return SegmenterForSemanticSegmentation(
        SegmenterConfig(backbone_config=trunk, num_labels=5, decoder_drop_path_rate=0.0, **changes)
    )


def small_upernet_adapter() -> SegUperNetForSemanticSegmentation:
    """One interaction, of an injector and an extractor, instead of four: a third of the graph."""
    backbone = small_adapter(
        interaction_indexes=[[0, 3]], add_trunk_features=False, use_extra_extractors=False, drop_path_rate=0.0
    )
    return upernet(backbone)


MODELS = {
    "upernet-small-vit-adapter": small_upernet_adapter,
    "upernet-vit-adapter": lambda: upernet(small_adapter(drop_path_rate=0.0)),
    "mask2former-vit-adapter": lambda: SegMask2FormerForSemanticSegmentation(
        small_mask2former(small_adapter(drop_path_rate=0.0))
    ),
    "upernet-internimage": lambda: upernet(small_internimage(drop_path_rate=0.0)),
    "upernet-flash-internimage": lambda: upernet(small_flash(drop_path_rate=0.0)),
    "upernet-eva02": lambda: upernet(small_pyramid(drop_path_rate=0.0)),
    "upernet-vit-comer": lambda: upernet(small_comer(drop_path_rate=0.0)),
    "segformer-internimage": lambda: SegSegformerForSemanticSegmentation(
        small_segformer(small_internimage(drop_path_rate=0.0))
    ),
    "segmenter": segmenter,
    "linear-dinov2": lambda: SegLinearForSemanticSegmentation(small_linear(classifier_dropout=0.0)),
}
QUICK = {"upernet-small-vit-adapter"}  # the others take half a minute each
NAMES = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in MODELS]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("name", NAMES)
def test_one_graph_serves_new_sizes(name):
    model = randomise(MODELS[name]()).eval()
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=counting, fullgraph=True)
    with torch.no_grad():
        for size in ((64, 96), (96, 128), (128, 160)):  # known, seen to change, and never seen
            images = torch.randn(2, 3, *size)
            torch.testing.assert_close(compiled(images).logits, model(images).logits, rtol=1e-4, atol=1e-4)
    assert len(graphs) <= 2  # one for the first size, and one for all others


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_training_step_compiles(name):
    """The step is one graph. Mask2Former gets masks, because their number depends on the values of a label map."""
    torch.manual_seed(0)
    model = randomise(MODELS[name]()).train()
    other = copy.deepcopy(model)
    images, labels = torch.randn(2, 3, 64, 96), torch.randint(5, (2, 64, 96))
    targets = {"labels": labels}
    if "mask2former" in name:
        targets = dict(zip(("mask_labels", "class_labels"), semantic_targets(labels, 5, 255), strict=True))
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    losses = []
    for module, run in ((model, model), (other, compiled)):
        torch.manual_seed(1)
        loss = run(images, **targets).loss
        loss.backward()
        losses.append(loss.detach())
        assert all(parameter.grad is not None for parameter in module.parameters())
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-3)
    if "mask2former" in name:
        return  # its losses are computed at random points, which rounding may change
    for (parameter_name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        error = (one.grad - two.grad).norm() / one.grad.norm().clamp(min=1e-3)
        assert error < 1e-2, parameter_name


@pytest.fixture(scope="module")
def tiny():
    return randomise(small_upernet_adapter()).eval()


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles with g++ on a CPU")
def test_inductor_takes_a_second_size():
    model = randomise(segmenter(num_hidden_layers=1, decoder_type="linear")).eval()  # few kernels to compile
    compiled = torch.compile(model)
    for size in ((64, 96), (33, 47)):  # the second makes sizes dynamic, and is no multiple of the stride
        images = torch.randn(2, 3, *size)
        torch.testing.assert_close(compiled(images).logits, model(images).logits, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_large_images_compile_the_window(tiny):
    """Neither the number nor the size of graphs grows with the number of windows."""
    graphs = []

    def counting(graph, inputs):
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    compiled = torch.compile(tiny, backend=counting, dynamic=False)
    window, totals = SlidingWindow((64, 64), (48, 48)), []
    for size in ((64, 112), (160, 256)):  # 2 and 15 windows
        images = torch.randn(1, 3, *size)
        actual = compiled(images, sliding_window=window).logits
        torch.testing.assert_close(actual, tiny(images, sliding_window=window).logits, rtol=1e-3, atol=1e-4)
        totals.append(sum(graphs))
    whole_image = len(graphs)
    compiled(torch.randn(1, 3, 64, 64), sliding_window=False)
    one_window = sum(graphs[whole_image:])
    assert one_window > 100 and totals[0] < 1.5 * one_window and totals[1] < 1.5 * one_window
