# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Tiled, compressed GeoTIFF files, written by rows of tiles and read back, so that a full disk is noticed.

The same values give the same bytes.
"""

import contextlib
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np

from .raster import RasterError, in_one_line

TILE = 256  # pixels
CACHE_BYTES = 64 << 20  # of blocks that GDAL holds
STEPS = 254  # a probability p is stored in 8 bits as round(254 * p), and 255 is nodata
LEAST_OVERVIEW = 512  # pixels of the longer side of the smallest overview
INSTALL = "rasterio is needed to write GeoTIFF files: pip install 'segtransformers[geo]'"


class WriteError(OSError):
    """A file of results cannot be written, for example because the disk is full."""


@dataclass(frozen=True)
class GeoTiffLayout:
    """The facts of a GeoTIFF file.

    Attributes:
        bands, height, width: size.
        dtype: "uint8", "uint16", "float16" or "float32". GDAL stores float16 as float32 with 16 bits.
        nodata: the value of pixels without data.
        crs, transform: of rasterio, or None.
        descriptions: name of each band.
        class_names: names of the values of a label map. They are stored in the file's tags and in an `.aux.xml` file
            beside it, where GDAL and QGIS look for them.
        colours: `[red, green, blue]` of the values of a label map.
        scale: factor by which stored values become probabilities.
        level: of the compression, from 1 (fast) to 9.
        tags: further texts of the file, by name.
    """

    bands: int
    height: int
    width: int
    dtype: str
    nodata: float
    crs: Any = None
    transform: Any = None
    descriptions: Sequence[str] = ()
    class_names: Mapping[int, str] | None = None
    colours: Sequence[Sequence[int]] | None = None
    scale: float = 1.0
    level: int = 6
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def numpy_dtype(self) -> str:
        return "float32" if self.dtype == "float16" else self.dtype

    def profile(self) -> dict[str, Any]:
        """Return the keywords of `rasterio.open`."""
        own: dict[str, Any] = {
            "driver": "GTiff",
            "count": self.bands,
            "height": self.height,
            "width": self.width,
            "dtype": self.numpy_dtype,
            "nodata": self.nodata,
            "tiled": True,
            "blockxsize": TILE,
            "blockysize": TILE,
            "compress": "deflate",
            "zlevel": self.level,
            "interleave": "band",
            "BIGTIFF": "IF_SAFER",
        }
        if self.dtype == "float16":
            own["NBITS"] = 16
        if self.crs is not None:
            own["crs"] = self.crs
        if self.transform is not None:
            own["transform"] = self.transform
        return own


def probability_layout(value_type: str) -> tuple[str, float, float]:
    """Return dtype, nodata and scale of probabilities stored as "uint8", "float16" or "float32"."""
    return ("uint8", 255.0, 1 / STEPS) if value_type == "uint8" else (value_type, float("nan"), 1.0)


def stored_probabilities(values: np.ndarray, valid: np.ndarray, value_type: str) -> np.ndarray:
    """Return probabilities `(bands, rows, width)` as they are stored, with nodata where `valid` is False."""
    if value_type == "uint8":
        stored = np.rint(values * np.float32(STEPS)).astype(np.uint8)
        return np.where(valid, stored, np.uint8(255))
    values = values.astype(np.float16).astype(np.float32) if value_type == "float16" else values.astype(np.float32)
    return np.where(valid, values, np.float32("nan"))


def write_geotiff(path: Path, layout: GeoTiffLayout, parts: Iterable[np.ndarray], overviews: str | None = None) -> None:
    """Write a GeoTIFF file.

    Args:
        path: a new file.
        layout: its facts.
        parts: `(bands, rows, width)` from top to bottom. All but the last have a multiple of `TILE` rows.
        overviews: resampling of the overviews, "nearest" or "average"; None makes none.

    Raises:
        RasterError: if rasterio is missing.
        WriteError: if the file cannot be written, for example to a full disk.
    """
    rasterio = needed_rasterio()
    sums: list[tuple[int, int, int]] = []  # first row, rows, and a checksum of each part
    with gdal_environment(rasterio):
        try:
            with rasterio.open(path, "w", **layout.profile()) as file:
                row = 0
                for part in parts:
                    rows = part.shape[1]
                    file.write(part, window=((row, row + rows), (0, layout.width)))
                    sums.append((row, rows, _checksum(part)))
                    row += rows
                _describe(file, layout)
            factors = _overview_factors(layout)
            if overviews is not None and factors:
                with rasterio.open(path, "r+") as file:
                    file.build_overviews(factors, rasterio.enums.Resampling[overviews])
            # GDAL does not report every error of the disk when it closes a file
            with rasterio.open(path) as file:
                for row, rows, checksum in sums:
                    if _checksum(file.read(window=((row, row + rows), (0, layout.width)))) != checksum:
                        raise WriteError(f"{path.name} was not written correctly: is the disk full?")
        except rasterio.errors.RasterioError as error:
            raise WriteError(f"cannot write {path.name}, is the disk full? {_reason(error)}") from None
    if layout.class_names is not None:
        Path(f"{path}.aux.xml").write_text(_class_names_xml(layout.class_names), encoding="utf-8")


def read_part(path: Path) -> np.ndarray:
    """Return all values `(bands, rows, width)` of a file that [`write_geotiff`] wrote.

    Raises:
        RasterError: if the file is damaged.
    """
    rasterio = needed_rasterio()
    with gdal_environment(rasterio):
        try:
            with rasterio.open(path) as file:
                return file.read()
        except rasterio.errors.RasterioError as error:
            raise RasterError(f"{path} is damaged: {_reason(error)}") from None


def read_tags(path: Path) -> dict[str, str]:
    """Return the texts of a GeoTIFF file by name, or an empty dictionary if it cannot be read as one."""
    rasterio = needed_rasterio()
    with gdal_environment(rasterio):
        try:
            with rasterio.open(path, driver="GTiff") as file:
                return file.tags()
        except rasterio.errors.RasterioError:
            return {}


def needed_rasterio() -> Any:
    """Import rasterio.

    Raises:
        RasterError: if it is not installed.
    """
    try:
        import rasterio
        import rasterio.enums
        import rasterio.features
    except ImportError:
        raise RasterError(INSTALL) from None
    return rasterio


@contextlib.contextmanager
def gdal_environment(rasterio: Any) -> Iterator[None]:
    """Set GDAL's cache to `CACHE_BYTES`, and let files without a coordinate system cause no warning."""
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        warnings.filterwarnings("ignore", message="'crs' was not provided", category=UserWarning)  # of pyogrio
        yield


