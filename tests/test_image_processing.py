# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The published single-scale protocol from image to label map, and images of every kind."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from reference_cases import FOLDER, ReferenceCase, relative_error
from safetensors.torch import load_file
from transformers import AutoImageProcessor

from segtransformers import SegmentationImageProcessor, SegmentationImageProcessorPil
from segtransformers.conversion import ConversionError, convert_checkpoint
from segtransformers.conversion.protocol import read_test_cfg, read_test_pipeline
from segtransformers.image_processing import argmax_resized, keep_ratio_size, resize_labels

PROTOCOL = json.loads((FOLDER / "vit_adapter" / "inference_protocol.json").read_text())
SINGLE_SCALE = {case["name"]: case for case in PROTOCOL["cases"] if case["img_ratios"] is None}
BACKENDS = [SegmentationImageProcessor, SegmentationImageProcessorPil]


@pytest.fixture(scope="module")
def recorded():
    return load_file(FOLDER / "vit_adapter" / "tiny-inference-protocol" / "outputs.safetensors")


def processor_of(case, processor_class=SegmentationImageProcessor):
    pipeline = [{"type": "MultiScaleFlipAug", "img_scale": case["img_scale"], "transforms": case["transforms"]}]
    return processor_class.from_dict(read_test_pipeline(pipeline, reduce_labels=False).to_dict())


@pytest.mark.parametrize("processor_class", BACKENDS)
@pytest.mark.parametrize("name", SINGLE_SCALE)
def test_network_input_equals_the_original_bit_by_bit(recorded, name, processor_class):
    image = recorded[f"{name}.image"].numpy()
    pixel_values = processor_of(SINGLE_SCALE[name], processor_class)(image, return_tensors="pt")["pixel_values"]
    assert list(pixel_values.shape) == SINGLE_SCALE[name]["augmentations"][0]["shape"]
    # the original multiplies by the reciprocal of the deviation: one rounding more
    torch.testing.assert_close(pixel_values[:, :, ::2, ::2], recorded[f"{name}.input.0"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", SINGLE_SCALE)
def test_prediction_equals_the_original(recorded, name):
    case, weights = SINGLE_SCALE[name], ReferenceCase("vit_adapter/tiny-vit-upernet")
    model = convert_checkpoint(weights.state_dict(), {**weights.config, "test_cfg": case["test_cfg"]})
    image, stride = recorded[f"{name}.image"].numpy(), case["stride_of_maps"]
    processor = processor_of(case)
    inputs = processor(image, return_tensors="pt")
    predictions = []
    for batch in (1, 5):
        model.config.window_batch_size = batch
        with torch.no_grad():
            outputs = model(inputs["pixel_values"].double())
        assert relative_error(outputs.logits[:, :, ::stride, ::stride], recorded[f"{name}.logits_0"]) < 1e-6
        (prediction,) = processor.post_process_semantic_segmentation(outputs, [image.shape[:2]])
        predictions.append(prediction)
        assert torch.equal(prediction, recorded[f"{name}.prediction"].long())
    assert predictions[0].dtype == torch.int64


def test_sizes_are_rounded_as_mmcv_does_it():
    assert keep_ratio_size(75, 118, 96, 256) == (96, 151)
    assert keep_ratio_size(50, 81, 96, 256) == (96, 156)  # 155.52
    assert keep_ratio_size(683, 512, 512, 2048) == (683, 512)
    assert keep_ratio_size(100, 1000, 512, 2048) == (205, 2048)


@pytest.mark.parametrize("size", [(37, 61), (64, 96), (10, 7), (1, 1), (200, 300)])
def test_label_maps_are_resized_to_the_nearest(size):
    labels = torch.randint(150, (1, 61, 93))
    expected = torch.nn.functional.interpolate(labels[None].double(), size=size, mode="nearest")[0].long()
    assert torch.equal(resize_labels(labels, size), expected)


@pytest.mark.parametrize("processor_class", BACKENDS)
def test_label_maps(processor_class):
    processor = processor_class(size={"shortest_edge": 64, "longest_edge": 256}, do_reduce_labels=True)
    image = Image.new("RGB", (90, 60))
    values = np.zeros((60, 90), np.uint8)
    values[:20], values[20:40], values[40:] = 0, 7, 255
    for labels in (values, Image.fromarray(values), torch.from_numpy(values)):
        inputs = processor(image, segmentation_maps=labels, return_tensors="pt")
        assert (
            inputs["labels"].shape == (1, *inputs["pixel_values"].shape[2:]) and inputs["labels"].dtype == torch.int64
        )
        assert inputs["labels"].unique().tolist() == [6, 255]
    palette = Image.fromarray(values, mode="P")
    palette.putpalette([value for index in range(256) for value in (index, 0, 255 - index)])
    assert processor(image, segmentation_maps=palette, return_tensors="pt")["labels"].unique().tolist() == [6, 255]
    kept = processor(image, segmentation_maps=values, do_reduce_labels=False, return_tensors="pt")["labels"]
    assert kept.unique().tolist() == [0, 7, 255]


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (np.zeros((60, 91), np.uint8), r"\(1, 60, 90\), got \(1, 60, 91\)"),
        (Image.new("RGB", (90, 60)), r"one class index for each pixel .*got \(3, 60, 90\)"),
        ([np.zeros((60, 90), np.uint8)] * 2, "1 images but 2 segmentation_maps"),
        (np.full((60, 90), -1), "whole numbers from 0 on"),
        (np.full((60, 90), 0.6), "whole numbers from 0 on"),
    ],
)
def test_label_maps_that_do_not_fit_are_refused(maps, message):
    with pytest.raises(ValueError, match=message):
        SegmentationImageProcessor()(Image.new("RGB", (90, 60)), segmentation_maps=maps, return_tensors="pt")


