# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Images with any number of bands: the image processor, models from RGB weights, and inference."""

import itertools
import logging

import numpy as np
import PIL.Image
import pytest
import torch
from test_combinations import OURS, THEIRS, UPERNET
from test_segmenter import small_segmenter
from transformers import AutoModelForSemanticSegmentation, SegformerConfig, SegformerForSemanticSegmentation, pipeline

from segtransformers import (
    PlainViTBackbone,
    SegmentationImageProcessor,
    SegmentationImageProcessorPil,
    SegUperNetConfig,
    SegUperNetForSemanticSegmentation,
)
from segtransformers.export.exporting import traced
from segtransformers.inference import InferenceProtocol, SegmentationPipeline, segment_image
from segtransformers.models.input_channels import input_channels, with_input_channels
from segtransformers.rasters import BandImage
from segtransformers.training import freeze_trunk
from segtransformers.training.bands import check_ignored_bands

MEAN, STD = [0.1, 0.2, 0.3, 0.4], [0.2, 0.2, 0.1, 0.3]


def band_processor(**options):
    settings = {
        "bands": [4, 3, 2, 8],
        "band_dtype": "uint16",
        "do_convert_rgb": False,
        "image_mean": MEAN,
        "image_std": STD,
        "rescale_factor": 1 / 65535,
        "size": {"shortest_edge": 32, "longest_edge": 64},
        "size_divisor": 1,
    }
    return SegmentationImageProcessor(**{**settings, **options})


def drawn(bands=4, height=32, width=40, dtype=np.uint16):
    return np.random.default_rng(0).integers(0, 60000 if dtype == np.uint16 else 255, (bands, height, width), dtype)


def test_the_processor_normalises_bands_of_16_bits():
    values = drawn()
    mean, std = (np.array(numbers)[:, None, None] for numbers in (MEAN, STD))
    expected = (values / 65535 - mean) / std
    processor = band_processor()
    for image in (values, values.transpose(1, 2, 0), torch.from_numpy(values), BandImage(values)):
        found = processor(images=image, return_tensors="pt").pixel_values
        assert found.shape == (1, 4, 32, 40) and found.dtype == torch.float32
        assert np.allclose(found[0].numpy(), expected, atol=1e-5)
    batch = processor(images=np.stack([values, values[::-1]]), return_tensors="pt").pixel_values
    assert batch.shape[0] == 2 and not torch.equal(batch[0], batch[1])


def test_three_bands_of_8_bits_equal_rgb():
    values = drawn(3, 45, 61, np.uint8)
    options = {"size": {"shortest_edge": 32, "longest_edge": 64}, "size_divisor": 32}
    rgb = SegmentationImageProcessor(**options)
    bands = SegmentationImageProcessor(bands=[1, 2, 3], do_convert_rgb=False, **options)
    image = PIL.Image.fromarray(values.transpose(1, 2, 0))
    expected = rgb(images=image, return_tensors="pt").pixel_values
    assert torch.equal(bands(images=values, return_tensors="pt").pixel_values, expected)
    pil = SegmentationImageProcessorPil(bands=[1, 2, 3], do_convert_rgb=False, **options)
    assert torch.equal(pil(images=values, return_tensors="pt").pixel_values, expected)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_pixels_without_data_become_the_mean_and_have_no_class(dtype):
    values, valid = drawn().astype(dtype), np.ones((32, 40), bool)
    valid[:8] = False
    if dtype == np.float32:
        values[2, :8] = np.nan
        image = values
    else:
        values[:, :8] = 0
        image = BandImage(values, valid)
    processor = band_processor(band_dtype=np.dtype(dtype).name, size={"height": 16, "width": 20})
    found = processor(images=image, segmentation_maps=np.zeros((32, 40), np.uint8), return_tensors="pt")
    assert found.pixel_values[0, :, :4].abs().max() < 1e-4
    assert (found.labels[0, :4] == 255).all() and (found.labels[0, 4:] == 0).all()
    assert found.pixel_values.isfinite().all()


