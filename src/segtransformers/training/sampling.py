# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Choice of training samples by their classes: rare classes first, or samples with rare classes repeated."""

import math
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..datasets.class_counts import ClassCounts

if TYPE_CHECKING:
    from .recipe_settings import SamplingSettings


class Sampling(Protocol):
    """A mapping of the items of an epoch to the samples of a data set."""

    samples: int  # of the data set

    def __len__(self) -> int:
        """Return the number of items in an epoch."""

    def sample(self, seed: tuple[int, ...], index: int) -> int:
        """Return the sample for an item.

        Args:
            seed: numbers that depend on the seed of the run, the epoch and the index, so that a resumed run sees the
                same samples.
        """


class RareClassSampling:
    """Draw a class, the rarer the more often, and then one of the samples that hold it.

    Class c with the share `f_c` of all pixels is drawn with a probability proportional to `exp((1 - f_c) / T)`, as in
    DAFormer (https://arxiv.org/abs/2111.14887).

    Args:
        counts: pixels of each class in each sample.
        temperature: T. Small values draw almost nothing but the rarest classes, large ones draw all alike.
        min_pixels: pixels of the class that a sample must exceed. Where no sample does, all that hold the class count.

    Attributes:
        probabilities: of each class, `(num_labels,)` float64; 0 for classes that never occur.

    Raises:
        ValueError: if no class occurs.
    """

    def __init__(self, counts: ClassCounts, temperature: float = 0.01, min_pixels: int = 3000):
        pixels = counts.pixels.astype(np.float64)
        occurs = pixels > 0
        if not occurs.any():
            raise ValueError("no pixel of the training data has a class, so no class can be drawn")
        exponents = np.where(occurs, (1 - pixels / pixels.sum()) / temperature, -np.inf)
        weights = np.exp(exponents - exponents.max())
        self.probabilities = weights / weights.sum()
        self.samples = len(counts.per_sample)
        self._holders = []
        for index in range(len(pixels)):
            of_class = counts.per_sample[:, index]
            holders = np.flatnonzero(of_class > min_pixels)
            self._holders.append(holders if len(holders) else np.flatnonzero(of_class))

    def __len__(self) -> int:
        return self.samples

    def sample(self, seed: tuple[int, ...], index: int) -> int:
        generator = np.random.default_rng(seed)
        drawn = generator.choice(len(self.probabilities), p=self.probabilities)
        return int(generator.choice(self._holders[drawn]))


class RepeatFactorSampling:
    """Repeat samples with rare classes, as in LVIS (https://arxiv.org/abs/1908.03195) and mmengine.

    With the share `f_c` of samples that hold class c, a sample is repeated `ceil(max_c max(1, sqrt(t / f_c)))` times,
    over its classes c.

    Args:
        counts: pixels of each class in each sample.
        threshold: t, in (0, 1]. Classes in a larger share of the samples are not repeated.
    """

    def __init__(self, counts: ClassCounts, threshold: float = 0.1):
        holds = counts.per_sample > 0
        shares = holds.mean(0)
        factors = np.maximum(1, np.sqrt(threshold / np.where(shares > 0, shares, 1)))
        repeats = [math.ceil(factors[row].max(initial=1)) for row in holds]
        self.samples = len(holds)
        self._samples = np.repeat(np.arange(len(holds)), repeats)

    def __len__(self) -> int:
        return len(self._samples)

    def sample(self, seed: tuple[int, ...], index: int) -> int:
        return int(self._samples[index])


class MixedSampling:
    """Draw samples of two data sets that are joined, those of the second less often.

    An epoch has as many items as both have samples. An item is of the second data set with the probability
    `weight * n2 / (n1 + weight * n2)`, so a weight of 1 draws all samples alike, and 0.5 those of the second half as
    often.

    Args:
        first: number of samples of the first data set, or its own sampling.
        second: number of samples of the second data set, which follow those of the first.
        weight: how often a sample of the second is drawn, for one draw of a sample of the first.
    """

    def __init__(self, first: "int | Sampling", second: int, weight: float):
        self._first = None if isinstance(first, int) else first
        self._items = first if isinstance(first, int) else len(first)
        self._offset = first if isinstance(first, int) else first.samples
        self._second = second
        self.samples = self._offset + second
        self._share = weight * second / (self._items + weight * second)

    def __len__(self) -> int:
        return self._items + self._second

    def sample(self, seed: tuple[int, ...], index: int) -> int:
        generator = np.random.default_rng(seed)
        if generator.random() < self._share:
            return self._offset + int(generator.integers(self._second))
        drawn = int(generator.integers(self._items))
        return drawn if self._first is None else self._first.sample((*seed, 1), drawn)


def build_sampling(settings: "SamplingSettings", counts: ClassCounts) -> Sampling:
    """Build the sampling that settings describe."""
    if settings.method == "rare_class":
        return RareClassSampling(counts, settings.temperature, settings.min_pixels)
    return RepeatFactorSampling(counts, settings.threshold)


__all__ = ["MixedSampling", "RareClassSampling", "RepeatFactorSampling", "Sampling", "build_sampling"]