def pictures() -> dict[str, object]:
    """One picture in every mode: the upper half bright, the lower half dark."""
    grey = np.full((60, 90), 51, np.uint8)
    grey[:30] = 204
    image = Image.fromarray(grey)
    opaque = np.dstack([grey, grey, grey, np.full_like(grey, 255)])
    return {
        "L": image,
        "RGB": image.convert("RGB"),
        "RGBA": Image.fromarray(opaque),
        "LA": image.convert("LA"),
        "P": image.convert("P"),
        "CMYK": image.convert("CMYK"),
        "1": image.convert("L").point(lambda value: 255 * (value > 100)).convert("1"),
        "I;16": Image.fromarray(grey.astype(np.uint16) * 257),
        "I": Image.fromarray(grey.astype(np.int32) * 257),
        "numpy": np.dstack([grey] * 3),
        "numpy grey": grey,
        "numpy 16": np.dstack([grey.astype(np.uint16) * 257] * 3),
        "numpy alpha": opaque,
        "torch": torch.from_numpy(np.dstack([grey] * 3)).permute(2, 0, 1),
    }


@pytest.mark.parametrize("processor_class", BACKENDS)
@pytest.mark.parametrize("kind", pictures())
def test_pictures_of_every_kind(kind, processor_class):
    options = {"size": {"shortest_edge": 64, "longest_edge": 256}, "do_normalize": False, "do_rescale": False}
    pixel_values = processor_class(**options)(pictures()[kind], return_tensors="pt")["pixel_values"]
    assert pixel_values.shape == (1, 3, 64, 96)
    bright, dark = pixel_values[:, :, :20].unique(), pixel_values[:, :, 44:].unique()
    if kind == "1":
        assert (bright, dark) == (255, 0)
    else:
        assert abs(bright - 204).max() <= 1 and abs(dark - 51).max() <= 1


@pytest.mark.parametrize("processor_class", BACKENDS)
def test_transparency_is_dropped(processor_class):
    values = np.full((40, 50, 4), 200, np.uint8)
    values[..., 3] = np.linspace(0, 255, 50)
    processor = processor_class(do_resize=False, do_rescale=False, do_normalize=False)
    for image in (values, Image.fromarray(values), values.transpose(2, 0, 1), [[values]]):
        pixel_values = processor(image, return_tensors="pt")["pixel_values"]
        assert pixel_values.shape == (1, 3, 40, 50) and pixel_values.unique().tolist() == [200]


