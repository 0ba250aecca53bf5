# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The published single-scale protocol from image to label map; images and label maps of every kind."""

import base64
import io
import json
import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub.utils import httpx
from PIL import ExifTags, Image
from reference_cases import FOLDER, ReferenceCase, relative_error
from safetensors.torch import load_file
from transformers import AutoImageProcessor

from segtransformers import SegmentationImageProcessor, SegmentationImageProcessorPil
from segtransformers.conversion import ConversionError, convert_checkpoint
from segtransformers.conversion.protocol import read_test_cfg, read_test_pipeline
from segtransformers.image_processing import keep_ratio_size, load_image, resize_labels, resized_labels

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
def test_pixel_values_equal_the_original(recorded, name, processor_class):
    image = recorded[f"{name}.image"].numpy()
    pixel_values = processor_of(SINGLE_SCALE[name], processor_class)(image, return_tensors="pt")["pixel_values"]
    assert list(pixel_values.shape) == SINGLE_SCALE[name]["augmentations"][0]["shape"]
    # the original multiplies by the reciprocal of the deviation, which rounds once more
    torch.testing.assert_close(pixel_values[:, :, ::2, ::2], recorded[f"{name}.input.0"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", SINGLE_SCALE)
def test_label_map_equals_the_original(recorded, name):
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


def test_sizes_are_rounded_as_in_mmcv():
    assert keep_ratio_size(75, 118, 96, 256) == (96, 151)
    assert keep_ratio_size(50, 81, 96, 256) == (96, 156)  # 155.52
    assert keep_ratio_size(683, 512, 512, 2048) == (683, 512)
    assert keep_ratio_size(100, 1000, 512, 2048) == (205, 2048)


@pytest.mark.parametrize("size", [(37, 61), (64, 96), (10, 7), (1, 1), (200, 300)])
def test_label_maps_are_resized_to_the_nearest_neighbours(size):
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


def label_maps_of_wide_integers() -> dict[str, object]:
    """One label map of the ids 0 to 599 in every type that can hold them."""
    ids = np.arange(600).reshape(20, 30)
    names = ("uint16", ">u2", "int16", "uint32", "int32", ">i4", "int64", "uint64")
    arrays = {name: ids.astype(name) for name in names}
    tensors = {
        f"torch {name}": torch.from_numpy(ids.astype(name)) for name in ("uint16", "uint32", "int16", "int32", "int64")
    }
    images = {
        "I;16": Image.fromarray(ids.astype(np.uint16)),
        "I;16B": Image.frombytes("I;16B", (30, 20), ids.astype(">u2").tobytes()),
        "I": Image.fromarray(ids.astype(np.int32)),
    }
    return arrays | tensors | images


@pytest.mark.parametrize("processor_class", BACKENDS)
@pytest.mark.parametrize("kind", label_maps_of_wide_integers())
def test_label_maps_of_wide_integers(kind, processor_class):
    label_map = label_maps_of_wide_integers()[kind]
    if kind.startswith("I"):
        assert label_map.mode == kind
    image, expected = Image.new("RGB", (30, 20)), np.arange(600).reshape(20, 30)
    for given in (label_map, [label_map]):
        labels = processor_class(do_resize=False)(image, segmentation_maps=given, return_tensors="pt")["labels"]
        assert labels.dtype == torch.int64 and np.array_equal(labels[0].numpy(), expected)
    doubled = processor_class(size={"height": 40, "width": 60})(image, segmentation_maps=label_map)["labels"][0]
    assert np.array_equal(np.asarray(doubled), expected.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize("processor_class", BACKENDS)
def test_label_maps_of_16_bits_are_read_from_png(processor_class, tmp_path):
    label_map = np.arange(600, dtype=np.uint16).reshape(20, 30)
    Image.fromarray(label_map).save(tmp_path / "labels.png")
    image = Image.new("RGB", (30, 20))
    with Image.open(tmp_path / "labels.png") as opened:
        labels = processor_class(do_resize=False)(image, segmentation_maps=opened, return_tensors="pt")["labels"]
    assert np.array_equal(labels[0].numpy(), label_map)


@pytest.mark.parametrize("processor_class", BACKENDS)
def test_reduced_labels_above_255(processor_class):
    """Label 255 means "no class" before and after the reduction, so label 256 must not become 255."""
    processor = processor_class(do_resize=False, do_reduce_labels=True)
    image, label_map = Image.new("RGB", (40, 32)), np.zeros((32, 40), np.uint16)
    label_map[:, :10], label_map[:, 10:20], label_map[:, 20:30] = 255, 254, 257
    labels = processor(image, segmentation_maps=label_map, return_tensors="pt")["labels"]
    assert labels[0, 0, ::10].tolist() == [255, 253, 256, 255]
    label_map[:, :10] = 256
    with pytest.raises(ValueError, match="turn label 256 of a segmentation map into 255"):
        processor(image, segmentation_maps=label_map)
    kept = processor(image, segmentation_maps=label_map, do_reduce_labels=False, return_tensors="pt")["labels"]
    assert kept[0, 0, ::10].tolist() == [256, 254, 257, 0]


@pytest.mark.parametrize("processor_class", BACKENDS)
@pytest.mark.parametrize(
    ("label_maps", "message"),
    [
        (np.zeros((60, 91), np.uint8), r"\(1, 60, 90\), got \(1, 60, 91\)"),
        (Image.new("RGB", (90, 60)), r"one class index for each pixel .*got \(3, 60, 90\)"),
        ([np.zeros((60, 90), np.uint8)] * 2, "1 images but 2 segmentation_maps"),
        (np.full((60, 90), -1), "whole numbers from 0 on, got -1"),
        (torch.full((60, 90), -1, dtype=torch.int16), "whole numbers from 0 on, got -1"),
        (np.full((60, 90), 0.6), "whole numbers from 0 on, got float64: convert it to integers"),
        (np.zeros((60, 90), np.float16), "whole numbers from 0 on, got float16"),
        (torch.zeros(60, 90), "whole numbers from 0 on, got torch.float32"),
        (Image.new("F", (90, 60)), "whole numbers from 0 on, got float32"),
        (np.zeros((60, 90), complex), "whole numbers from 0 on, got complex128"),
    ],
)
def test_wrong_label_maps_are_refused(label_maps, message, processor_class):
    with pytest.raises(ValueError, match=message):
        processor_class()(Image.new("RGB", (90, 60)), segmentation_maps=label_maps, return_tensors="pt")


def images_of_every_kind() -> dict[str, object]:
    """One image in every mode: the upper half is bright, the lower half dark."""
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
        "I;16B": Image.frombytes("I;16B", (90, 60), (grey.astype(">u2") * 257).tobytes()),
        "I": Image.fromarray(grey.astype(np.int32) * 257),
        "numpy": np.dstack([grey] * 3),
        "numpy grey": grey,
        "numpy 16": np.dstack([grey.astype(np.uint16) * 257] * 3),
        "numpy big-endian 16": np.dstack([grey.astype(">u2") * 257] * 3),
        "numpy grey 16": grey.astype(np.uint16) * 257,
        "numpy alpha": opaque,
        "torch": torch.from_numpy(np.dstack([grey] * 3)).permute(2, 0, 1),
        "torch 16": torch.from_numpy(np.dstack([grey.astype(np.uint16) * 257] * 3)).permute(2, 0, 1),
    }


@pytest.mark.parametrize("processor_class", BACKENDS)
@pytest.mark.parametrize("kind", images_of_every_kind())
def test_images_of_every_kind(kind, processor_class):
    options = {"size": {"shortest_edge": 64, "longest_edge": 256}, "do_normalize": False, "do_rescale": False}
    pixel_values = processor_class(**options)(images_of_every_kind()[kind], return_tensors="pt")["pixel_values"]
    assert pixel_values.shape == (1, 3, 64, 96)
    bright, dark = pixel_values[:, :, :20].unique(), pixel_values[:, :, 44:].unique()
    if kind == "1":
        assert (bright, dark) == (255, 0)
    else:
        assert abs(bright - 204).max() <= 1 and abs(dark - 51).max() <= 1


@pytest.mark.parametrize("processor_class", BACKENDS)
@pytest.mark.parametrize("do_resize", [True, False])
def test_floats_in_0_to_1_are_not_divided_twice(processor_class, do_resize):
    """Arrays of floating-point numbers in 0..1 or 0..255 give what 8 bits give, up to the rounding of the resize."""
    grey = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    processor = processor_class(size={"shortest_edge": 64, "longest_edge": 256}, do_resize=do_resize)
    expected = processor(grey, return_tensors="pt")["pixel_values"]
    for image in (grey / 255, grey.astype(np.float32), torch.from_numpy(grey / 255).permute(2, 0, 1)):
        pixel_values = processor(image, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(pixel_values, expected, rtol=0, atol=0.05 if do_resize else 1e-4)
    integers = processor(grey.astype(np.int64) * 257, return_tensors="pt")["pixel_values"]
    assert torch.equal(integers, expected)
    for wrong, message in ((np.nan, "NaN"), (np.inf, "NaN or infinity"), (300.0, "0..1 or 0..255"), (-2.0, "0..255")):
        with pytest.raises(ValueError, match=message):
            processor(np.where(np.arange(50)[:, None] == 3, wrong, grey / 255), return_tensors="pt")


@pytest.mark.parametrize("processor_class", BACKENDS)
@pytest.mark.parametrize("height", [1, 4])
def test_one_or_four_rows_are_not_channels(height, processor_class):
    rows = np.random.default_rng(0).integers(0, 256, (height, 40, 3), dtype=np.uint8)
    processor = processor_class(do_resize=False)
    expected = processor(Image.fromarray(rows), return_tensors="pt")["pixel_values"]
    for image in (rows, torch.from_numpy(rows)):
        assert torch.equal(processor(image, return_tensors="pt")["pixel_values"], expected)


@pytest.mark.parametrize("processor_class", BACKENDS)
def test_transparency_is_dropped(processor_class):
    values = np.full((40, 50, 4), 200, np.uint8)
    values[..., 3] = np.linspace(0, 255, 50)
    processor = processor_class(do_resize=False, do_rescale=False, do_normalize=False)
    for image in (values, Image.fromarray(values), values.transpose(2, 0, 1), [[values]]):
        pixel_values = processor(image, return_tensors="pt")["pixel_values"]
        assert pixel_values.shape == (1, 3, 40, 50) and pixel_values.unique().tolist() == [200]


def test_integer_images_keep_their_brightness():
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
        (Image.new("RGB", (40, 40)), {"size_divisor": -3}, "from 0 to 4096, got -3"),
    ],
)
def test_unsupported_images_and_options_are_refused(image, options, message):
    with pytest.raises(ValueError, match=message):
        SegmentationImageProcessor()(image, return_tensors="pt", **options)


@pytest.mark.parametrize("processor_class", BACKENDS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size_divisor": "a"}, "size_divisor must be a whole number from 0 to 4096, got 'a'"),
        ({"size": {"shortest_edge": 0}}, "shortest_edge"),
        ({"size": {"height": 10**9, "width": 32}}, "height"),
        ({"size": (10**9, 10**9)}, "height"),
        ({"image_std": [0, 1, 1]}, "image_std must be positive numbers"),
        ({"image_std": "abc"}, "image_std must be one number for each channel"),
        ({"image_mean": [0.5]}, "image_mean must be 3 numbers"),
        ({"image_mean": [math.nan] * 3}, "image_mean must be finite numbers"),
        ({"rescale_factor": "x"}, "rescale_factor must be a positive number"),
        ({"rescale_factor": 0}, "rescale_factor must be a positive number"),
        ({"do_resize": "yes"}, "do_resize must be True or False"),
        ({"multi_scale": 5}, "multi_scale must be a dict"),
        ({"multi_scale": {"scales": [1]}}, "multi_scale must be a dict"),
        ({"multi_scale": {**SegmentationImageProcessor.multi_scale, "scales": [1e5]}}, "scales must be positive"),
        ({"multi_scale": {**SegmentationImageProcessor.multi_scale, "scales": [1] * 33}}, "at most 32"),
        ({"multi_scale": {**SegmentationImageProcessor.multi_scale, "flip": 1}}, "flip of multi_scale"),
        ({"multi_scale": {**SegmentationImageProcessor.multi_scale, "pad_shortest_edge": 10**9}}, "pad_shortest_edge"),
    ],
)
def test_nonsense_is_refused_before_it_is_saved(options, message, processor_class):
    with pytest.raises(ValueError, match=message):
        processor_class(**options)
    saved = {**SegmentationImageProcessor().to_dict(), **options}
    with pytest.raises(ValueError, match=message):
        processor_class.from_dict(saved)