def _describe(file: Any, layout: GeoTiffLayout) -> None:
    for band, description in enumerate(layout.descriptions, 1):
        file.set_band_description(band, description)
    if layout.tags:
        file.update_tags(**layout.tags)
    if layout.scale != 1:
        file.scales = (layout.scale,) * layout.bands
    if layout.class_names is not None:
        file.update_tags(1, **{f"class_{value}": name for value, name in layout.class_names.items()})
    if layout.colours is not None:
        colours = {value: (*map(int, colour), 255) for value, colour in enumerate(layout.colours)}
        colours[int(layout.nodata)] = (0, 0, 0, 0)
        file.write_colormap(1, colours)


def _class_names_xml(names: Mapping[int, str]) -> str:
    """Return the text of GDAL's file of auxiliary metadata for the names of the values from 0 on."""
    categories = "".join(
        f"      <Category>{escape(names.get(value, ''))}</Category>\n" for value in range(max(names) + 1)
    )
    return (
        '<PAMDataset>\n  <PAMRasterBand band="1">\n    <CategoryNames>\n'
        f"{categories}    </CategoryNames>\n  </PAMRasterBand>\n</PAMDataset>\n"
    )


def _overview_factors(layout: GeoTiffLayout) -> list[int]:
    side = max(layout.height, layout.width)
    factors: list[int] = []
    while side > LEAST_OVERVIEW:
        side = -(-side // 2)
        factors.append(2 ** (len(factors) + 1))
    return factors


def _checksum(values: np.ndarray) -> int:
    # NaN of any bits count as equal, because GDAL may change them
    clean = np.nan_to_num(values, nan=-1.0) if values.dtype.kind == "f" else values
    return zlib.crc32(clean.tobytes())


def _reason(error: BaseException) -> str:
    return in_one_line(error.__cause__ or error)


__all__ = [
    "TILE",
    "GeoTiffLayout",
    "WriteError",
    "gdal_environment",
    "needed_rasterio",
    "probability_layout",
    "read_part",
    "read_tags",
    "stored_probabilities",
    "write_geotiff",
]
