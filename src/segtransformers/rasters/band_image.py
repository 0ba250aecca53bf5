# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Images with any number of bands in memory."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .raster import Raster, RasterError, valid_values
from .reading import open_raster


@dataclass(frozen=True, eq=False)
class BandImage:
    """An image with any number of bands.

    Attributes:
        values: `(bands, height, width)`.
        valid: which pixels `(height, width)` hold data, or None if all do.
    """

    values: np.ndarray
    valid: np.ndarray | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, as of a PIL image."""
        return self.values.shape[2], self.values.shape[1]

    @property
    def height(self) -> int:
        return self.values.shape[1]

    @property
    def width(self) -> int:
        return self.values.shape[2]


def read_bands(
    raster: Raster,
    bands: Sequence[int] | None = None,
    rows: slice | None = None,
    columns: slice | None = None,
) -> BandImage:
    """Read a window of a raster.

    Args:
        raster: an opened raster.
        bands: numbers of the bands from 1 on, in the order wanted. None takes all.
        rows, columns: the window; None takes all.

    Raises:
        RasterError: if the raster lacks a band, or as [`Raster.read`].
    """
    indices = None if bands is None else [band - 1 for band in bands]
    if indices is not None and not all(0 <= index < raster.bands for index in indices):
        raise RasterError(
            f"{raster.name} has {raster.bands} bands, but the bands {', '.join(map(str, bands or ()))} are asked for"
        )
    values = raster.read(rows, columns, indices)
    valid = raster.valid(rows, columns, indices, values)
    return BandImage(values, None if valid.all() else valid)


def read_band_image(file: str | os.PathLike, bands: Sequence[int] | None = None) -> BandImage:
    """Read a whole raster file, see [`open_raster`] and [`read_bands`]."""
    with open_raster(file) as raster:
        return read_bands(raster, bands)


def as_band_image(image: Any, count: int) -> BandImage:
    """Return an image of `count` bands as a [`BandImage`].

    NaN and infinity are pixels without data.

    Args:
        image: a [`BandImage`]; an array or tensor `(bands, h, w)`, `(h, w, bands)` or, for one band, `(h, w)`; or a PIL
            image whose mode has that many channels.

    Raises:
        ValueError: if the image has another number of bands.
    """
    if isinstance(image, BandImage):
        values, valid = image.values, image.valid
    else:
        values, valid = np.asarray(image.cpu() if hasattr(image, "cpu") else image), None
        if values.ndim == 2:
            values = values[None]
        elif values.ndim == 3 and values.shape[0] != count and values.shape[2] == count:
            values = values.transpose(2, 0, 1)
    if values.ndim != 3 or values.shape[0] != count or 0 in values.shape:
        raise ValueError(
            f"the image must have {count} bands, ({count}, height, width), as the model was trained with, got an array "
            f"of shape {tuple(values.shape)}"
        )
    if values.dtype.kind == "f":
        finite = valid_values(values, None)
        valid = finite if valid is None else valid & finite
    return BandImage(values, None if valid is None or valid.all() else valid)


def filled(image: BandImage, fill: Sequence[float]) -> np.ndarray:
    """Return the values of an image, with a value of each band in the pixels without data.

    Args:
        fill: one number for each band. Integers round it.
    """
    if image.valid is None:
        return image.values
    values = image.values.copy()
    kind = values.dtype.kind
    for band, value in zip(values, fill, strict=True):
        if kind != "f":
            limits = np.iinfo(values.dtype)
            value = min(max(round(value), limits.min), limits.max)
        band[~image.valid] = value
    return values


def value_range(dtype: Any) -> float:
    """Return the number by which values of a type are divided: the largest value of an integer type up to 16 bits.

    1.0 for other types, whose values have no known range.
    """
    dtype = np.dtype(dtype)
    return float(np.iinfo(dtype).max) if dtype.kind in "iu" and dtype.itemsize <= 2 else 1.0


__all__ = ["BandImage", "as_band_image", "filled", "read_band_image", "read_bands", "value_range"]
