# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The test protocols of the originals: windows, several scales, mirror images, huge photos."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reference_cases import FOLDER, ReferenceCase, relative_error
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    SegformerConfig,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
)

from segtransformers import SegmentationImageProcessor, inference, packaged_model_path
from segtransformers.conversion import convert_checkpoint
from segtransformers.conversion.protocol import read_test_pipeline
from segtransformers.datasets.scenes import draw_scene
from segtransformers.inference import (
    image_scores,
    image_views,
    multi_scale_options,
    segment_image,
    segment_views,
)
from segtransformers.models.layers.sliding_windows import SlidingWindow, slide, slide_bands
from segtransformers.published import FAMILIES, published_rows

PROTOCOL = json.loads((FOLDER / "vit_adapter" / "inference_protocol.json").read_text())
CASES = {case["name"]: case for case in PROTOCOL["cases"]}
MULTI_SCALE = [name for name, case in CASES.items() if case["img_ratios"]]


@pytest.fixture(scope="module")
def recorded():
    return load_file(FOLDER / "vit_adapter" / PROTOCOL["outputs"])


def pipeline_of(case) -> list[dict]:
    keys = {key: case[key] for key in ("img_scale", "img_ratios", "flip")}
    return [{"type": "LoadImageFromFile"}, {"type": "MultiScaleFlipAug", **keys, "transforms": case["transforms"]}]


def converted(case):
    weights = ReferenceCase("vit_adapter/" + case["weights"].split("manifest of ")[1].split(",")[0])
    model = convert_checkpoint(weights.state_dict(), {**weights.config, "test_cfg": case["test_cfg"]})
    return model.eval(), read_test_pipeline(pipeline_of(case), reduce_labels=False)


def options_of(case, processor) -> dict:
    return multi_scale_options(processor) if case["img_ratios"] else {}


