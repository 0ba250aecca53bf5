# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Inference on whole images as in the original code: windows, scales, mirrored views, huge images, threads."""

import copy
import dataclasses
import functools
import json
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
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

from segtransformers import SegmentationImageProcessor, inference, optimize_for_inference, packaged_model_path
from segtransformers.conversion import convert_checkpoint
from segtransformers.conversion.protocol import read_test_pipeline
from segtransformers.datasets.scenes import draw_scene
from segtransformers.inference import (
    InferenceProtocol,
    SegmentationPipeline,
    image_scores,
    image_size,
    image_views,
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


@functools.lru_cache
def converted(name: str):
    """Return the model and the processor of a case. The model keeps its results, which several tests need."""
    case = CASES[name]
    weights = ReferenceCase("vit_adapter/" + case["weights"].split("manifest of ")[1].split(",")[0])
    model = convert_checkpoint(weights.state_dict(), {**weights.config, "test_cfg": case["test_cfg"]})
    model, forward, results = model.eval(), model.forward, {}

    def kept(pixel_values, **options):
        key = pixel_values.numpy().tobytes(), pixel_values.shape, repr(options)
        if key not in results:
            results[key] = forward(pixel_values=pixel_values, **options)
        return results[key]

    model.forward = kept
    return model, read_test_pipeline(pipeline_of(case), reduce_labels=False)


def protocol_of(case, processor) -> InferenceProtocol:
    return InferenceProtocol.multi_scale(processor) if case["img_ratios"] else InferenceProtocol()


@pytest.mark.parametrize("name", CASES)
def test_network_inputs_equal_the_original(recorded, name):
    case = CASES[name]
    _, processor = converted(name)
    views = image_views(processor, recorded[f"{name}.image"].numpy(), protocol_of(case, processor))
    assert len(views) == len(case["img_ratios"] or [1]) * (2 if case["flip"] else 1)
    for augmentation in case["augmentations"]:
        index, view = augmentation["index"], views[augmentation["index"]]
        assert list(view.pixel_values.shape) == augmentation["shape"] and view.flipped == augmentation["flip"]
        assert list(view.size) == augmentation["img_shape"][:2]
        if f"{name}.input.{index}" in recorded:
            # the original code multiplies by the reciprocal of the deviation, which rounds once more
            expected = recorded[f"{name}.input.{index}"]
            torch.testing.assert_close(view.pixel_values[:, :, ::2, ::2], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_predictions_equal_the_original(recorded, name):
    case = CASES[name]
    model, processor = converted(name)
    image, stride = recorded[f"{name}.image"].numpy(), case["stride_of_maps"]
    protocol = protocol_of(case, processor)
    scores = image_scores(model, processor, image, protocol)
    assert relative_error(scores[None, :, ::stride, ::stride], recorded[f"{name}.probabilities"]) < 1e-6
    assert torch.equal(segment_image(model, processor, image, protocol), recorded[f"{name}.prediction"].long())


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_the_original(recorded, name):
    """Compare the logits of the first view, before and after the resize to the size of the image."""
    case = CASES[name]
    model, processor = converted(name)
    image, stride = recorded[f"{name}.image"].numpy(), case["stride_of_maps"]
    view = image_views(processor, image, protocol_of(case, processor))[0]
    with torch.no_grad():
        logits = model(pixel_values=view.pixel_values.double()).logits[:, :, : view.size[0], : view.size[1]]
    strided = np.s_[:, :, ::stride, ::stride]
    assert relative_error(logits[strided], recorded[f"{name}.logits_0"]) < 1e-6
    resized = torch.nn.functional.interpolate(logits, size=image.shape[:2], mode="bilinear", align_corners=False)
    assert relative_error(resized[strided], recorded[f"{name}.logits_0_rescaled"]) < 1e-6


def scene(seed: int, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(draw_scene(seed, size)[0])


class Blurred(torch.nn.Module):
    """A stand-in for a network: its logits depend on the whole window."""

    def forward(self, windows):
        means = windows.mean(dim=(2, 3), keepdim=True)
        return torch.cat([windows, means.expand_as(windows)], dim=1)


@pytest.mark.parametrize("batch", [1, 2, 3, 100])
@pytest.mark.parametrize("size", [(70, 50), (32, 90), (33, 24), (20, 90), (90, 20), (10, 10)])
def test_bands_together_equal_the_whole_logits(size, batch):
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
    whole = segment_image(model, processor, image)
    small = segment_image(model, processor, image, InferenceProtocol(window=(64, 96)))
    assert 0 < (whole != small).float().mean() < 0.3
    assert model.config.to_dict() == before
    model.config.inference_mode, model.config.window_size, model.config.window_stride = "slide", [64, 96], [42, 64]
    try:
        assert torch.equal(segment_image(model, processor, image), small)
    finally:
        for field in ("inference_mode", "window_size", "window_stride"):
            setattr(model.config, field, before[field])
    assert model.config.to_dict() == before


def test_mirrored_views_and_scales_are_averaged(packaged):
    model, processor = packaged
    image = scene(5, (96, 128))
    plain = image_scores(model, processor, image)
    mirrored = image_scores(model, processor, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)).flip(-1)
    both = image_scores(model, processor, image, InferenceProtocol(flip=True))
    torch.testing.assert_close(both, (plain + mirrored) / 2)
    double = image_scores(model, processor, image.resize((256, 192), Image.Resampling.BILINEAR))
    assert double.shape == (10, 192, 256)
    scaled = image_scores(model, processor, image, InferenceProtocol(scales=[1.0, 1.5]))
    assert scaled.shape == plain.shape and not torch.equal(scaled, plain)
    torch.testing.assert_close(scaled.sum(0), torch.ones(96, 128))


@pytest.mark.parametrize(
    ("size", "options"), [((100, 64), {"flip": True}), ((220, 48), {"scales": [1.0, 1.3], "flip": True})]
)
def test_views_side_by_side_equal_whole_scores(packaged, monkeypatch, size, options):
    model, processor = packaged
    image, calls = scene(8, size), []
    side_by_side = inference.segmentation._labels_side_by_side
    monkeypatch.setattr(model.config, "window_batch_size", 2)
    monkeypatch.setattr(
        inference.segmentation, "_labels_side_by_side", lambda *given: calls.append(given) or side_by_side(*given)
    )
    protocol = InferenceProtocol(window=(32, 48), stride=(20, 30), **options)
    labels = segment_image(model, processor, image, protocol)
    assert len(calls) == 1  # the bands of all views take less memory than the scores of the whole image
    scores = image_scores(model, processor, image, protocol)
    assert torch.equal(labels, scores.argmax(0))


@pytest.mark.parametrize("options", [{}, {"window": (48, 48)}, {"scales": [1.0, 1.5]}])
def test_images_of_equal_size_share_forward_passes(packaged, options):
    model, processor = packaged
    images = [scene(9, (64, 96)), scene(10, (50, 70)), scene(11, (64, 96)), scene(12, (64, 96))]
    protocol = InferenceProtocol(**options)
    views = [image_views(processor, image, protocol) for image in images]
    batches = []
    hook = model.backbone.register_forward_pre_hook(lambda _, given: batches.append(len(given[0])))
    found = segment_views(model, views, [(image.height, image.width) for image in images], protocol)
    hook.remove()
    assert max(batches) % 3 == 0
    for image, labels in zip(images, found, strict=True):
        alone = segment_image(model, processor, image, protocol)
        assert labels.shape == alone.shape and (labels != alone).float().mean() < 1e-3


def test_a_forward_pass_takes_windows_of_one_row():
    """Otherwise two rows of windows would be in memory. The passes of a row take about equally many windows."""
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
def test_memory_of_a_huge_image(more):
    """The scores of all 150 classes of 2400 x 2400 pixels would be 3.2 GiB."""
    script = Path(__file__).parent.parent / "benchmarks" / "inference_memory.py"
    words = [sys.executable, script, "image", "--side", "2400", "--window", "128", *more]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    beyond = re.search(r"flip \w+: ([\d.]+) GiB beyond the model", done.stdout)
    assert 0.1 < float(beyond[1]) < 1.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": [0.0]}, r"scales must be positive numbers, .* got \[0.0\]"),
        ({"scales": [-1]}, "scales must be positive"),
        ({"scales": [float("nan")]}, "scales must be positive"),
        ({"scales": [float("inf")]}, "scales must be positive"),
        ({"scales": []}, "scales must be positive"),
        ({"scales": 1.5}, "scales must be positive"),
        ({"scales": "1, 2"}, "scales must be positive"),
        ({"scales": "12"}, "scales must be positive"),
        ({"flip": "no"}, "flip must be True or False, got 'no'"),
        ({"window": (64, 0)}, r"window must be two whole numbers of pixels .* got \(64, 0\)"),
        ({"window": 64}, "window must be two whole numbers"),
        ({"window": (64.5, 64)}, "window must be two whole numbers"),
        ({"window": (64, 64, 64)}, "window must be two whole numbers"),
        ({"window": (64, 64), "stride": (65, 64)}, "stride must not exceed window"),
        ({"window": (64, 64), "stride": (-1, 64)}, "stride must be two whole numbers"),
        ({"stride": (64, 64)}, "needs a window"),
    ],
)
def test_protocols_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        InferenceProtocol(**options)


