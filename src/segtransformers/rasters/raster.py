# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""An opened raster: facts of its header, and pixels by windows."""

import abc
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np

from ..escaping import printable

MOST_BYTES = 2 << 30  # of one read, and of a file that can only be decoded as a whole
MOST_SIDE = 1 << 20  # pixels
MOST_BANDS = 4096
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64")


class RasterError(ValueError):
    """A raster cannot be read. The message names the file and says what to do, in one line."""

    def __init__(self, message: str):
        super().__init__(printable(message, None))


class Raster(abc.ABC):
    """An opened raster, made by [`open_raster`]. It is a context manager, and no process or thread may share it.

    Attributes:
        name: name of the file in messages.
        bands: number of bands. A band of transparency is none: it is part of [`valid`].
        height, width: size in pixels.
        dtype: type of the values, one of `DTYPES`.
        nodata: the value that means "no data", or None.
        crs, transform: coordinate system and affine transform of rasterio, or None if the file has none.
        palette: the colour `(256, 3)` uint8 of each value, or None.
        descriptions: name of each band, or None for bands without one.
        profile: what a writer needs to repeat the layout: `driver`, `crs`, `transform`, `nodata`, and for a GeoTIFF
            the block size and the compression.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, int, int],
        dtype: Any,
        nodata: float | None = None,
        crs: Any = None,
        transform: Any = None,
        palette: np.ndarray | None = None,
        descriptions: Sequence[str | None] | None = None,
        profile: dict[str, Any] | None = None,
    ):
        self.name, self.dtype, self.nodata = name, np.dtype(dtype).newbyteorder("="), nodata
        self.bands, self.height, self.width = (int(side) for side in shape)
        self.crs, self.transform, self.palette = crs, transform, palette
        self.descriptions = tuple(descriptions or (None,) * self.bands)
        self.profile = {"driver": None, "crs": crs, "transform": transform, "nodata": nodata, **(profile or {})}
        check_facts(name, shape, self.dtype)

    def read(
        self, rows: slice | None = None, columns: slice | None = None, bands: Sequence[int] | None = None
    ) -> np.ndarray:
        """Read a window.

        Args:
            rows, columns: the window, within the raster. None means all.
            bands: indices of bands from 0 on, in the order wanted. None means all.

        Returns:
            values `(bands, height, width)` of the window, of the raster's dtype, in memory of their own.

        Raises:
            ValueError: if the window or a band lies outside the raster.
            RasterError: if the file is damaged, or the window needs more than `MOST_BYTES`.
        """
        rows, columns = self._window(rows, columns)
        chosen = self._chosen(bands)
        shape = len(chosen), rows.stop - rows.start, columns.stop - columns.start
        check_bytes(self.name, shape, self.dtype)
        return np.ascontiguousarray(self._read(rows, columns, chosen), self.dtype)

    def valid(
        self,
        rows: slice | None = None,
        columns: slice | None = None,
        bands: Sequence[int] | None = None,
        values: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return which pixels `(height, width)` of a window hold data, as booleans.

        A pixel has no data if one of these holds:
        - a band is NaN or infinite;
        - a band holds the nodata value, where this value cannot be measured, such as -9999;
        - all bands hold the nodata value, where it can: 0, and the largest value of an unsigned type, are common in
          single bands of dark and of overexposed pixels;
        - the file's mask or transparency says so.

        Args:
            rows, columns, bands: as for [`read`].
            values: what [`read`] returned for these, so that it is not read again.
        """
        rows, columns = self._window(rows, columns)
        chosen = self._chosen(bands)
        if values is None:
            values = self.read(rows, columns, chosen)
        mask = valid_values(values, self.nodata)
        file_mask = self._mask(rows, columns)
        return mask if file_mask is None else mask & file_mask

    @abc.abstractmethod
    def close(self) -> None:
        """Close the file. A closed raster cannot be read."""

    def __enter__(self):
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Raster({self.name!r}: {self.bands} bands {self.height} x {self.width}, {self.dtype})"

    @abc.abstractmethod
    def _read(self, rows: slice, columns: slice, bands: Sequence[int]) -> np.ndarray:
        """Return values `(bands, height, width)` of a window that lies within the raster."""

    def _mask(self, rows: slice, columns: slice) -> np.ndarray | None:
        """Return which pixels hold data by the file's mask or transparency; None if it has neither."""
        return None

    def _window(self, rows: slice | None, columns: slice | None) -> tuple[slice, slice]:
        found = []
        for part, side, axis in ((rows, self.height, "rows"), (columns, self.width, "columns")):
            part = slice(0, side) if part is None else part
            start = 0 if part.start is None else part.start
            stop = side if part.stop is None else part.stop
            if part.step not in (None, 1) or not 0 <= start < stop <= side:
                raise ValueError(f"{axis} {start} to {stop} are no window of {self.name}, which has {side} {axis}")
            found.append(slice(int(start), int(stop)))
        return found[0], found[1]

    def _chosen(self, bands: Sequence[int] | None) -> list[int]:
        chosen = list(range(self.bands)) if bands is None else [int(band) for band in bands]
        wrong = [band for band in chosen if not 0 <= band < self.bands]
        if wrong or not chosen:
            found = f"band {wrong[0]} is missing" if wrong else "no band was asked for"
            raise ValueError(f"{self.name} has {self.bands} bands, 0 to {self.bands - 1}: {found}")
        return chosen


