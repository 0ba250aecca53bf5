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


def test_cells_have_all_classes_and_are_those_of_their_seed(benchmark):
    found = set()
    for seed in range(6):
        image, labels = benchmark.draw_cells(seed)
        assert image.size == labels.size == (96, 96) and image.mode == "RGB"
        found |= set(np.unique(np.asarray(labels)).tolist())
        again = benchmark.draw_cells(seed)
        assert image.tobytes() == again[0].tobytes() and labels.tobytes() == again[1].tobytes()
    assert found == set(range(len(benchmark.CELL_CLASSES)))


@pytest.mark.slow  # eight trainings of a minute each on an idle machine
@pytest.mark.parametrize("data", ["landscapes", "cells"])
def test_within_two_points_of_the_best_recipe_by_hand(benchmark, data, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["automatic_training.py", "--data", data])
    benchmark.main()
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines()[2:]]
    (difference,) = [float(row[5]) for row in rows if "chosen automatically" in row[2]]
    assert len(rows) == 4 and difference > -2
