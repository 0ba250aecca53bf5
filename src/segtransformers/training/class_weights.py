# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Weights of classes from the number of their pixels.

With `n_c` pixels of class c, `n` pixels of all classes and `f_c = n_c / n`, over the C classes that occur:

- `inverse_square_root`: `sqrt(n / (C n_c))`. `auto` takes this formula, because it raises rare classes without letting
  a few pixels dominate the loss.
- `inverse_frequency`: `n / (C n_c)`, scikit-learn's "balanced".
- `inverse_log`: `1 / ln(1.02 + f_c)`, of ENet (https://arxiv.org/abs/1606.02147).
- `median_frequency`: the median of all `f_c` over `f_c`, where `f_c` is the share in the samples that hold the class
  (https://arxiv.org/abs/1411.4734).
- `effective_number`: `(1 - b) / (1 - b^m_c)` with b = 0.999 and `m_c` samples that hold the class, scaled to sum to C
  (https://arxiv.org/abs/1901.05555).

A class that never occurs has the weight 0 and does not count in medians and sums.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..datasets.class_counts import ClassCounts

AUTO = "auto"
AUTO_FORMULA = "inverse_square_root"
EFFECTIVE_NUMBER_BETA = 0.999
NO_PIXELS = (
    "no pixel of the training data has a class, so there are no class weights: check the masks, or leave them out"
)


def _inverse_frequency(counts: ClassCounts, occurs: np.ndarray) -> np.ndarray:
    pixels = counts.pixels[occurs].astype(np.float64)
    return pixels.sum() / (len(pixels) * pixels)


def _inverse_square_root(counts: ClassCounts, occurs: np.ndarray) -> np.ndarray:
    return np.sqrt(_inverse_frequency(counts, occurs))


def _inverse_log(counts: ClassCounts, occurs: np.ndarray) -> np.ndarray:
    pixels = counts.pixels[occurs]
    return 1 / np.log(1.02 + pixels / pixels.sum())


def _median_frequency(counts: ClassCounts, occurs: np.ndarray) -> np.ndarray:
    frequency = counts.pixels[occurs] / counts.pixels_of_holders[occurs]
    return np.median(frequency) / frequency


def _effective_number(counts: ClassCounts, occurs: np.ndarray) -> np.ndarray:
    weights = (1 - EFFECTIVE_NUMBER_BETA) / (1 - EFFECTIVE_NUMBER_BETA ** counts.samples[occurs].astype(np.float64))
    return weights / weights.sum() * len(weights)


FORMULAS: dict[str, Callable[[ClassCounts, np.ndarray], np.ndarray]] = {
    "inverse_square_root": _inverse_square_root,
    "inverse_frequency": _inverse_frequency,
    "inverse_log": _inverse_log,
    "median_frequency": _median_frequency,
    "effective_number": _effective_number,
}


def check_formula(name: Any) -> str:
    """Return the name of a formula, with that of `auto` resolved.

    Raises:
        ValueError: if there is no such formula.
    """
    name = AUTO_FORMULA if name == AUTO else name
    if name not in FORMULAS:
        known = ", ".join((AUTO, *FORMULAS))
        raise ValueError(f"class weights must be one of {known}, or a number for each class, got {name!r}")
    return name


def positive_weights_from_counts(counts: ClassCounts, formula: str = AUTO) -> list[float]:
    """Compute the weight of the positive term of each class of multi-label data, with 6 significant digits.

    A class and its absence count as two classes of the formula, and the result is the weight of the first over that of
    the second: with "inverse_frequency" the number of pixels without the class over that of pixels with it. A class
    that never occurs has the weight 0, and one that is everywhere the weight 1.

    Raises:
        ValueError: as [`weights_from_counts`].
    """
    if counts.valid is None or not counts.pixels.any():
        raise ValueError(NO_PIXELS)
    ratios = []
    for present, valid in zip(counts.per_sample.T, counts.valid.T, strict=True):
        if not valid.any():
            ratios.append(0.0)
            continue
        absence, presence = weights_from_counts(ClassCounts(np.stack([valid - present, present], 1)), formula)
        ratios.append(float(f"{presence / absence:.6g}") if absence else 1.0)
    return ratios


def weights_from_counts(counts: ClassCounts, formula: str = AUTO) -> list[float]:
    """Compute a weight for each class, with 6 significant digits.

    Args:
        formula: see the module's docstring.

    Raises:
        ValueError: if the formula is unknown or no class occurs.
    """
    formula = check_formula(formula)
    occurs = counts.pixels > 0
    if not occurs.any():
        raise ValueError(NO_PIXELS)
    weights = np.zeros(len(occurs))
    weights[occurs] = FORMULAS[formula](counts, occurs)
    return [float(f"{weight:.6g}") for weight in weights]


__all__ = ["FORMULAS", "check_formula", "positive_weights_from_counts", "weights_from_counts"]
