# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""TIFF and JPEG 2000 files through rasterio. No other driver of GDAL is used: some of them open further files."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .pillow import open_pillow
from .raster import Raster, RasterError, in_one_line

MOST_BLOCK_BYTES = 512 << 20  # of one block, which GDAL decodes as a whole
CACHE_BYTES = 128 << 20  # of decoded blocks, in GDAL
DRIVERS = ("GTiff", "JP2OpenJPEG")
INSTALL = "pip install 'segtransformers[geo]'"


def open_geotiff(path: Path, name: str) -> Raster:
    """Open a TIFF or JPEG 2000 file.

    Raises:
        RasterError: see [`open_raster`].
    """
    try:
        import rasterio
    except ImportError:
        return _without_rasterio(path, name)
    environment = rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES, GDAL_MAX_DATASET_POOL_SIZE=8)
    opened: list[Any] = []
    try:
        with environment, warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            # a path object, because rasterio takes parts of a text such as zip+ and ! for addresses
            opened.append(_open(rasterio, path.resolve()))
            pages = opened[0].subdatasets
            if len(pages) > 1:
                opened.pop().close()
                _check_pages(pages, name)
                opened += [_open(rasterio, page) for page in pages]
            return GeoTiffRaster(name, opened, environment)
    except RasterError:
        _close(opened)
        raise
    except Exception as error:  # GDAL's own errors have no public class in rasterio
        _close(opened)
        if isinstance(error, MemoryError):
            raise
        raise RasterError(f"cannot read {name} as a TIFF: {_reason(error)}") from None


class GeoTiffRaster(Raster):
    """A raster in one or several pages of a TIFF file, opened with rasterio."""

    def __init__(self, name: str, pages: Sequence[Any], environment: Any):
        from rasterio.enums import ColorInterp, MaskFlags  # rasterio is optional

        first = pages[0]
        facts = {(page.height, page.width, page.count, page.dtypes) for page in pages}
        if len(facts) > 1:
            raise RasterError(
                f"{name} has {len(pages)} pages that differ in size or type: save the page that is meant as a file"
            )
        if len(set(first.dtypes)) > 1:
            raise RasterError(
                f"{name} has bands of several types ({', '.join(dict.fromkeys(first.dtypes))}): convert them to one, "
                "with gdal_translate -ot"
            )
        alpha = [band for band, meaning in enumerate(first.colorinterp) if meaning == ColorInterp.alpha]
        plain = [band for band in range(first.count) if band not in alpha]
        if not plain:
            raise RasterError(f"{name} holds nothing but transparency")
        self._source = [(page, band + 1) for page in pages for band in plain]  # rasterio counts bands from 1
        self._alpha = [(page, band + 1) for page in pages for band in alpha]
        self._pages, self._environment = list(pages), environment
        # a mask that is neither the nodata value nor a band of transparency, for all bands of a page
        self._masked = [page for page in pages if page.mask_flag_enums[plain[0]] == [MaskFlags.per_dataset]]
        known = {str(value): value for page in pages for value in page.nodatavals}  # NaN does not equal itself
        if len(known) > 1:
            listed = ", ".join(sorted(known))
            raise RasterError(f"{name} has bands with several nodata values ({listed}): give all bands one")
        palette = None
        if len(self._source) == 1 and first.colorinterp[plain[0]] == ColorInterp.palette:
            colours = first.colormap(plain[0] + 1)
            palette = np.zeros((256, 3), np.uint8)
            for value, colour in colours.items():
                if value < 256:
                    palette[value] = colour[:3]
        block = first.block_shapes[plain[0]]
        stored = first.profile
        super().__init__(
            name,
            (len(self._source), first.height, first.width),
            first.dtypes[0],
            nodata=next(iter(known.values())),
            crs=first.crs,
            transform=None if first.crs is None and first.transform.is_identity else first.transform,
            palette=palette,
            descriptions=[page.descriptions[band - 1] for page, band in self._source],
            profile={
                "driver": first.driver,
                "compress": stored.get("compress"),
                "blockysize": block[0],
                "blockxsize": block[1],
                "tiled": block[1] != first.width,
                "interleave": stored.get("interleave"),
            },
        )
        together = first.count if stored.get("interleave") == "pixel" else 1
        size = block[0] * block[1] * together * self.dtype.itemsize
        if size > MOST_BLOCK_BYTES:
            raise RasterError(
                f"{name} is stored in blocks of {block[0]} x {block[1]} pixels, each of which takes {size >> 20} MiB: "
                "store it in smaller tiles, with gdal_translate -co TILED=YES"
            )

    def _read(self, rows: slice, columns: slice, bands: Sequence[int]) -> np.ndarray:
        return self._of_pages(rows, columns, [self._source[band] for band in bands])

    def _mask(self, rows: slice, columns: slice) -> np.ndarray | None:
        if not self._alpha and not self._masked:
            return None
        valid = np.ones((rows.stop - rows.start, columns.stop - columns.start), bool)
        for band in self._of_pages(rows, columns, self._alpha) if self._alpha else ():
            valid &= band != 0
        for page in self._masked:
            valid &= self._guarded(lambda page=page: page.dataset_mask(window=(_pair(rows), _pair(columns)))) != 0
        return valid

    def _of_pages(self, rows: slice, columns: slice, sources: Sequence[tuple[Any, int]]) -> np.ndarray:
        window = _pair(rows), _pair(columns)
        if all(page is sources[0][0] for page, _ in sources):
            return self._guarded(lambda: sources[0][0].read([band for _, band in sources], window=window))
        return np.stack(
            [self._guarded(lambda page=page, band=band: page.read(band, window=window)) for page, band in sources]
        )

    def _guarded(self, read: Any) -> np.ndarray:
        if not self._pages:
            raise ValueError(f"{self.name} is closed")
        try:
            with self._environment:
                return read()
        except MemoryError:
            raise
        except Exception as error:  # see `open_geotiff`
            raise RasterError(f"cannot read {self.name}, it is damaged: {_reason(error)}") from None

    def close(self) -> None:
        _close(self._pages)


def _open(rasterio: Any, path: Any) -> Any:
    errors = []
    for driver in DRIVERS:
        try:
            return rasterio.open(path, driver=driver)
        except rasterio.errors.RasterioIOError as error:
            errors.append(error)
    raise errors[0]


def _close(opened: list[Any]) -> None:
    while opened:
        opened.pop().close()


def _check_pages(pages: Sequence[str], name: str) -> None:
    if len(pages) > 512:
        raise RasterError(f"{name} has {len(pages)} pages, and at most 512 are read as bands")


def _without_rasterio(path: Path, name: str) -> Raster:
    """Open with PIL a file that it reads whole: one page of 8 bits and at most three bands, without georeference."""
    try:
        raster = open_pillow(path, name)
    except RasterError as error:
        raise RasterError(f"{error}. rasterio reads more kinds of TIFF: {INSTALL}") from None
    if raster.profile["unread"]:
        raise RasterError(f"{name} needs rasterio, because {raster.profile['unread']}: {INSTALL}")
    return raster


def _pair(part: slice) -> tuple[int, int]:
    return part.start, part.stop


def _reason(error: BaseException) -> str:
    """Return the text of an error of GDAL with the cause that it was raised from."""
    cause = error.__cause__ or error.__context__
    text = in_one_line(error)
    if cause is not None and ("previous exception" in text or text.startswith("Read")):
        text = in_one_line(cause)
    if "codec" in text or "ompression" in text:
        text = f"{text.rstrip('.')}. Store it with another compression, with gdal_translate -co COMPRESS=DEFLATE"
    return text
