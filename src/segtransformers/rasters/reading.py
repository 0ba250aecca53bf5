# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Open a raster by what its first bytes say, not by the ending of its name."""

import os
from pathlib import Path

from ..escaping import printable
from ..files import check_readable
from .arrays import open_npy, open_npz
from .dicom import open_dicom
from .geotiff import open_geotiff
from .pillow import open_pillow
from .raster import Raster, RasterError

# of files that PIL does not read, or not whole
RASTER_ENDINGS = (".tif", ".tiff", ".jp2", ".npy", ".npz", ".dcm", ".dicom")
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JPEG_2000 = (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
_FIRST_BYTES = 132  # a DICOM file has its mark behind 128 bytes


def open_raster(file: str | os.PathLike) -> Raster:
    """Open a raster and read its header. Pixels are read by [`Raster.read`], a window at a time where the file allows.

    - GeoTIFF, COG, other TIFF and JPEG 2000: by windows, through rasterio (`pip install 'segtransformers[geo]'`).
      Pages of one size and type are bands, in order. Without rasterio, PIL reads TIFF files with up to three bands.
    - `.npy`, and `.npz` with one array or an array `image`: `(h, w)`, `(bands, h, w)` or `(h, w, bands)`, where the
      shorter of first and last axis counts the bands. Arrays are mapped, not read, if they are not compressed.
    - DICOM: a single slice, through pydicom (`pip install 'segtransformers[dicom]'`). Grey values are those after the
      file's rescale (Hounsfield units in a CT), and images whose smallest value is white are inverted.
    - PNG, JPEG and all else that PIL decodes, as a whole. They are turned as their EXIF data say.

    Raises:
        FileNotFoundError: if the file does not exist.
        RasterError: if the file is no raster, is damaged, or has a type or compression that cannot be read.
    """
    path = Path(file).expanduser()
    name = printable(path, 200)
    try:
        check_readable(path)
        if path.is_dir():
            raise RasterError(f"{name} is a folder: expected is the file of a raster")
        with open(path, "rb") as opened:
            start = opened.read(_FIRST_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RasterError(f"cannot read {name}: {error.strerror or error}") from None
    if not start:
        raise RasterError(f"cannot read {name} as a raster: the file is empty")
    if start.startswith(_TIFF + _JPEG_2000):
        return open_geotiff(path, name)
    if start.startswith(b"\x93NUMPY"):
        return open_npy(path, name)
    if start.startswith(b"PK\x03\x04"):
        return open_npz(path, name)
    if start[128:] == b"DICM":
        return open_dicom(path, name)
    return open_pillow(path, name)


__all__ = ["RASTER_ENDINGS", "open_raster"]