def test_images_are_not_enlarged_beyond_the_memory():
    image = np.zeros((32, 40, 3), np.uint8)
    for options in ({"size": {"shortest_edge": 60000}}, {"size": {"height": 60000, "width": 60000}}):
        with pytest.raises(ValueError, match="more than 67 million"):
            SegmentationImageProcessor(**options)(image)
    thin = np.zeros((1, 3000, 3), np.uint8)  # 512 x 1,536,000 without a limit on the long side
    with pytest.raises(ValueError, match="more than 67 million"):
        SegmentationImageProcessor(size={"shortest_edge": 512})(thin)


def test_files_of_16_bits_are_scaled_to_8(tmp_path):
    """transformers' load_image would clip them to white."""
    grey = np.tile(np.arange(0, 250, 5, dtype=np.uint8), (40, 1))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    deep.save(tmp_path / "deep.png")
    encoded = base64.b64encode((tmp_path / "deep.png").read_bytes()).decode()
    processor = SegmentationImageProcessor(do_resize=False, do_rescale=False, do_normalize=False)
    for source in (str(tmp_path / "deep.png"), encoded, f"data:image/png;base64,{encoded}"):
        assert np.array_equal(load_image(source), np.dstack([grey] * 3))
        for given in (source, [source], [[source]]):
            assert np.array_equal(processor(given)["pixel_values"][0][1], grey)
    assert np.array_equal(load_image(deep), load_image(tmp_path / "deep.png"))
    with pytest.raises(ValueError, match=r"neither a file, nor an address, nor an image in base64"):
        processor(str(tmp_path / "missing.png"))
    with pytest.raises(TypeError, match="got ndarray"):
        load_image(grey)


