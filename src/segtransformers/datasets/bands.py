# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Mean and standard deviation of each band of a data set, and the file in which its folder keeps them."""

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..files import check_readable, complete_file
from ..rasters.band_image import as_band_image
from ..rasters.raster import DTYPES
from .loading import SegmentationDataset
from .reading import DataError

STATISTICS_FILE = "band_statistics.json"
MOST_SAMPLES = 1000  # read where no file has the statistics
PIXELS_AT_ONCE = 1 << 20  # computed in double precision
LONGEST_FILE = 1 << 20  # bytes


@dataclass(frozen=True)
class BandStatistics:
    """Statistics of the pixels with data, in the units of the files.

    Attributes:
        bands: numbers of the bands, from 1 on.
        dtype: type of the values.
        mean, std, minimum, maximum: one number for each band.
        pixels: number of pixels with data.
    """

    bands: tuple[int, ...]
    dtype: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    pixels: int

    def of_bands(self, bands: "list[int]") -> "BandStatistics | None":
        """Return the statistics of these bands, or None if one of them is unknown."""
        if not set(bands) <= set(self.bands):
            return None
        order = [self.bands.index(band) for band in bands]
        parts = [tuple(part[index] for index in order) for part in (self.mean, self.std, self.minimum, self.maximum)]
        return BandStatistics(tuple(bands), self.dtype, parts[0], parts[1], parts[2], parts[3], self.pixels)

    def save(self, folder: Path) -> Path:
        """Write the statistics into the folder of the data set.

        Raises:
            OSError: if the file cannot be written.
        """
        path = folder / STATISTICS_FILE
        with complete_file(path) as partial:
            partial.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")
        return path


def band_statistics(
    data: SegmentationDataset, most_samples: int | None = None, progress: Callable[[int], object] | None = None
) -> BandStatistics:
    """Compute the statistics of the bands that a data set reads.

    Args:
        data: with `bands`.
        most_samples: number of samples to read, evenly spaced. None reads all.
        progress: called with the number of samples done since the last call.

    Raises:
        DataError: if a sample cannot be used, no pixel has data, or a band has the same value everywhere.
    """
    if data.bands is None:
        raise ValueError("statistics of bands need a data set with bands")
    step = 1 if most_samples is None else math.ceil(len(data) / most_samples)
    number = len(data.bands)
    count, low, high = 0, np.full(number, np.inf), np.full(number, -np.inf)
    mean, squares = np.zeros(number), np.zeros(number)
    for index in range(0, len(data), step):
        image = as_band_image(data[index].image, number)
        for first in range(0, image.height, max(PIXELS_AT_ONCE // image.width, 1)):
            rows = slice(first, first + max(PIXELS_AT_ONCE // image.width, 1))
            values = image.values[:, rows].reshape(number, -1)
            if image.valid is not None:
                values = values[:, image.valid[rows].ravel()]
            size = values.shape[1]
            if not size:
                continue
            values = values.astype(np.float64)
            # merged with those before, because sums of squares of large values would lose digits
            own = values.mean(1)
            squares += ((values - own[:, None]) ** 2).sum(1) + (own - mean) ** 2 * count * size / (count + size)
            mean += (own - mean) * size / (count + size)
            count += size
            low, high = np.minimum(low, values.min(1)), np.maximum(high, values.max(1))
        if progress is not None:
            progress(step)
    if not count:
        raise DataError(f"no image of {data.source} has a pixel with data")
    std = np.sqrt(squares / count)
    constant = [str(band) for band, one in zip(data.bands, std, strict=True) if not one > 0]
    if constant:
        raise DataError(
            f"the bands {', '.join(constant)} of {data.source} have the same value everywhere: leave them out (--bands)"
        )
    return BandStatistics(
        bands=tuple(data.bands),
        dtype=str(data.band_dtype),
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        minimum=tuple(low.tolist()),
        maximum=tuple(high.tolist()),
        pixels=count,
    )


def read_statistics(folder: Path) -> BandStatistics | None:
    """Read the statistics that a folder keeps, or return None if it has none.

    Raises:
        DataError: if the file is damaged.
    """
    path = folder / STATISTICS_FILE
    if not path.exists():
        return None
    try:
        check_readable(path)
        if path.stat().st_size > LONGEST_FILE:
            raise ValueError("it is too long")
        return _parsed(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(
            f"{path} is damaged ({' '.join(str(error).split())[:100]}): delete it, or write it again with check-data "
            "--statistics"
        ) from None


def _parsed(fields: Any) -> BandStatistics:
    bands = tuple(fields["bands"])
    if not bands or not all(type(band) is int and band >= 1 for band in bands):
        raise ValueError("bands must be numbers from 1 on")
    if fields["dtype"] not in DTYPES:
        raise ValueError(f"unknown dtype {fields['dtype']!r}")
    numbers = {name: tuple(float(value) for value in fields[name]) for name in ("mean", "std", "minimum", "maximum")}
    for name, values in numbers.items():
        if len(values) != len(bands) or not all(map(math.isfinite, values)):
            raise ValueError(f"{name} must be {len(bands)} finite numbers")
    if min(numbers["std"]) <= 0:
        raise ValueError("std must be positive")
    return BandStatistics(bands, fields["dtype"], **numbers, pixels=int(fields["pixels"]))


__all__ = ["STATISTICS_FILE", "BandStatistics", "band_statistics", "read_statistics"]
