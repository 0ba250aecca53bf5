# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The test-time protocols of DINOv2's and DINOv3's segmentors, from an 8-bit image to class indices."""

import json

import pytest
import torch
from reference_cases import FOLDER, ReferenceCase, fill, relative_error
from safetensors.torch import load_file

from segtransformers import SegmentationImageProcessor, SegmentationImageProcessorPil
from segtransformers.conversion import convert_checkpoint, dinov3
from segtransformers.conversion.protocol import read_test_pipeline
from segtransformers.inference import InferenceProtocol, image_scores, segment_image
from segtransformers.inference.views import image_views, view_sizes
from segtransformers.models.layers.sliding_windows import SlidingWindow, slide

PROTOCOLS = {
    (family, case["name"]): case
    for family in ("dinov2", "dinov3")
    for case in json.loads((FOLDER / f"{family}_segmentors" / "inference_protocol.json").read_text())["cases"]
}


@pytest.fixture(scope="module")
def recorded():
    return {
        family: load_file(FOLDER / f"{family}_segmentors" / "tiny-inference-protocol" / "outputs.safetensors")
        for family in ("dinov2", "dinov3")
    }


def processor_of(key) -> SegmentationImageProcessor:
    family, name = key
    case = PROTOCOLS[key]
    if family == "dinov3":
        processor = dinov3.read_processor({"decoder_type": "linear" if name == "linear" else "m2f"}, False)
        processor.size = {"shortest_edge": case["img_size"]}
        processor.multi_scale = {**processor.multi_scale, "scales": case["tta_ratios"]}
        return processor
    augmentation = {name: case[name] for name in ("img_scale", "img_ratios", "flip")}
    steps = [{"type": "MultiScaleFlipAug", **augmentation, "transforms": case["transforms"]}]
    return read_test_pipeline([{"type": "LoadImageFromFile"}, *steps], reduce_labels=False)


def model_of(key):
    case = PROTOCOLS[key]
    weights = ReferenceCase(f"{key[0]}_segmentors/{case['weights'].split('manifest of ')[1].split(',')[0].split()[0]}")
    derived = weights.manifest.get("derived", ())
    entries = [entry for entry in weights.manifest["state_dict"] if entry[0] not in derived]
    window = case.get("test_cfg") or {"mode": "slide", "crop_size": case["crop_size"], "stride": case["stride"]}
    model = convert_checkpoint(fill.state_dict(entries, torch.float64), {**weights.config, "test_cfg": window})
    return model.eval()


def in_recorded_order(key, views):
    """DINOv3 mirrors after all scales, MMSegmentation after each."""
    if key[0] == "dinov2":
        return views
    return [*(view for view in views if not view.flipped), *(view for view in views if view.flipped)]


@pytest.mark.parametrize("key", PROTOCOLS)
def test_network_inputs_equal_the_original(recorded, key):
    case, processor = PROTOCOLS[key], processor_of(key)
    image = recorded[key[0]][f"{key[1]}.image"].numpy()
    protocol = InferenceProtocol.multi_scale(processor)
    assert protocol.flip == case["flip"]
    assert list(protocol.scales) == case.get("img_ratios", case.get("tta_ratios"))
    views = in_recorded_order(key, image_views(processor, image, protocol))
    assert len(views) == len(case["augmentations"])
    for augmentation, view in zip(case["augmentations"], views, strict=True):
        assert list(view.pixel_values.shape) == augmentation["shape"] and view.flipped == augmentation["flip"]
        name = f"{key[1]}.input.{augmentation['index']}"
        if name in recorded[key[0]]:
            expected = recorded[key[0]][name]
            torch.testing.assert_close(view.pixel_values[:, :, ::4, ::4], expected, rtol=1e-5, atol=1e-6)
    sizes = [augmentation["shape"][2:] for augmentation in case["augmentations"] if not augmentation["flip"]]
    assert [list(size) for size in view_sizes(processor, image.shape[:2], protocol)] == sizes


@pytest.mark.parametrize("key", PROTOCOLS)
def test_predictions_equal_the_original(recorded, key):
    outputs, name = recorded[key[0]], key[1]
    model, processor = model_of(key), processor_of(key)
    image, stride = outputs[f"{name}.image"].numpy(), PROTOCOLS[key]["stride_of_maps"]
    protocol = InferenceProtocol.multi_scale(processor)
    view = image_views(processor, image, protocol)[0]
    with torch.no_grad():
        logits = model(view.pixel_values.double()).logits
    bound = 1e-5 if "m2f" in name else 1e-6  # reference points and sine encodings are float32 in the original
    assert relative_error(logits[:, :, ::stride, ::stride], outputs[f"{name}.logits_0"]) < bound
    scores = image_scores(model, processor, image, protocol)
    expected = outputs[f"{name}.probabilities"]
    assert relative_error(scores[None, :, ::stride, ::stride], expected.view(1, *expected.shape[-3:])) < bound
    assert torch.equal(segment_image(model, processor, image, protocol), outputs[f"{name}.prediction"].long())


def test_both_backends_resize_as_pillow(recorded):
    image = recorded["dinov3"]["m2f.image"].numpy()
    options = {"size": {"shortest_edge": 32}, "size_divisor": 0, "resize_method": "pillow"}
    one = SegmentationImageProcessor(**options)(image, return_tensors="pt")["pixel_values"]
    other = SegmentationImageProcessorPil(**options)(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(one, other)
    # an image of floating-point numbers is not rounded to whole grey levels
    exact = SegmentationImageProcessor(**options)(image.astype("float32"), return_tensors="pt")["pixel_values"]
    assert 0 < (exact - one).abs().max() < 2 / 255 / 0.22
    sharp = SegmentationImageProcessor(**{**options, "resize_method": "opencv"})(image, return_tensors="pt")
    assert (sharp["pixel_values"] - one).abs().max() > 0.2
    with pytest.raises(ValueError, match="resize_method must be one of opencv, pillow, got 'bicubic'"):
        SegmentationImageProcessor(resize_method="bicubic")


def test_small_images_are_run_in_squares():
    images, seen = torch.randn(1, 3, 40, 90), []

    def forward(windows):
        seen.append(tuple(windows.shape[2:]))
        return windows

    window = SlidingWindow((96, 96), (64, 64), square_if_smaller=True)
    assert not window.covers((40, 90)) and window.covers((40, 40))
    assert SlidingWindow((96, 96), (64, 64)).covers((40, 90))
    torch.testing.assert_close(slide(forward, images, window), images)
    assert seen == [(40, 40)] * 3
    seen.clear()
    slide(forward, torch.randn(1, 3, 40, 100), window)  # only one side is smaller
    assert seen == [(40, 96)] * 2