def test_a_protocol_is_a_frozen_value():
    protocol = InferenceProtocol(scales=[1, np.float32(1.5)], flip=np.bool_(True), window=[np.int64(9), 8])
    assert protocol == InferenceProtocol((1.0, 1.5), True, (9, 8)) and hash(protocol)
    with pytest.raises(dataclasses.FrozenInstanceError):
        protocol.flip = False
    assert dataclasses.replace(protocol, window=(4, 4), stride=(4, 4)).window == (4, 4)


def test_windows_of_a_protocol(packaged):
    model, _ = packaged
    assert InferenceProtocol().sliding_window(model) == model.config.sliding_window()
    assert InferenceProtocol(window=(9, 1)).sliding_window(model) == SlidingWindow(
        (9, 1), (6, 1), model.config.window_batch_size
    )


def test_blended_windows(packaged):
    model, processor = packaged
    own = model.config.sliding_window()
    protocol = InferenceProtocol(blend="cosine", margin=4)
    assert protocol.sliding_window(model) == dataclasses.replace(own, blend="cosine", margin=4)
    image = scene(5, (150, 230))
    mean, blended = (image_scores(model, processor, image, one) for one in (InferenceProtocol(), protocol))
    assert not torch.equal(mean, blended) and (mean.argmax(0) == blended.argmax(0)).float().mean() > 0.9
    assert torch.equal(segment_image(model, processor, image, protocol), blended.argmax(0))
    (seen,) = SegmentationPipeline(packaged_model_path(), blend="cosine", margin=4, optimize=False)([image])
    for segment in seen:
        mask = blended.argmax(0).numpy() == model.config.label2id[segment["label"]]
        assert np.array_equal(np.asarray(segment["mask"]) > 0, mask)
    whole = copy.deepcopy(model)
    whole.config.inference_mode = "whole"
    with pytest.raises(ValueError, match="blend and margin need windows, but the model runs whole images"):
        segment_image(whole, processor, image, protocol)


