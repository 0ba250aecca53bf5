# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
import json

import numpy as np
import pytest
from dataset_cases import own_data
from reference_cases import FOLDER

from segtransformers.datasets import DataError, load_segmentation_dataset
from segtransformers.datasets.checking import class_counts
from segtransformers.datasets.class_counts import ClassCounts, cached_counts
from segtransformers.training.class_weights import weights_from_counts

RECORDED = json.loads((FOLDER / "losses" / "cases.json").read_text())["class_weights"]
COUNTS = ClassCounts(np.array(RECORDED["per_image_counts"]))
CASES = {case["name"]: case for case in RECORDED["cases"]}


@pytest.mark.parametrize(
    ("formula", "name"),
    [
        ("inverse_log", "weights.enet"),
        ("median_frequency", "weights.median_frequency"),
        ("inverse_frequency", "weights.inverse_frequency"),
        ("inverse_square_root", "weights.inverse_square_root"),
        ("auto", "weights.inverse_square_root"),
        ("effective_number", "weights.effective_number_images_0.999"),
    ],
)
def test_weights_are_those_of_the_formulas(formula, name):
    np.testing.assert_allclose(weights_from_counts(COUNTS, formula), CASES[name]["weights"], rtol=1e-5)


def test_a_class_without_pixels_has_no_weight_and_changes_no_other():
    counts = ClassCounts(np.pad(COUNTS.per_sample, ((0, 0), (0, 1))))
    for formula in ("inverse_log", "median_frequency", "inverse_frequency", "effective_number", "auto"):
        assert weights_from_counts(counts, formula) == [*weights_from_counts(COUNTS, formula), 0]
    with pytest.raises(ValueError, match="no pixel of the training data has a class"):
        weights_from_counts(ClassCounts(np.zeros((2, 3), np.int64)))
    with pytest.raises(ValueError, match="must be one of auto, inverse_square_root"):
        weights_from_counts(COUNTS, "often")


def test_counts_are_read_once_and_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGTRANSFORMERS_CACHE", str(tmp_path / "cache"))
    data = load_segmentation_dataset(own_data(tmp_path / "data", 0, 1, 2, 255), split="train")
    assert cached_counts(data) is None
    counts = class_counts(data)
    expected = [np.bincount(sample.labels.ravel(), minlength=256)[: data.num_labels] for sample in data]
    np.testing.assert_array_equal(counts.per_sample, expected)
    monkeypatch.setattr("segtransformers.datasets.checking.check_dataset", None)
    np.testing.assert_array_equal(class_counts(data).per_sample, expected)
    np.testing.assert_array_equal(cached_counts(data.select([1])) is None, True)  # other samples

    (file,) = (tmp_path / "cache/class_counts").iterdir()
    content = file.read_bytes()
    file.write_bytes(content[:-20])
    assert cached_counts(data) is None  # a file that was cut off
    for start in range(len(content)):  # and damaged ones, also within compressed data
        file.write_bytes(content[:start] + b"\xff" * 8 + content[start + 8 :])
        counts = cached_counts(data)
        assert counts is None or counts.per_sample.shape == (len(data), data.num_labels)


def test_changed_masks_are_counted_again(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGTRANSFORMERS_CACHE", str(tmp_path / "cache"))
    folder = own_data(tmp_path / "data", 0, 1)
    first = class_counts(load_segmentation_dataset(folder, split="train"))
    own_data(folder, 1, 2)
    second = class_counts(load_segmentation_dataset(folder, split="train"))
    assert first.pixels[0] and not second.pixels[0]


def test_a_sample_with_an_error_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGTRANSFORMERS_CACHE", str(tmp_path / "cache"))
    folder = own_data(tmp_path / "data", 0, 1)
    next((folder / "masks").iterdir()).write_bytes(b"no mask")
    with pytest.raises(DataError, match="cannot read"):
        class_counts(load_segmentation_dataset(folder, split="train"))


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SEGTRANSFORMERS_CACHE", str(tmp_path / "file"))
    assert class_counts(load_segmentation_dataset(own_data(tmp_path / "data", 0, 1), split="train")).pixels.any()
    assert "the counts of the classes are not cached" in caplog.text