def test_integer_pictures_keep_their_brightness():
    processor = SegmentationImageProcessor(do_resize=False, do_rescale=False, do_normalize=False)
    grey = Image.new("L", (40, 40), 200)
    deep = Image.fromarray(np.full((40, 40), 200 * 257, np.uint16))
    for image in (grey, grey.convert("I"), deep, [[deep]], np.asarray(grey), np.asarray(deep)):
        assert processor(image, return_tensors="pt")["pixel_values"].unique().tolist() == [200]
    last = processor(np.asarray(grey), input_data_format="channels_last", return_tensors="pt")["pixel_values"]
    assert last.shape == (1, 3, 40, 40)


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (Image.new("F", (40, 40)), {}, "no known range"),
        (np.zeros((0, 3, 3), np.uint8), {}, "no pixels"),
        (Image.new("RGB", (40, 40)), {"data_format": "channels_last"}, "data_format='channels_last' is not supported"),
        (Image.new("RGB", (40, 40)), {"do_center_crop": True, "crop_size": 32}, "do_center_crop=True is not supported"),
        (Image.new("RGB", (40, 40)), {"resample": 3}, "resample=3 is not supported"),
        (Image.new("RGB", (40, 40)), {"size_divisor": -3}, "must not be negative"),
    ],
)
def test_what_is_not_understood_is_refused(image, options, message):
    with pytest.raises(ValueError, match=message):
        SegmentationImageProcessor()(image, return_tensors="pt", **options)


@pytest.mark.parametrize("size", [(1, 500), (500, 1), (1, 1), (3000, 2)])
def test_thin_pictures_get_a_size_that_models_take(size):
    inputs = SegmentationImageProcessor(size_divisor=0)(Image.new("RGB", size), return_tensors="pt")
    assert min(inputs["pixel_values"].shape[2:]) >= 32


def test_batches():
    processor = SegmentationImageProcessor()
    wide, tall = Image.new("RGB", (90, 60)), Image.new("RGB", (60, 90))
    assert processor([wide, wide], return_tensors="pt")["pixel_values"].shape == (2, 3, 512, 768)
    assert [len(image) for image in processor([wide, tall])["pixel_values"]] == [3, 3]
    with pytest.raises(ValueError, match="2 different sizes after resizing"):
        processor([wide, tall], return_tensors="pt")
    fixed = processor([wide, tall], size={"height": 64, "width": 48}, return_tensors="pt")
    assert fixed["pixel_values"].shape == (2, 3, 64, 48)
    with pytest.raises(ValueError, match="size must hold"):
        processor(wide, size={"longest_edge": 64})
    assert processor(wide, size=64, return_tensors="pt")["pixel_values"].shape == (1, 3, 64, 96)
    assert processor(wide, size_divisor=None, size=50, return_tensors="pt")["pixel_values"].shape == (1, 3, 50, 75)
    assert processor(wide, size_divisor=20, size=8, return_tensors="pt")["pixel_values"].shape == (1, 3, 40, 40)
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        SegmentationImageProcessor(size_divisor=-1)(wide)
    with pytest.raises(ValueError, match="images is empty"):
        processor([], return_tensors="pt")


@pytest.mark.parametrize("processor_class", BACKENDS)
def test_save_and_load(tmp_path, processor_class):
    processor = processor_class(
        size={"shortest_edge": 640, "longest_edge": 2560}, size_divisor=0, image_mean=[0.5] * 3, do_reduce_labels=True
    )
    processor.save_pretrained(tmp_path)
    backend = "pil" if processor_class is SegmentationImageProcessorPil else "torchvision"
    loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
    assert type(loaded) is processor_class
    assert loaded.to_dict() == processor.to_dict()