def test_addresses_are_downloaded_and_images_turned_upright(monkeypatch):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # rotate clockwise
    upright, file = np.arange(6 * 9 * 3, dtype=np.uint8).reshape(6, 9, 3), io.BytesIO()
    Image.fromarray(np.rot90(upright)).save(file, "PNG", exif=exif)
    requests = []

    def get(address, **options):
        requests.append((address, options))
        response = httpx.Response(200 if "there" in address else 404, content=file.getvalue())
        response.request = httpx.Request("GET", address)
        return response

    monkeypatch.setattr(httpx, "get", get)
    assert np.array_equal(load_image("https://example.com/there.png", timeout=3), upright)
    assert requests == [("https://example.com/there.png", {"timeout": 3, "follow_redirects": True})]
    with pytest.raises(httpx.HTTPStatusError, match="404"):
        load_image("https://example.com/gone.png")


@pytest.mark.parametrize("size", [(1, 500), (500, 1), (1, 1), (3000, 2)])
def test_thin_images_become_at_least_32_pixels_wide(size):
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
    with pytest.raises(ValueError, match="from 0 to 4096, got -1"):
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
def test_argmax_in_bands_equals_argmax_of_the_whole(size, band_bytes, monkeypatch):
    monkeypatch.setattr("segtransformers.image_processing.label_maps.BAND_BYTES", band_bytes)
    logits = torch.randn(7, 64, 96)
    whole = torch.nn.functional.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
    result = resized_labels(logits, size)
    for y, x in (result != whole.argmax(0)).nonzero().tolist():  # rounding decides ties
        top = whole[:, y, x].topk(2).values
        assert (top[0] - top[1]).abs() < 1e-5
    assert (result != whole.argmax(0)).float().mean() < 1e-3