def valid_values(values: np.ndarray, nodata: float | None) -> np.ndarray:
    """Return which pixels `(height, width)` of values `(bands, height, width)` hold data, as [`Raster.valid`] says."""
    valid = np.ones(values.shape[1:], bool)
    floating = values.dtype.kind == "f"
    for band in values if floating else ():
        valid &= np.isfinite(band)
    if nodata is None or (floating and not np.isfinite(nodata)):
        return valid
    measurable = nodata == 0 or (values.dtype.kind == "u" and nodata == np.iinfo(values.dtype).max)
    missing = np.full(values.shape[1:], measurable)
    # the nodata value of a float32 file may be written in double precision
    value = values.dtype.type(nodata) if floating else nodata
    for band in values:
        missing = missing & (band == value) if measurable else missing | (band == value)
    return valid & ~missing


def check_facts(name: str, shape: Sequence[int], dtype: np.dtype) -> None:
    """Refuse a size or type that no raster of ours has, before memory is taken for it.

    Raises:
        RasterError: naming what was found.
    """
    bands, height, width = shape
    if dtype.newbyteorder("=").name not in DTYPES:
        raise RasterError(f"{name} holds values of type {dtype}: expected are {', '.join(DTYPES)}")
    if not (1 <= bands <= MOST_BANDS and 1 <= height <= MOST_SIDE and 1 <= width <= MOST_SIDE):
        raise RasterError(
            f"{name} has {bands} bands of {height} x {width} pixels: expected are 1 to {MOST_BANDS} bands and sides of "
            f"1 to {MOST_SIDE} pixels"
        )


def check_bytes(name: str, shape: Sequence[int], dtype: np.dtype, part: str = "this window") -> None:
    """Refuse to hold more than `MOST_BYTES` at once.

    Raises:
        RasterError: naming `part` and its size.
    """
    needed = int(np.prod([int(side) for side in shape], dtype=object)) * dtype.itemsize
    if needed > MOST_BYTES:
        sides = " x ".join(str(side) for side in shape)
        raise RasterError(
            f"{name}: {part} of {sides} values ({dtype}) needs {needed / (1 << 30):.1f} GiB, and at most "
            f"{MOST_BYTES >> 30} GiB are read at once: read smaller windows (--tile), or cut the file into tiles"
        )


def in_one_line(error: BaseException) -> str:
    """Return the text of an error of a library in one line of at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."