@pytest.mark.parametrize("name", CASES)
def test_network_inputs_equal_the_original(recorded, name):
    case = CASES[name]
    _, processor = converted(case)
    views = image_views(processor, recorded[f"{name}.image"].numpy(), **options_of(case, processor))
    assert len(views) == len(case["img_ratios"] or [1]) * (2 if case["flip"] else 1)
    for augmentation in case["augmentations"]:
        index, view = augmentation["index"], views[augmentation["index"]]
        assert list(view.pixel_values.shape) == augmentation["shape"] and view.flipped == augmentation["flip"]
        assert list(view.size) == augmentation["img_shape"][:2]
        if f"{name}.input.{index}" in recorded:
            # the original multiplies by the reciprocal of the deviation: one rounding more
            expected = recorded[f"{name}.input.{index}"]
            torch.testing.assert_close(view.pixel_values[:, :, ::2, ::2], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_predictions_equal_the_original(recorded, name):
    case = CASES[name]
    model, processor = converted(case)
    image, stride = recorded[f"{name}.image"].numpy(), case["stride_of_maps"]
    options = options_of(case, processor)
    scores = image_scores(model, processor, image, **options)
    assert relative_error(scores[None, :, ::stride, ::stride], recorded[f"{name}.probabilities"]) < 1e-6
    assert torch.equal(segment_image(model, processor, image, **options), recorded[f"{name}.prediction"].long())


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_the_original(recorded, name):
    """Those of the first view, before and after the resize to the image's size."""
    case = CASES[name]
    model, processor = converted(case)
    image, stride = recorded[f"{name}.image"].numpy(), case["stride_of_maps"]
    view = image_views(processor, image, **options_of(case, processor))[0]
    with torch.no_grad():
        logits = model(pixel_values=view.pixel_values.double()).logits[:, :, : view.size[0], : view.size[1]]
    strided = np.s_[:, :, ::stride, ::stride]
    assert relative_error(logits[strided], recorded[f"{name}.logits_0"]) < 1e-6
    resized = torch.nn.functional.interpolate(logits, size=image.shape[:2], mode="bilinear", align_corners=False)
    assert relative_error(resized[strided], recorded[f"{name}.logits_0_rescaled"]) < 1e-6


def scene(seed: int, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(draw_scene(seed, size)[0])


class Blurred(torch.nn.Module):
    """Stands for a network: logits depend on the whole window."""

    def forward(self, windows):
        means = windows.mean(dim=(2, 3), keepdim=True)
        return torch.cat([windows, means.expand_as(windows)], dim=1)


@pytest.mark.parametrize("batch", [1, 2, 3, 100])
@pytest.mark.parametrize("size", [(70, 50), (32, 90), (33, 24), (20, 90), (90, 20), (10, 10)])
def test_bands_are_the_whole(size, batch):
    images = torch.randn(2, 3, *size)
    arguments = (Blurred(), images, SlidingWindow((32, 24), (20, 20), batch))
    bands = list(slide_bands(*arguments))
    whole = slide(*arguments)
    assert whole.shape == (2, 6, *size) and torch.equal(torch.cat(bands, dim=2), whole)
    assert len(bands) > 1 or size[0] <= 33 or batch > 3
    assert all(band.shape[2] > 0 for band in bands)


@pytest.fixture(scope="module")
def packaged():
    folder = packaged_model_path()
    return AutoModelForSemanticSegmentation.from_pretrained(folder).eval(), AutoImageProcessor.from_pretrained(folder)


def test_a_single_view_is_the_model_and_the_processor(packaged):
    model, processor = packaged
    image = scene(3, (150, 230))
    with torch.no_grad():
        outputs = model(**processor(image, return_tensors="pt"))
    (expected,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(150, 230)])
    assert torch.equal(segment_image(model, processor, image), expected)
    assert torch.equal(segment_image(model, processor, np.asarray(image)), expected)
    assert torch.equal(image_scores(model, processor, image).argmax(0), expected)


def test_another_window(packaged):
    model, processor = packaged
    before = model.config.to_dict()
    image = scene(4, (150, 230))
    whole, small = segment_image(model, processor, image), segment_image(model, processor, image, window=(64, 96))
    assert 0 < (whole != small).float().mean() < 0.3
    assert model.config.to_dict() == before
    model.config.inference_mode, model.config.window_size, model.config.window_stride = "slide", [64, 96], [42, 64]
    try:
        assert torch.equal(segment_image(model, processor, image), small)
    finally:
        for field in ("inference_mode", "window_size", "window_stride"):
            setattr(model.config, field, before[field])
    with pytest.raises(ValueError, match="window_stride must not exceed"):
        segment_image(model, processor, image, window=(64, 64), stride=(65, 64))
    assert model.config.to_dict() == before


def test_mirror_images_and_scales_are_averaged(packaged):
    model, processor = packaged
    image = scene(5, (96, 128))
    plain = image_scores(model, processor, image)
    mirrored = image_scores(model, processor, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)).flip(-1)
    both = image_scores(model, processor, image, flip=True)
    torch.testing.assert_close(both, (plain + mirrored) / 2)
    double = image_scores(model, processor, image.resize((256, 192), Image.Resampling.BILINEAR))
    assert double.shape == (10, 192, 256)
    scaled = image_scores(model, processor, image, scales=[1.0, 1.5])
    assert scaled.shape == plain.shape and not torch.equal(scaled, plain)
    torch.testing.assert_close(scaled.sum(0), torch.ones(96, 128))


@pytest.mark.parametrize(
    ("size", "options"), [((100, 64), {"flip": True}), ((220, 48), {"scales": [1.0, 1.3], "flip": True})]
)
def test_views_in_step_give_what_whole_maps_give(packaged, monkeypatch, size, options):
    model, processor = packaged
    image, calls = scene(8, size), []
    in_step = inference.segmentation._labels_in_step
    monkeypatch.setattr(model.config, "window_batch_size", 2)
    monkeypatch.setattr(
        inference.segmentation, "_labels_in_step", lambda *given: calls.append(given) or in_step(*given)
    )
    labels = segment_image(model, processor, image, window=(32, 48), stride=(20, 30), **options)
    assert len(calls) == 1  # bands of all views are smaller than the whole
    scores = image_scores(model, processor, image, window=(32, 48), stride=(20, 30), **options)
    assert torch.equal(labels, scores.argmax(0))


@pytest.mark.parametrize(("options", "window"), [({}, None), ({}, (48, 48)), ({"scales": [1.0, 1.5]}, None)])
def test_images_of_the_same_size_share_calls(packaged, options, window):
    model, processor = packaged
    images = [scene(9, (64, 96)), scene(10, (50, 70)), scene(11, (64, 96)), scene(12, (64, 96))]
    views = [image_views(processor, image, **options) for image in images]
    batches = []
    hook = model.backbone.register_forward_pre_hook(lambda _, given: batches.append(len(given[0])))
    found = segment_views(model, views, [(image.height, image.width) for image in images], window=window)
    hook.remove()
    assert max(batches) % 3 == 0
    for image, labels in zip(images, found, strict=True):
        alone = segment_image(model, processor, image, window=window, **options)
        assert labels.shape == alone.shape and (labels != alone).float().mean() < 1e-3


