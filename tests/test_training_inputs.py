# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Inputs of `segtransformers train` that cannot be trained on: each gets one line that says what to do."""

import numpy as np
import pytest
from PIL import Image
from test_train_command import options, own_data, run
from training_cases import small_model

from segtransformers import SegmentationImageProcessor


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    small_model("segmenter", decoder_type="linear").save_pretrained(folder)
    SegmentationImageProcessor(size={"shortest_edge": 96, "longest_edge": 384}).save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path):
    return own_data(tmp_path / "data", train=2, validation=1)


def change_masks(data, change) -> None:
    for path in data.glob("masks/*/*.png"):
        Image.fromarray(change(np.asarray(Image.open(path)))).save(path)


def one_error(text: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    return line


def test_a_class_that_never_occurs_has_no_automatic_weight(data, start, tmp_path):
    (data / "classes.txt").write_text("nature\nbuilt\nmoving\nwater")
    words = ["--class-weights", "auto", "--max_steps", 1]
    status, output = run(*options(data, tmp_path / "out", start, *words))
    assert status == 0, output
    assert (
        "the weight is 0 for classes without a pixel in the training data, water: add images that hold them" in output
    )


def test_weights_of_another_length(data, start, tmp_path):
    words = ["--class-weights", "1,2", "--max_steps", 1]
    status, output = run(*options(data, tmp_path / "out", start, *words))
    assert status == 1
    assert "class_weights has 2 numbers, but the model has 3 classes: give one number for each class" in one_error(
        output
    )
    assert not (tmp_path / "out/config.json").exists()


def test_masks_without_a_valid_pixel(data, start, tmp_path, caplog):
    change_masks(data, lambda mask: np.full_like(mask, 255))
    status, output = run(*options(data, tmp_path / "out", start, "--max_steps", 2, "--dataloader_num_workers", 0))
    assert status == 0, output
    assert "2 of 2 masks have no pixel with a class, such as that of 000" in output
    assert "has no pixel with a class, so its loss is 0: remove it, or label it" in caplog.text
    words = ["--max_steps", 1, "--class-weights", "auto"]
    status, output = run(*options(data, tmp_path / "weighted", start, *words))
    assert status == 1 and "so there are no class weights: check the masks, or leave them out" in one_error(output)


def test_binary_masks_with_three_values(data, start, tmp_path):
    change_masks(data, lambda mask: np.array([0, 128, 255], np.uint8)[mask])
    (data / "classes.txt").write_text("background\nobject")
    status, output = run(*options(data, tmp_path / "out", start, "--binary", "--max_steps", 1))
    assert status == 1 and "error: 3 samples cannot be used" in output
    assert "labels that are no class: 128" in output and "expected are 0 to 1, and 255 for no class" in output
    assert "Or map values to classes, or to 255 for no class, as in label_map={128: 255}" in output
    assert not (tmp_path / "out").exists()
    # with a class for the third value, they are two classes and pixels without one
    words = ["--binary", "--max_steps", 1, "--label-map", "128:1"]
    status, output = run(*options(data, tmp_path / "out", start, *words))
    assert status == 0, output


def test_an_average_of_another_model_is_not_continued(data, start, tmp_path):
    words = ["--max_steps", 2, "--save_steps", 2, "--save_strategy", "steps"]
    status, output = run(*options(data, tmp_path / "out", start, *words, "--ema", 0.9))
    assert status == 0, output
    longer = ["--max_steps", 3, "--save_steps", 2, "--save_strategy", "steps", "--resume"]
    status, output = run(*options(data, tmp_path / "out", start, *longer, "--ema", 0.9, "--freeze-trunk", "--whole"))
    assert status == 1
    found = one_error(output)
    assert "weight_average.safetensors is the average of another model: " in found
    assert "continue with the same model, the same trained parts" in found

    (tmp_path / "out/checkpoint-2/weight_average.safetensors").unlink()
    status, output = run(*options(data, tmp_path / "out", start, *longer, "--ema", 0.9))
    assert status == 1 and "was trained without an average of the weights" in one_error(output)
    status, output = run(*options(data, tmp_path / "out", start, *longer))
    assert status == 0, output


def test_multi_label_options_that_exclude_each_other(data, start, tmp_path):
    status, output = run(*options(data, tmp_path / "out", start, "--binary", "--multi-label", "--max_steps", 1))
    assert status == 1 and "--binary needs data with one class for each pixel" in one_error(output)
    words = ["--multi-label", "--losses", "cross_entropy", "--max_steps", 1]
    status, output = run(*options(data, tmp_path / "out", start, *words))
    assert status == 1 and "use binary_cross_entropy in its place" in one_error(output)
    small_model("mask2former").save_pretrained(tmp_path / "queries")
    SegmentationImageProcessor().save_pretrained(tmp_path / "queries")
    status, output = run(*options(data, tmp_path / "out", tmp_path / "queries", "--multi-label", "--max_steps", 1))
    assert status == 1 and "seg_mask2former cannot be multi-label: choose a head that classifies pixels" in output