def test_files_are_turned_as_their_exif_data_say(packaged, tmp_path):
    model, processor = packaged
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held upright
    image = scene(7, (64, 96))
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    upright = image.transpose(Image.Transpose.ROTATE_270)
    for protocol in (InferenceProtocol(), InferenceProtocol(scales=[0.75], flip=True)):
        for name, same in (("plain", image), ("turned", upright), ("deep", image.convert("L"))):
            expected = segment_image(model, processor, same, protocol)
            for path in (tmp_path / f"{name}.png", str(tmp_path / f"{name}.png")):
                assert torch.equal(segment_image(model, processor, path, protocol), expected)
                assert image_size(path) == (same.height, same.width)
                assert torch.equal(image_scores(model, processor, path, protocol).argmax(0), expected)
                views, wanted = image_views(processor, path, protocol), image_views(processor, same, protocol)
                assert all(torch.equal(a.pixel_values, b.pixel_values) for a, b in zip(views, wanted, strict=True))
    with pytest.raises(ValueError, match="neither a file"):
        segment_image(model, processor, "nothing here.png")


@pytest.mark.parametrize("optimized", [False, True])
def test_many_threads_share_a_model(packaged, tmp_path, optimized):
    """Every thread gets the labels of a single thread, and neither the config nor the processor changes."""
    model, processor = packaged
    model = optimize_for_inference(model) if optimized else model
    before, settings = model.config.to_dict(), processor.to_dict()
    image = scene(9, (100, 140))
    image.save(tmp_path / "image.png")
    protocols = [
        InferenceProtocol(),
        InferenceProtocol(window=(64, 96)),
        InferenceProtocol(window=(48, 48), stride=(40, 40), flip=True),
        InferenceProtocol(scales=[0.75, 1.25]),
        InferenceProtocol(scales=[0.5], flip=True),
        InferenceProtocol.multi_scale(processor),
        InferenceProtocol(window=(200, 200)),
        InferenceProtocol(scales=[1.5], window=(64, 64)),
    ]
    expected = [segment_image(model, processor, image, protocol) for protocol in protocols]
    assert len({labels.numpy().tobytes() for labels in expected}) == len(protocols)
    start = threading.Barrier(len(protocols))

    def run(index: int) -> list[torch.Tensor]:
        start.wait()
        return [segment_image(model, processor, given, protocols[index]) for given in (image, tmp_path / "image.png")]

    with ThreadPoolExecutor(len(protocols)) as pool:
        found = list(pool.map(run, range(len(protocols))))
    for labels, of_thread in zip(expected, found, strict=True):
        assert all(torch.equal(labels, other) for other in of_thread)
    assert model.config.to_dict() == before and processor.to_dict() == settings


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda image: [image, image], "image must be one image, got 2: pass them one by one"),
        (lambda image: np.stack([np.asarray(image)] * 2), "image must be one image, got 2"),
        (lambda image: image.tobytes(), "image must be a path, a PIL image, an array or a tensor, got bytes"),
        (lambda image: None, "image must be a path, .* got NoneType"),
    ],
)
def test_anything_but_one_image_is_refused(packaged, make, message):
    """The label map of the first of two images would be returned as that of both."""
    with pytest.raises((TypeError, ValueError), match=message):
        segment_image(*packaged, make(scene(0, (64, 64))))