def test_post_processing_sizes():
    processor = SegmentationImageProcessor()
    outputs = SimpleNamespace(logits=torch.randn(2, 5, 16, 24))
    label_maps = processor.post_process_semantic_segmentation(outputs)
    assert torch.equal(torch.stack(label_maps), outputs.logits.argmax(1))
    for sizes in ([(30, 40), (7, 9)], torch.tensor([[30, 40], [7, 9]]), [[(30, 40)], [(7, 9)]]):
        label_maps = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
        assert [tuple(label_map.shape) for label_map in label_maps] == [(30, 40), (7, 9)]
    with pytest.raises(ValueError, match="got 1 target_sizes for 2 images"):
        processor.post_process_semantic_segmentation(outputs, target_sizes=[(30, 40)])
    for wrong in ([(0, 4), (3, 4)], (5, 6), [(1, 2, 3)] * 2):
        with pytest.raises(ValueError, match=r"must hold \(height, width\)"):
            processor.post_process_semantic_segmentation(outputs, target_sizes=wrong)
    (first, _) = processor.post_process_semantic_segmentation(outputs, [(30, 40)] * 2, return_segmentation_scores=True)
    assert first.segmentation_scores.shape == (5, 30, 40)
    assert torch.equal(first.segmentation, first.segmentation_scores.argmax(0))


