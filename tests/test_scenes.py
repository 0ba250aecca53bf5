# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Drawn scenes, and the packaged model that was trained on them."""

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from segtransformers import SegUperNetForSemanticSegmentation
from segtransformers.datasets.scenes import (
    FIRST_TRAINING_SEED,
    IMAGE_MEAN,
    IMAGE_STD,
    PALETTE,
    SCENE_CLASSES,
    SceneDataset,
    draw_scene,
)
from segtransformers.inference import InferenceProtocol, segment_image
from segtransformers.metrics import MeanIoU
from segtransformers.packaged import example_image_path, packaged_model_path

EXAMPLE_SEED = 141


def test_a_seed_gives_the_same_bytes_everywhere():
    image, labels = draw_scene(3, (128, 192))
    found = hashlib.sha256(image.tobytes() + labels.tobytes()).hexdigest()
    assert found == "eb772a755f77aa89cbdb2f78298637bcf903f0ea7bc55f6fa7fd9b3956b9d254"
    assert not np.array_equal(image, draw_scene(4, (128, 192))[0])


def test_all_classes_occur():
    seen = np.zeros(len(SCENE_CLASSES), int)
    for seed in range(20):
        labels = draw_scene(seed)[1]
        assert labels.max() < len(SCENE_CLASSES)
        seen += np.bincount(labels.ravel(), minlength=len(SCENE_CLASSES)) > 0
    assert seen.min() >= 5
    assert len({tuple(color) for color in PALETTE}) == len(PALETTE) == len(SCENE_CLASSES)


@pytest.mark.parametrize("size", [(32, 32), (97, 61), (128, 192), (200, 131)])
def test_image_and_labels_have_the_size_asked_for(size):
    image, labels = draw_scene(5, size)
    assert image.shape == (*size, 3) and labels.shape == size
    assert image.dtype == labels.dtype == np.uint8


def test_wrong_seeds_and_sizes_are_refused():
    with pytest.raises(ValueError, match="-1"):
        draw_scene(-1)
    with pytest.raises(ValueError, match="31"):
        draw_scene(0, (31, 64))


def test_items_of_the_data_set_are_normalised():
    item = SceneDataset(range(7, 9))[1]
    image, labels = draw_scene(8)
    restored = item["pixel_values"].permute(1, 2, 0) * torch.tensor(IMAGE_STD) + torch.tensor(IMAGE_MEAN)
    assert item["pixel_values"].dtype == torch.float32 and item["labels"].dtype == torch.int64
    assert torch.allclose(restored, torch.from_numpy(image).float(), atol=1e-3)
    assert np.array_equal(item["labels"].numpy(), labels)


def test_items_can_be_crops_of_several_sizes():
    scenes = SceneDataset(range(FIRST_TRAINING_SEED, FIRST_TRAINING_SEED + 4), ((64, 96), (80, 80)), crop=(64, 64))
    assert len(scenes) == 4
    for index in range(len(scenes)):
        item = scenes[index]
        assert item["pixel_values"].shape == (3, 64, 64) and item["labels"].shape == (64, 64)
    whole = draw_scene(FIRST_TRAINING_SEED, (64, 96))[1]
    crop = scenes[0]["labels"].numpy()
    assert any(np.array_equal(crop, whole[:, left : left + 64]) for left in range(33))


def test_half_of_the_scenes_can_be_resized():
    sizes, seeds = ((64, 96), (80, 80)), range(FIRST_TRAINING_SEED, FIRST_TRAINING_SEED + 60)
    drawn, resized, again = SceneDataset(seeds, sizes), *(SceneDataset(seeds, sizes, None, (0.6, 1.7)) for _ in "12")
    same = 0
    for index in range(len(seeds)):
        item, other = resized[index], again[index]
        assert item["pixel_values"].shape == (3, *sizes[index % 2]) and item["labels"].shape == sizes[index % 2]
        assert item["labels"].max() < len(SCENE_CLASSES)
        assert all(torch.equal(item[key], other[key]) for key in item)
        equal = [torch.equal(item[key], drawn[index][key]) for key in item]
        assert equal[0] == equal[1]
        same += all(equal)
    assert 20 <= same <= 40


def test_resized_scenes_are_drawn_scenes_of_another_size():
    """At factor 2 every label occurs four times; at factor 1/2 every second label remains."""
    seeds = range(FIRST_TRAINING_SEED, FIRST_TRAINING_SEED + 8)
    for factor, size in ((2.0, (32, 48)), (0.5, (128, 192))):
        drawn = SceneDataset(seeds, (size,))
        resized = SceneDataset(seeds, ((64, 96),), None, (factor, factor))
        found = 0
        for index in range(len(seeds)):
            labels, small = resized[index]["labels"], drawn[index]["labels"]
            wanted = small.repeat_interleave(2, 0).repeat_interleave(2, 1) if factor > 1 else small[::2, ::2]
            found += torch.equal(labels, wanted)
        assert 1 <= found < len(seeds)


def test_example_image_is_an_evaluation_scene():
    with Image.open(example_image_path()) as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), draw_scene(EXAMPLE_SEED, (256, 384))[0])


@pytest.fixture(scope="module")
def packaged():
    folder = packaged_model_path()
    model, report = SegUperNetForSemanticSegmentation.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report  # a lost parameter would hardly change the accuracy below
    return model.eval(), AutoImageProcessor.from_pretrained(folder)


def mean_iou(packaged, seeds, protocol=None) -> float:
    metric = MeanIoU(len(SCENE_CLASSES))
    for seed in seeds:
        image, labels = draw_scene(seed)
        metric.add(prediction=segment_image(*packaged, Image.fromarray(image), protocol), reference=labels)
    return metric.compute()["mean_iou"]


def test_packaged_model_is_better_than_a_classifier_of_colours(packaged):
    metrics = json.loads((packaged_model_path() / "metrics.json").read_text())
    config = packaged[0].config
    assert [config.id2label[index] for index in range(len(SCENE_CLASSES))] == list(SCENE_CLASSES)
    assert config.palette == PALETTE and config.dtype == torch.float32
    found = mean_iou(packaged, range(40))
    assert found > 0.85
    assert found > metrics["color_only"]["mean_iou"] + 0.15
    assert metrics["scenes"] == 200


def test_multi_scale_and_flip_do_not_harm_the_packaged_model(packaged):
    """They would if the model relied on the noise of single pixels, which resizing smooths away."""
    protocol = InferenceProtocol.multi_scale(packaged[1])
    assert len(protocol.scales) > 1 and protocol.flip
    seeds = range(100, 108)
    assert mean_iou(packaged, seeds, protocol) >= mean_iou(packaged, seeds)