def test_the_processor_saves_its_bands_and_refuses_others(tmp_path):
    processor = band_processor()
    processor.save_pretrained(tmp_path)
    loaded = SegmentationImageProcessor.from_pretrained(tmp_path)
    assert (loaded.bands, loaded.band_dtype, list(loaded.image_mean)) == ([4, 3, 2, 8], "uint16", MEAN)
    assert "bands" not in SegmentationImageProcessor().to_dict()
    with pytest.raises(ValueError, match=r"must have 4 bands.*\(3, 32, 40\)"):
        processor(images=drawn(3))
    with pytest.raises(ValueError, match="uint8, but the model was trained with uint16"):
        processor(images=drawn(dtype=np.uint8))
    for wrong, message in (
        ({"bands": [0, 1, 2, 3]}, "band number"),
        ({"bands": []}, "1 to 4096 band numbers"),
        ({"bands": [1, 2]}, "2 numbers"),
        ({"do_convert_rgb": True}, "do_convert_rgb=False"),
        ({"band_dtype": "complex64"}, "band_dtype must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            band_processor(**wrong)


def model_of(backbone):
    torch.manual_seed(0)
    model = SegUperNetForSemanticSegmentation(SegUperNetConfig(backbone_config=backbone, **UPERNET)).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
    return model


@pytest.mark.parametrize("name", [*OURS, *THEIRS])
def test_a_widened_model_computes_what_it_did(name, tmp_path):
    model = model_of({**OURS, **THEIRS}[name]())
    image = torch.randn(1, 3, 64, 96)
    expected = model(image).logits
    others = torch.randn(1, 2, 64, 96)
    wide = with_input_channels(model, 5, colours=[3, 2, 0])
    mixed = torch.stack([image[0, 2], others[0, 0], image[0, 1], image[0, 0], others[0, 1]])[None]
    with torch.no_grad():
        assert (wide(mixed).logits - expected).abs().max() <= 1e-5 * expected.abs().max()
        grey = image.mean(1, keepdim=True)
        one = with_input_channels(model, 1)(grey).logits
        assert (one - model(grey.expand(-1, 3, -1, -1)).logits).abs().max() <= 1e-5 * one.abs().max()
    assert input_channels(model.config) == 3 and input_channels(wide.config) == 5
    wide.save_pretrained(tmp_path)
    again = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert again.config.input_inflation == {"rule": "colours", "channels": [3, 2, 0]}
    for weights, stored in zip(wide.state_dict().items(), again.state_dict().items(), strict=True):
        assert weights[0] == stored[0] and torch.equal(weights[1], stored[1])
    # a convolution's rounding may depend on the order of its weights in memory
    torch.testing.assert_close(again(mixed).logits, wide(mixed).logits, rtol=1e-5, atol=1e-5)
    wide.train()(mixed.repeat(2, 1, 1, 1), labels=torch.randint(0, 5, (2, 64, 96))).loss.backward()
    changed = [
        weight for weight in wide.parameters() if weight.dim() == 4 and weight.shape[1] == 5 and weight.grad is not None
    ]
    assert changed and all(weight.grad[:, 1].abs().max() > 0 for weight in changed)


@pytest.mark.parametrize("name", ["vit_adapter", "internimage"])
def test_a_frozen_trunk_that_ignores_bands_is_named(name, caplog):
    """ViT-Adapter has trained convolutions that read the image, too. InternImage reads it in one place."""
    model = model_of(OURS[name]())
    logger = logging.getLogger("segtransformers")
    logger.addHandler(caplog.handler)
    try:
        for colours, frozen, named in (([2, 1, 0], True, True), ([2, 1, 0], False, False), (None, True, False)):
            caplog.clear()
            wide = with_input_channels(model, 4, colours)
            if frozen:
                freeze_trunk(wide)
            if named and name == "internimage":
                with pytest.raises(ValueError, match="never learn the bands 8: the frozen trunk reads the image"):
                    check_ignored_bands(wide, [4, 3, 2, 8])
            else:
                check_ignored_bands(wide, [4, 3, 2, 8])
                assert ("frozen trunk ignores the bands 8," in caplog.text) == named
    finally:
        logger.removeHandler(caplog.handler)


def test_repeated_weights_keep_the_size_of_the_sums():
    model = SegformerForSemanticSegmentation(
        SegformerConfig(hidden_sizes=[8] * 4, depths=[1] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8)
    )
    name = next(key for key, value in model.state_dict().items() if value.dim() == 4 and value.shape[1] == 3)
    weight = model.state_dict()[name]
    for count in (2, 4, 6):
        wide = with_input_channels(model, count)
        found = wide.state_dict()[name]
        assert wide.config.input_inflation == {"rule": "repeat"} and found.shape[1] == count
        assert torch.equal(found[:, count - 1], weight[:, (count - 1) % 3] * (3 / count))
    assert torch.allclose(found.sum(1), weight.sum(1), atol=1e-6)
    with pytest.raises(ValueError, match="takes 6 channels: only"):
        with_input_channels(wide, 4)
    for colours in ([0, 1], [0, 1, 1], [0, 1, 4]):
        with pytest.raises(ValueError, match="three different channels, 0 to 3"):
            with_input_channels(model, 4, colours=colours)


def test_a_trunk_of_timm_with_other_channels():
    backbone = PlainViTBackbone.from_trunk("vit_tiny_patch16_224", pretrained=False, num_channels=2)
    assert backbone.config.num_channels == 2 and backbone.config.input_inflation is None
    assert backbone(torch.randn(1, 2, 32, 32)).feature_maps[-1].shape[-2:] == (2, 2)
    with pytest.raises(ValueError, match="num_channels=2"):
        backbone(torch.randn(1, 3, 32, 32))


def test_inference_takes_bands_from_files_and_arrays(tmp_path):
    torch.manual_seed(0)
    model = with_input_channels(AutoModelForSemanticSegmentation.from_config(small_segmenter()).eval(), 4)
    processor = band_processor(bands=[4, 3, 1, 2])
    values = drawn(5)
    np.save(tmp_path / "scene.npy", values)
    chosen = values[[3, 2, 0, 1]]
    expected = model(**processor(images=chosen, return_tensors="pt")).logits.argmax(1)[0]
    for image in (tmp_path / "scene.npy", str(tmp_path / "scene.npy"), chosen, BandImage(chosen)):
        assert torch.equal(segment_image(model, processor, image), expected)
    stock = pipeline("image-segmentation", model=model, image_processor=processor)
    for run, image in itertools.product(
        (SegmentationPipeline(model, image_processor=processor), stock), (str(tmp_path / "scene.npy"), chosen)
    ):
        found = {part["label"]: np.asarray(part["mask"]) for part in run(image)}
        names = [model.config.id2label[index] for index in expected.unique().tolist()]
        assert list(found) == names and np.array_equal(found[names[0]] > 0, expected.numpy() == expected.min().item())
    protocol = InferenceProtocol(scales=(0.5, 1.0), flip=True)
    assert segment_image(model, processor, tmp_path / "scene.npy", protocol).shape == (32, 40)
    np.save(tmp_path / "few.npy", values[:2])
    with pytest.raises(ValueError, match=r"few.npy has 2 bands, but the bands 4, 3, 1, 2 are asked for"):
        segment_image(model, processor, tmp_path / "few.npy")


def test_a_model_with_four_channels_is_exported(tmp_path):
    model = with_input_channels(AutoModelForSemanticSegmentation.from_config(small_segmenter()).eval(), 4)
    program = traced(model, (32, 32))
    image = torch.randn(1, 4, 32, 32)
    assert torch.allclose(program.module()(image), model(image).logits, atol=1e-4)
