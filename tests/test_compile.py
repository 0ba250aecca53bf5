# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""torch.compile sees whole models as one graph, and new sizes as the same graph.

What is tested is what is captured: code is not generated, which would take minutes. Gradients go through the compiler's
own automatic differentiation.
"""

import copy

import pytest
import torch
from model_tests import randomise
from test_internimage import small_internimage
from test_seg_mask2former import small_head as small_mask2former
from test_seg_segformer import small_segformer
from test_seg_upernet import small_head as small_upernet
from test_vit_adapter import small_config as small_adapter
from test_vit_comer import small_comer

from segtransformers import (
    SegMask2FormerForSemanticSegmentation,
    SegmenterConfig,
    SegmenterForSemanticSegmentation,
    SegmenterViTConfig,
    SegSegformerForSemanticSegmentation,
    SegUperNetForSemanticSegmentation,
)
from segtransformers.models.mask2former.loss_seg_mask2former import semantic_targets


def upernet(backbone) -> SegUperNetForSemanticSegmentation:
    # what is random in training is off, so that losses can be compared
    return SegUperNetForSemanticSegmentation(small_upernet(backbone, classifier_dropout=0.0))


def segmenter() -> SegmenterForSemanticSegmentation:
    trunk = SegmenterViTConfig(
        trunk="vit_tiny_patch16_224", pretrain_image_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    return SegmenterForSemanticSegmentation(
        SegmenterConfig(backbone_config=trunk, num_labels=5, decoder_drop_path_rate=0.0)
    )


MODELS = {
    "upernet-vit-adapter": lambda: upernet(small_adapter(drop_path_rate=0.0)),
    "mask2former-vit-adapter": lambda: SegMask2FormerForSemanticSegmentation(
        small_mask2former(small_adapter(drop_path_rate=0.0))
    ),
    "upernet-internimage": lambda: upernet(small_internimage(drop_path_rate=0.0)),
    "upernet-vit-comer": lambda: upernet(small_comer(drop_path_rate=0.0)),
    "segformer-internimage": lambda: SegSegformerForSemanticSegmentation(
        small_segformer(small_internimage(drop_path_rate=0.0))
    ),
    "segmenter": segmenter,
}
QUICK = {"upernet-vit-adapter"}
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
    assert len(graphs) <= 2  # one of the first size, and one of all


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_training_step_compiles(name):
    """In one graph; for Mask2Former from masks, because no size tells how many a label map holds."""
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
        return  # its losses are of random points: rounding may choose others
    for (parameter_name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        error = (one.grad - two.grad).norm() / one.grad.norm().clamp(min=1e-3)
        assert error < 1e-2, parameter_name