def test_calls_do_not_reach_over_rows_of_many_windows():
    """Else two rows of windows were held. The calls of a row are as even as can be."""
    shapes = []

    def forward(windows):
        shapes.append(len(windows))
        return windows

    images = torch.randn(1, 3, 64, 330)
    merged = slide(forward, images, SlidingWindow((32, 32), (32, 30), 4))
    torch.testing.assert_close(merged, images)
    assert shapes == [3, 4, 4] * 2


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--flip", "--command"]])
def test_memory_of_a_huge_photo(more):
    """The scores of all 150 classes of 2400 x 2400 pixels would be 3.2 GiB."""
    script = Path(__file__).parent.parent / "benchmarks" / "inference_memory.py"
    words = [sys.executable, script, "photo", "--side", "2400", "--window", "128", *more]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    beyond = re.search(r"flip \w+: ([\d.]+) GiB beyond the model", done.stdout)
    assert 0.1 < float(beyond[1]) < 1.2


@pytest.mark.parametrize(
    ("options", "said"),
    [({"scales": [0.0]}, "positive"), ({"scales": [-1]}, "positive")],
)
def test_wrong_options(packaged, options, said):
    model, processor = packaged
    with pytest.raises(ValueError, match=said):
        segment_image(model, processor, scene(1, (64, 64)), **options)


def test_training_mode_is_refused(packaged):
    model, processor = packaged
    model.train()
    try:
        with pytest.raises(ValueError, match="eval"):
            segment_image(model, processor, scene(1, (64, 64)))
    finally:
        model.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_published_row_knows_its_multi_scale_protocol(family):
    """The authors' config for several scales, or what their test.py does without one."""
    for name, row in published_rows(family).items():
        processor = read_test_pipeline(row["test_pipeline"], False, multi_scale_pipeline=row["multi_scale_pipeline"])
        protocol = processor.multi_scale
        steps = (row["multi_scale_pipeline"] or row["test_pipeline"])[-1]["transforms"]
        kinds = {step["type"]: step for step in steps}
        assert (protocol["size_divisor"] == 32) == ("ResizeToMultiple" in kinds), name
        assert protocol["shortest_edge_at_least"] == kinds.get("SETR_Resize", {}).get("crop_size", [None])[0], name
        assert protocol["pad_shortest_edge"] == kinds.get("PadShortSide", {}).get("size"), name
        assert protocol["flip"] and len(protocol["scales"]) in (3, 4, 5, 6, 7), name
    beit = published_rows("vit_adapter")["upernet_beit_adapter_large_640_160k_ade20k_ss"]["multi_scale_pipeline"]
    assert read_test_pipeline(beit, False).multi_scale["shortest_edge_at_least"] == 640


def test_multi_scale_protocol_is_saved(tmp_path):
    protocol = {**SegmentationImageProcessor.multi_scale, "scales": [1.0, 2.0], "pad_shortest_edge": 96}
    SegmentationImageProcessor(multi_scale=protocol).save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert loaded.multi_scale == protocol
    assert multi_scale_options(loaded) == {"scales": (1.0, 2.0), "flip": True}


def test_other_models_of_transformers():
    """Their logits are smaller than the image, and their processors know nothing of scales."""
    config = SegformerConfig(depths=[1] * 4, hidden_sizes=[8, 16, 24, 32], decoder_hidden_size=16, num_labels=3)
    model, processor = SegformerForSemanticSegmentation(config).eval(), SegformerImageProcessor(size=64)
    image = scene(6, (80, 120))
    labels = segment_image(model, processor, image)
    (expected,) = processor.post_process_semantic_segmentation(
        model(**processor(image, return_tensors="pt")), target_sizes=[(80, 120)]
    )
    assert torch.equal(labels, expected)
    with pytest.raises(ValueError, match="no sliding window"):
        segment_image(model, processor, image, window=(32, 32))
    with pytest.raises(ValueError, match="several scales"):
        segment_image(model, processor, image, scales=[1.0])
    other = SegformerForImageClassification(config).eval()
    with pytest.raises(ValueError, match="SegformerForImageClassification gives no maps of logits"):
        segment_image(other, processor, image)
