# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Rasters in the files of NumPy. Pickled objects in them are never loaded."""

import lzma
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from .raster import Raster, RasterError, check_bytes, check_facts, in_one_line

# of damaged files; zipfile raises RuntimeError for encrypted ones, and NumPy passes on errors of Python's parser
_ERRORS = (
    ValueError,
    TypeError,
    OSError,
    EOFError,
    OverflowError,
    SyntaxError,
    RuntimeError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)
_LOCAL_HEADER = 30  # bytes of a zip file's entry before its name


class ArrayRaster(Raster):
    """A raster whose values `(bands, height, width)` are an array, in memory or mapped."""

    def __init__(self, name: str, values: np.ndarray, valid: np.ndarray | None = None, **facts):
        values = values.view(np.uint8) if values.dtype.kind == "b" else values
        super().__init__(name, values.shape, values.dtype, **facts)
        self._values: np.ndarray | None = values
        self._valid = valid

    def _read(self, rows: slice, columns: slice, bands: Sequence[int]) -> np.ndarray:
        if self._values is None:
            raise ValueError(f"{self.name} is closed")
        return np.stack([self._values[band, rows, columns] for band in bands])

    def _mask(self, rows: slice, columns: slice) -> np.ndarray | None:
        return None if self._valid is None else self._valid[rows, columns]

    def close(self) -> None:
        self._values = self._valid = None


def open_npy(path: Path, name: str) -> Raster:
    """Map a `.npy` file."""
    try:
        with open(path, "rb") as file:
            shape, dtype, fortran = _read_header(file)
            _check(name, shape, dtype)
            offset = file.tell()
        return ArrayRaster(name, _bands_first(_mapped(path, offset, shape, dtype, fortran)), profile={"driver": "npy"})
    except _ERRORS as error:
        raise _unreadable(name, error) from None


def open_npz(path: Path, name: str) -> Raster:
    """Map the array of an `.npz` file if it is stored without compression, else decompress it."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [entry for entry in archive.namelist() if entry.endswith(".npy")]
            chosen = names[0] if len(names) == 1 else "image.npy"
            if chosen not in names:
                listed = ", ".join(entry.removesuffix(".npy") for entry in names[:8]) or "none"
                raise RasterError(f"{name} holds {len(names)} arrays ({listed}): expected is one, or one named image")
            entry = archive.getinfo(chosen)
            with archive.open(entry) as file:
                shape, dtype, fortran = _read_header(file)
                _check(name, shape, dtype)
                start = file.tell()
                size = int(np.prod(shape, dtype=object)) * dtype.itemsize
                if entry.file_size != start + size:
                    raise RasterError(f"{name} is damaged: its array has {entry.file_size - start} bytes, not {size}")
                if entry.compress_type == zipfile.ZIP_STORED:
                    offset = _data_offset(path, entry) + start
                    values = _mapped(path, offset, shape, dtype, fortran)
                else:
                    check_bytes(name, shape, dtype, "its compressed array")
                    values = np.empty(shape, dtype, order="F" if fortran else "C")
                    _fill(file, values.reshape(-1, order="A").view(np.uint8), name)
        return ArrayRaster(name, _bands_first(values), profile={"driver": "npz"})
    except _ERRORS as error:
        raise _unreadable(name, error) from None


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype, bool]:
    """Return shape, dtype and whether the order is Fortran's. The file then stands at the values."""
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version[0]}.{version[1]} of the format is unknown")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(file)
    return shape, dtype, fortran


def _check(name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if len(shape) not in (2, 3):
        raise RasterError(f"{name} is an array of shape {shape}: expected are (h, w), (bands, h, w) or (h, w, bands)")
    check_facts(name, _bands_first_shape(shape), np.dtype(np.uint8) if dtype.kind == "b" else dtype)


def _bands_first_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) == 2:
        return (1, *shape)
    return shape if shape[0] <= shape[2] else (shape[2], shape[0], shape[1])


def _bands_first(values: np.ndarray) -> np.ndarray:
    if values.ndim == 2:
        return values[None]
    return values if values.shape[0] <= values.shape[2] else values.transpose(2, 0, 1)


def _mapped(path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype, fortran: bool) -> np.ndarray:
    return np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")


def _data_offset(path: Path, entry: zipfile.ZipInfo) -> int:
    """Return the position of an entry's bytes in the file."""
    with open(path, "rb") as file:
        file.seek(entry.header_offset)
        header = file.read(_LOCAL_HEADER)
    return (
        entry.header_offset
        + _LOCAL_HEADER
        + int.from_bytes(header[26:28], "little")
        + int.from_bytes(header[28:30], "little")
    )


def _fill(file: IO[bytes], target: np.ndarray, name: str) -> None:
    position = 0
    while position < len(target):
        part = file.read(min(1 << 20, len(target) - position))
        if not part:
            raise RasterError(f"{name} is damaged: its array ends early")
        target[position : position + len(part)] = np.frombuffer(part, np.uint8)
        position += len(part)


def _unreadable(name: str, error: BaseException) -> RasterError:
    if isinstance(error, RasterError):
        return error
    return RasterError(f"cannot read {name} as an array of NumPy: {in_one_line(error)}")
