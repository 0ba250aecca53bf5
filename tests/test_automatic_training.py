# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Automatic choices reach the accuracy of recipes chosen by hand."""

import importlib
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("automatic_training")


@pytest.mark.parametrize(
    ("draw", "size", "classes"),
    [("draw_cells", (96, 96), "CELL_CLASSES"), ("draw_textures", (128, 96), "TEXTURE_CLASSES")],
)
def test_drawn_data_have_all_classes_and_are_those_of_their_seed(benchmark, draw, size, classes):
    draw, classes = getattr(benchmark, draw), getattr(benchmark, classes)
    found = set()
    for seed in range(6):
        image, labels = draw(seed)
        assert image.size == labels.size == size and image.mode == "RGB"
        found |= set(np.unique(np.asarray(labels)).tolist())
        again = draw(seed)
        assert image.tobytes() == again[0].tobytes() and labels.tobytes() == again[1].tobytes()
    assert found == set(range(len(classes)))


@pytest.mark.slow  # twelve trainings of a minute each on an idle machine
@pytest.mark.parametrize("data", ["landscapes", "cells", "textures"])
def test_within_two_points_of_the_best_recipe_by_hand(benchmark, data, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["automatic_training.py", "--data", data])
    benchmark.main()
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines()[2:]]
    (difference,) = [float(row[5]) for row in rows if "chosen automatically" in row[2]]
    assert len(rows) == 4 and difference > -2