def test_only_semantic_post_processing_is_offered():
    names = [name for name in dir(SegmentationImageProcessor) if "panoptic" in name or "instance" in name]
    assert [name for name in names if name.startswith("post_process")] == []


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        ([{"type": "Solarize"}], "an unknown step 'Solarize'"),
        ([{"type": "Resize"}], "img_scale is None"),
        ([{"type": "Normalize", "mean": [0, 0, 0], "std": [1, 1, 1], "to_rgb": False}], "to_rgb is False"),
        ([{"type": "ResizeToMultiple", "interpolation": "area"}], "unknown settings: interpolation"),
        ("Resize", "is not a list of steps"),
    ],
)
def test_test_pipelines_that_are_not_understood(pipeline, message):
    with pytest.raises(ConversionError, match=message):
        read_test_pipeline(pipeline, reduce_labels=False)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"type": "Normalize", "mean": [1, 1, 1], "std": "abc", "to_rgb": True}, "std of the normalization must be"),
        ({"type": "Normalize", "mean": [1.0], "std": [1.0], "to_rgb": True}, "mean of the normalization must be three"),
        ({"type": "Normalize", "mean": [1, 1, 1], "std": [0, 1, 1], "to_rgb": True}, "image_std must be positive"),
        ({"type": "SETR_Resize", "crop_size": -5, "setr_multi_scale": True, "scale": [64, 64]}, "crop_size"),
        ({"type": "MultiScaleFlipAug", "img_ratios": 5}, "scales must be positive numbers"),
        ({"type": "MultiScaleFlipAug", "img_ratios": [1e9]}, "scales must be positive numbers"),
        ({"type": "PadShortSide", "size": 10**9, "pad_val": 0}, "pad_shortest_edge"),
        ({"type": "ResizeToMultiple", "size_divisor": "a"}, "size_divisor"),
        ({"type": "Resize", "scale": [0, 512]}, "shortest_edge"),
    ],
)
def test_test_pipelines_of_nonsense(step, message):
    with pytest.raises(ConversionError, match=message):
        read_test_pipeline([step], reduce_labels=False)


def test_without_normalisation_pixel_values_are_grey_levels():
    pixel_values = read_test_pipeline([{"type": "Collect"}], False)(Image.new("L", (40, 40), 200))["pixel_values"][0]
    assert pixel_values.dtype == torch.float32 and pixel_values.unique().tolist() == [200]


def test_protocols():
    assert read_test_cfg(None) == {"inference_mode": "whole"}
    fixed = [
        {"type": "MultiScaleFlipAug", "img_scale": [(64, 48)], "transforms": [{"type": "Resize", "keep_ratio": False}]}
    ]
    assert dict(read_test_pipeline(fixed, False).size) == {"height": 48, "width": 64}


@pytest.mark.slow
def test_large_images_need_little_memory():
    """At once, the resized logits of 12 megapixels in 150 classes would take 7 GiB."""
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