def test_one_image_in_any_form(packaged, tmp_path):
    image = scene(0, (64, 96))
    image.save(tmp_path / "image.png")
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    expected = segment_image(*packaged, image)
    for form in ([image], [tmp_path / "image.png"], tensor[None], tensor.float().requires_grad_()):
        assert torch.equal(segment_image(*packaged, form), expected)


def test_training_mode_is_refused(packaged):
    model, processor = packaged
    model.train()
    try:
        with pytest.raises(ValueError, match="eval"):
            segment_image(model, processor, scene(1, (64, 64)))
    finally:
        model.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_published_row_has_its_multi_scale_protocol(family):
    """The protocol is that of the authors' config for several scales, or of their test.py without such a config."""
    for name, row in published_rows(family).items():
        if row["test_pipeline"] is None:  # DINOv3 has no config of mmseg: see test_dino_protocols.py
            continue
        processor = read_test_pipeline(row["test_pipeline"], False, multi_scale_pipeline=row["multi_scale_pipeline"])
        protocol = processor.multi_scale
        pipeline = row["multi_scale_pipeline"] or row["test_pipeline"]
        steps = pipeline[-1].get("transforms", pipeline)  # those of MMSegmentation 1.x are not nested
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
    assert InferenceProtocol.multi_scale(loaded) == InferenceProtocol(scales=(1.0, 2.0), flip=True)


def test_other_models_of_transformers():
    """Their logits are smaller than the image, and their processors have no settings for scales."""
    config = SegformerConfig(depths=[1] * 4, hidden_sizes=[8, 16, 24, 32], decoder_hidden_size=16, num_labels=3)
    model, processor = SegformerForSemanticSegmentation(config).eval(), SegformerImageProcessor(size=64)
    image = scene(6, (80, 120))
    labels = segment_image(model, processor, image)
    (expected,) = processor.post_process_semantic_segmentation(
        model(**processor(image, return_tensors="pt")), target_sizes=[(80, 120)]
    )
    assert torch.equal(labels, expected)
    with pytest.raises(ValueError, match="no sliding window"):
        segment_image(model, processor, image, InferenceProtocol(window=(32, 32)))
    with pytest.raises(ValueError, match="several scales"):
        segment_image(model, processor, image, InferenceProtocol(scales=[1.0]))
    other = SegformerForImageClassification(config).eval()
    with pytest.raises(ValueError, match="SegformerForImageClassification returns no logits of pixels"):
        segment_image(other, processor, image)
