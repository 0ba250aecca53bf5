# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Label maps by the compiled operator beside those of the plain way."""

import numpy as np
import pytest
import torch
from model_tests import randomise
from test_optimize import MODELS
from test_segmenter import small_segmenter

from segtransformers import SegmentationImageProcessor, SegmenterForSemanticSegmentation
from segtransformers.inference import InferenceProtocol, segment_image
from segtransformers.inference import segmentation as module
from segtransformers.inference.segmentation import segment_views
from segtransformers.inference.views import image_size, image_views
from segtransformers.models.optimize import optimize_for_inference
from segtransformers.operators import compiled_operators, dispatcher

PROCESSOR = SegmentationImageProcessor(do_resize=False, size_divisor=32)


@pytest.fixture
def calls(kernel_build, monkeypatch):
    """The operators of a fresh build; the calls that label windows."""
    monkeypatch.setenv("LOCAL_KERNELS", f"{dispatcher.KERNEL_ID}={kernel_build / 'build'}")
    dispatcher.reset()
    kernel = dispatcher.find_kernel()
    assert kernel is not None, dispatcher._state.problems
    function, found = kernel.functions.dense.label_windows, []

    def call(logits, *arguments):
        found.append(tuple(logits.shape))
        return function(logits, *arguments)

    monkeypatch.setattr(kernel.functions.dense, "label_windows", call)
    yield found
    dispatcher.reset()


def image(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def small_model(name="vit-adapter-upernet", **config):
    torch.manual_seed(0)
    model = randomise(MODELS[name]() if name in MODELS else SegmenterForSemanticSegmentation(small_segmenter())).eval()
    for key, value in config.items():
        setattr(model.config, key, value)
    return model


def plainly(monkeypatch, model, *arguments):
    with monkeypatch.context() as patch:
        patch.setattr(module, "labels_of_small_logits", lambda *_: None)
        return segment_image(model, *arguments)


SLIDING = InferenceProtocol(window=(64, 96), stride=(40, 64))


@pytest.mark.parametrize("name", ["vit-adapter-upernet", "segmenter"])
@pytest.mark.parametrize(
    ("size", "protocol", "bands"),
    [
        ((150, 203), SLIDING, 4),
        ((160, 192), SLIDING, 4),
        ((64, 96), SLIDING, 1),
        ((75, 130), None, 1),
    ],
)
def test_labels_are_those_of_the_plain_way(name, size, protocol, bands, calls, monkeypatch):
    model = optimize_for_inference(small_model(name))
    expected = plainly(monkeypatch, model, PROCESSOR, image(*size), protocol)
    assert not calls
    labels = segment_image(model, PROCESSOR, image(*size), protocol)
    assert len(calls) == bands and labels.shape == size and labels.dtype == torch.int64
    assert (labels == expected).double().mean() > 0.9999 and len(labels.unique()) > 2


@pytest.mark.parametrize("batch_size", [2, 4, 7])
def test_windows_of_one_pass_may_end_within_a_row(batch_size, calls):
    """The rows that are labelled then need none of the windows of the last row."""
    size = (150, 203)  # four rows of three windows
    expected = segment_image(optimize_for_inference(small_model()), PROCESSOR, image(*size), SLIDING)
    model = optimize_for_inference(small_model(window_batch_size=batch_size))
    labels = segment_image(model, PROCESSOR, image(*size), SLIDING)
    assert calls and (labels == expected).double().mean() > 0.9999


@pytest.mark.parametrize("edge", [48, 300])
def test_the_logits_of_a_view_are_resized_to_the_image(edge, calls, monkeypatch):
    processor = SegmentationImageProcessor(size={"shortest_edge": edge, "longest_edge": 1000}, size_divisor=32)
    model, protocol = optimize_for_inference(small_model()), InferenceProtocol(window=(48, 48), stride=(32, 32))
    expected = plainly(monkeypatch, model, processor, image(90, 121), protocol)
    labels = segment_image(model, processor, image(90, 121), protocol)
    assert calls and (labels == expected).double().mean() > 0.9999


def test_images_of_a_batch(calls):
    model = optimize_for_inference(small_model())
    images = [image(90, 121), image(90, 121)[::-1].copy()]
    views = [image_views(PROCESSOR, one, SLIDING) for one in images]
    together = segment_views(model, views, [image_size(one) for one in images], SLIDING)
    for labels, one in zip(together, images, strict=True):
        assert (labels == segment_image(model, PROCESSOR, one, SLIDING)).double().mean() > 0.9999
    assert calls


def test_bfloat16(calls, monkeypatch):
    model = optimize_for_inference(small_model(), dtype=torch.bfloat16)
    expected = plainly(monkeypatch, model, PROCESSOR, image(90, 121), SLIDING)
    labels = segment_image(model, PROCESSOR, image(90, 121), SLIDING)
    assert calls and (labels == expected).double().mean() > 0.95  # resized logits were rounded


@pytest.mark.parametrize(
    "kind",
    ["plain model", "hook", "hook on the resize", "no kernel", "blend", "margin", "flip", "mask2former", "one class"],
)
def test_others_take_the_plain_way(kind, calls):
    model = small_model("vit-adapter-mask2former" if kind == "mask2former" else "vit-adapter-upernet")
    if kind == "one class":
        model.config.id2label = {0: "road"}
        model.decode_head.classifier = torch.nn.Conv2d(model.decode_head.classifier.in_channels, 1, 1)
    if kind != "plain model":
        model = optimize_for_inference(model)
    if kind == "hook":
        model.register_forward_hook(lambda *_: None)
    if kind == "hook on the resize":
        model.resize_logits.register_forward_hook(lambda *_: None)
    changes = {"blend": {"blend": "cosine"}, "margin": {"margin": 4}, "flip": {"flip": True}}.get(kind, {})
    protocol = InferenceProtocol(window=(64, 96), stride=(40, 64), **changes)
    with compiled_operators("off" if kind == "no kernel" else "auto"):
        assert segment_image(model, PROCESSOR, image(90, 121), protocol).shape == (90, 121)
    assert not calls


def test_logits_at_the_resolution_of_the_head():
    model, images = small_model(), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        small = model(images, resize_logits=False).logits
        assert small.shape[2:] == (16, 24)
        resized = torch.nn.functional.interpolate(small, (64, 96), mode="bilinear")
        torch.testing.assert_close(model(images).logits, resized)
        labelled = model(images, labels=torch.zeros(1, 64, 96, dtype=torch.long), resize_logits=False)
        assert labelled.logits.shape == small.shape and labelled.loss.isfinite()
        model.config.inference_mode, model.config.window_size, model.config.window_stride = "slide", [32, 32], [32, 32]
        with pytest.raises(ValueError, match="resize_logits=False needs an image in one piece, but 64x96 pixels"):
            model(images, resize_logits=False)
