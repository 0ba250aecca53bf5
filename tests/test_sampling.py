# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
import json

import numpy as np
import pytest
from reference_cases import FOLDER
from training_cases import Scenes, crop

from segtransformers.datasets.class_counts import ClassCounts
from segtransformers.training import Recipe, TrainingDataset
from segtransformers.training.recipe_settings import SamplingSettings
from segtransformers.training.sampling import RareClassSampling, RepeatFactorSampling, build_sampling

RECORDED = json.loads((FOLDER / "losses" / "cases.json").read_text())["sampling"]
COUNTS = ClassCounts(np.array(RECORDED["rare_class_sampling"]["per_image_counts"]))


@pytest.mark.parametrize("case", RECORDED["rare_class_sampling"]["cases"], ids=lambda case: case["name"])
def test_probabilities_of_daformer(case):
    counts = COUNTS
    if "counts" in case:
        counts = ClassCounts(np.array([list(case["counts"].values())]))
    probabilities = RareClassSampling(counts, case["temperature"]).probabilities
    # the original computes them in float32
    np.testing.assert_allclose(probabilities[case["classes"]], case["probabilities"], rtol=2e-4, atol=1e-30)


@pytest.mark.parametrize("case", RECORDED["repeat_factor"]["cases"], ids=lambda case: case["name"])
def test_repeats_of_mmengine(case):
    sampling = RepeatFactorSampling(COUNTS, case["oversample_thr"])
    samples = [sampling.sample((), index) for index in range(len(sampling))]
    assert np.bincount(samples, minlength=8).tolist() == case["repeats"]


def test_rare_classes_are_drawn_with_their_probability_from_the_samples_that_hold_them():
    sampling = RareClassSampling(COUNTS, temperature=0.5, min_pixels=3)
    drawn = np.array([sampling.sample((0, 0, index), index) for index in range(6000)])
    shares = np.bincount(drawn, minlength=8) / len(drawn)
    expected = np.zeros(8)
    for index, probability in enumerate(sampling.probabilities):
        holders = np.flatnonzero(COUNTS.per_sample[:, index] > 3)
        expected[holders] += probability / len(holders)
    np.testing.assert_allclose(shares, expected, atol=0.02)
    assert drawn[:50].tolist() == [sampling.sample((0, 0, index), index) for index in range(50)]
    assert drawn[:50].tolist() != [sampling.sample((0, 1, index), index) for index in range(50)]


def test_a_class_without_a_large_sample_is_drawn_from_all_that_hold_it():
    sampling = RareClassSampling(COUNTS, temperature=0.001, min_pixels=3000)
    assert {sampling.sample((0, 0, index), index) for index in range(50)} == {6, 7}  # the holders of the rarest class
    with pytest.raises(ValueError, match="no pixel of the training data has a class"):
        RareClassSampling(ClassCounts(np.zeros((2, 3), np.int64)))


@pytest.mark.parametrize("method", ["rare_class", "repeat_factor"])
def test_a_dataset_with_sampling(method):
    scenes = Scenes(8)
    scenes.names = [str(index) for index in range(8)]
    sampling = build_sampling(SamplingSettings(method=method, threshold=0.9, temperature=0.5), COUNTS)
    data = TrainingDataset(scenes, crop, repeat=2, sampling=sampling)
    assert len(data) == 2 * len(sampling)
    first = [data.name(index) for index in range(len(data))]
    data.set_epoch(1)
    again = [data.name(index) for index in range(len(data))]
    assert (first == again) == (method == "repeat_factor")
    assert data[len(data) - 1]["pixel_values"].shape[0] == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "often"}, "sampling.method must be rare_class or repeat_factor"),
        ({"temperature": 0}, "sampling.temperature must be a number from 0.0001 on"),
        ({"min_pixels": -1}, "sampling.min_pixels must be a whole number from 0 on"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Recipe.from_dict({"name": "mine", "sampling": settings})