@pytest.mark.parametrize("size", [(64, 96), (33, 47), (500, 333), (10, 7), (1, 4)])
@pytest.mark.parametrize("band_bytes", [1, 1 << 23])
def test_argmax_in_bands_equals_the_whole(size, band_bytes, monkeypatch):
    monkeypatch.setattr("segtransformers.image_processing.BAND_BYTES", band_bytes)
    logits = torch.randn(7, 64, 96)
    whole = torch.nn.functional.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
    result = argmax_resized(logits, size)
    for y, x in (result != whole.argmax(0)).nonzero().tolist():  # a tie that rounding decides
        top = whole[:, y, x].topk(2).values
        assert (top[0] - top[1]).abs() < 1e-5
    assert (result != whole.argmax(0)).float().mean() < 1e-3


def test_post_processing_sizes():
    processor = SegmentationImageProcessor()
    outputs = SimpleNamespace(logits=torch.randn(2, 5, 16, 24))
    maps = processor.post_process_semantic_segmentation(outputs)
    assert torch.equal(torch.stack(maps), outputs.logits.argmax(1))
    for sizes in ([(30, 40), (7, 9)], torch.tensor([[30, 40], [7, 9]]), [[(30, 40)], [(7, 9)]]):
        maps = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
        assert [tuple(map_.shape) for map_ in maps] == [(30, 40), (7, 9)]
    with pytest.raises(ValueError, match="got 1 target_sizes for 2 images"):
        processor.post_process_semantic_segmentation(outputs, target_sizes=[(30, 40)])
    for wrong in ([(0, 4), (3, 4)], (5, 6), [(1, 2, 3)] * 2):
        with pytest.raises(ValueError, match=r"must hold \(height, width\)"):
            processor.post_process_semantic_segmentation(outputs, target_sizes=wrong)
    (first, _) = processor.post_process_semantic_segmentation(outputs, [(30, 40)] * 2, return_segmentation_scores=True)
    assert first.segmentation_scores.shape == (5, 30, 40)
    assert torch.equal(first.segmentation, first.segmentation_scores.argmax(0))


def test_the_pipeline_finds_semantic_post_processing_only():
    names = [name for name in dir(SegmentationImageProcessor) if "panoptic" in name or "instance" in name]
    assert [name for name in names if name.startswith("post_process")] == []


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        ([{"type": "Solarize"}], "a step 'Solarize' that is not understood"),
        ([{"type": "Resize"}], "img_scale is None"),
        ([{"type": "Normalize", "mean": [0, 0, 0], "std": [1, 1, 1], "to_rgb": False}], "to_rgb is False"),
        ([{"type": "ResizeToMultiple", "interpolation": "area"}], "not understood: interpolation"),
        ("Resize", "is not a list of steps"),
    ],
)
def test_test_pipelines_that_are_not_understood(pipeline, message):
    with pytest.raises(ConversionError, match=message):
        read_test_pipeline(pipeline, reduce_labels=False)


def test_without_a_normalisation_the_network_sees_grey_levels():
    pixel_values = read_test_pipeline([{"type": "Collect"}], False)(Image.new("L", (40, 40), 200))["pixel_values"][0]
    assert pixel_values.dtype == torch.float32 and pixel_values.unique().tolist() == [200]


def test_protocols():
    assert read_test_cfg(None) == {"inference_mode": "whole"}
    fixed = [
        {"type": "MultiScaleFlipAug", "img_scale": [(64, 48)], "transforms": [{"type": "Resize", "keep_ratio": False}]}
    ]
    assert dict(read_test_pipeline(fixed, False).size) == {"height": 48, "width": 64}


@pytest.mark.slow
def test_large_photos_need_little_memory():
    """12 megapixels in 150 classes: 7 GiB of resized logits if they were made at once."""
    code = """
import resource, torch
from types import SimpleNamespace
from segtransformers import SegmentationImageProcessor
processor = SegmentationImageProcessor()
outputs = SimpleNamespace(logits=torch.randn(1, 150, 512, 704))
processor.post_process_semantic_segmentation(outputs, [(64, 64)])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
processor.post_process_semantic_segmentation(outputs, [(3000, 4000)])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 2
