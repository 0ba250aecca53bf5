# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Data sets of rasters: images with any number of bands, and tiles of large rasters that are read one by one."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from ..rasters import RASTER_ENDINGS, BandImage, Raster, RasterError, open_raster, read_bands
from .multi_label import MultiLabelRule
from .polygons import POLYGON_ENDINGS, polygon_values
from .reading import NO_CLASS, DataError, LabelRule, Mask, read_mask

ALL = "all"
LEAST_TILE = 32  # pixels
HELD_OUT = 10  # one of so many rasters, or rows of tiles, is held out


@dataclass(frozen=True)
class Tile:
    """A window of one pair of an image and a mask.

    Attributes:
        pair: index of the pair.
        rows, columns: the window; None is the whole image.
    """

    pair: int
    rows: slice | None = None
    columns: slice | None = None


class RasterRows:
    """Windows of image and mask files, with the methods of `FileRows` that a data set calls, and [`sample`].

    Attributes:
        images: the image files.
        mask_files: the mask of each image.
        tiles: the window of each sample.
        bands: numbers of the bands that are read, from 1 on, or None for RGB images.
        band_dtype: type of the values, or None for RGB images.
        takes_all: whether `bands` are all bands of the first image, so that no image may have more.
    """

    def __init__(
        self,
        images: Sequence[Path],
        mask_files: Sequence[Path],
        tiles: Sequence[Tile],
        bands: Sequence[int] | None,
        band_dtype: str | None,
        takes_all: bool = False,
    ):
        self.images, self.mask_files, self.tiles = list(images), list(mask_files), list(tiles)
        self.bands = None if bands is None else list(bands)
        self.band_dtype, self.takes_all = band_dtype, takes_all

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, index: int) -> dict[str, dict[str, Any]]:
        pair = self.tiles[index].pair
        files = {"image": self.images[pair], "mask": self.mask_files[pair]}
        return {column: {"path": str(path), "bytes": None} for column, path in files.items()}

    @property
    def masks(self) -> list[str]:
        """The mask files, in order."""
        return [str(path) for path in self.mask_files]

    def select(self, indices: Sequence[int]) -> "RasterRows":
        """Return the rows with these indices, in this order."""
        tiles = [self.tiles[index] for index in indices]
        return RasterRows(self.images, self.mask_files, tiles, self.bands, self.band_dtype, self.takes_all)

    def sample(self, index: int, rule: LabelRule | MultiLabelRule) -> "tuple[BandImage | PIL.Image.Image, np.ndarray]":
        """Return the image and the labels of a sample. Pixels of either without data have no class.

        Raises:
            DataError: if a file is damaged, if image and mask differ in size or position, if an image has other bands
                or another type than the first one, or no data at all, or if a label is no class.
        """
        tile = self.tiles[index]
        image_file, mask_file = self.images[tile.pair], self.mask_files[tile.pair]
        try:
            with _opened(image_file) as raster:
                labels = _labels(raster, mask_file, tile, rule)
                image = self._image(raster, tile)
        except RasterError as error:
            raise DataError(str(error)) from None
        if isinstance(image, BandImage) and image.valid is not None:
            if tile.rows is None and not image.valid.any():
                raise DataError(f"the image {image_file} has no data in any pixel: leave it out")
            labels[..., ~image.valid] = NO_CLASS
        return image, labels

    def _image(self, raster: Raster, tile: Tile) -> "BandImage | PIL.Image.Image":
        if self.bands is not None:
            if _kept_dtype(raster) != self.band_dtype:
                raise DataError(
                    f"{raster.name} holds values of type {raster.dtype}, but the first image {self.band_dtype}: all "
                    "images must have one type"
                )
            if self.takes_all and raster.bands > len(self.bands):
                raise DataError(
                    f"{raster.name} has {raster.bands} bands, but the first image {len(self.bands)}: name the bands "
                    "that all images have (--bands 1,2,3)"
                )
            image = read_bands(raster, self.bands, tile.rows, tile.columns)
            return BandImage(image.values.astype(self.band_dtype, copy=False), image.valid)
        if raster.dtype != np.uint8 or raster.bands not in (1, 3):
            raise DataError(
                f"{raster.name} has {raster.bands} bands of type {raster.dtype}, and RGB images have three of uint8: "
                "pass bands='all' or their numbers (--bands)"
            )
        values = raster.read(tile.rows, tile.columns)
        if raster.palette is not None:
            return PIL.Image.fromarray(raster.palette[values[0]])
        return PIL.Image.fromarray(values.transpose(1, 2, 0) if len(values) == 3 else values[0]).convert("RGB")


def _labels(image: Raster, mask_file: Path, tile: Tile, rule: LabelRule | MultiLabelRule) -> np.ndarray:
    """Return the labels of a tile."""
    name = str(mask_file)
    if mask_file.suffix.lower() in POLYGON_ENDINGS:
        return rule.apply(Mask(polygon_values(mask_file, image, tile.rows, tile.columns)), name)
    if tile.rows is None and mask_file.suffix.lower() not in RASTER_ENDINGS:
        mask = read_mask(mask_file, name)
        _check_size(image, mask.values.shape[:2], name)
        return rule.apply(mask, name)
    with _opened(mask_file) as raster:
        _check_size(image, (raster.height, raster.width), name)
        _check_position(image, raster)
        return labels_of_raster(raster, rule, tile.rows, tile.columns)


def raster_rows(
    images: Sequence[Path],
    masks: Sequence[Path],
    names: Sequence[str],
    bands: "Sequence[int] | str | None",
    tile: int | None,
) -> tuple[RasterRows, list[str]]:
    """Return the rows of files that are read as rasters, and the names of the samples.

    Args:
        images, masks, names: the files, and a name of each pair.
        bands: numbers of bands from 1 on, or `"all"`: those of the first image. None reads RGB images.
        tile: side of the tiles in pixels. They cover each raster without overlap; those at the right and the bottom
            may be smaller. None takes whole rasters.

    Raises:
        DataError: if a raster cannot be opened, or the first one lacks a band.
        ValueError: if the tile is too small.
    """
    chosen, dtype = (None, None) if bands is None else _bands_of(images[0], bands)
    facts = chosen, dtype, bands == ALL
    if tile is None:
        return RasterRows(images, masks, [Tile(pair) for pair in range(len(images))], *facts), list(names)
    if tile < LEAST_TILE:
        raise ValueError(f"tiles must have at least {LEAST_TILE} pixels a side, got {tile}")
    tiles, tile_names = [], []
    for pair, (path, name) in enumerate(zip(images, names, strict=True)):
        with _opened(path) as raster:
            height, width = raster.height, raster.width
        for top, left in itertools.product(range(0, height, tile), range(0, width, tile)):
            rows, columns = slice(top, min(top + tile, height)), slice(left, min(left + tile, width))
            tiles.append(Tile(pair, rows, columns))
            tile_names.append(f"{name}_{top}_{left}")
    return RasterRows(images, masks, tiles, *facts), tile_names


def _bands_of(path: Path, bands: "Sequence[int] | str") -> tuple[list[int], str]:
    """Return the numbers of the bands to read and the type of their values, by the first image."""
    with _opened(path) as raster:
        chosen = list(range(1, raster.bands + 1)) if bands == ALL else [int(band) for band in bands]
        if len(set(chosen)) != len(chosen) or not chosen or not all(1 <= band <= raster.bands for band in chosen):
            raise DataError(
                f"{raster.name} has {raster.bands} bands: the bands {', '.join(map(str, chosen))} cannot be read from "
                "it"
            )
        return chosen, _kept_dtype(raster)


def held_out_area(rows: RasterRows) -> list[int]:
    """Return the indices of samples to hold out of data without splits, which share no raster with the others.

    They are those of every tenth raster. Of a single raster, they are those of the lowest tenth of the rows of tiles.
    The list is empty for a single sample.
    """
    rasters = list(dict.fromkeys(tile.pair for tile in rows.tiles))
    if len(rasters) > 1:
        held = set(rasters[::HELD_OUT])
        return [index for index, tile in enumerate(rows.tiles) if tile.pair in held]
    tops = sorted({tile.rows.start for tile in rows.tiles if tile.rows is not None})
    if len(tops) < 2:
        return list(range(len(rows) - max(len(rows) // HELD_OUT, 1), len(rows))) if len(rows) > 1 else []
    lowest = set(tops[-max(len(tops) // HELD_OUT, 1) :])
    return [index for index, tile in enumerate(rows.tiles) if tile.rows is not None and tile.rows.start in lowest]


def labels_of_raster(
    raster: Raster, rule: LabelRule | MultiLabelRule, rows: slice | None = None, columns: slice | None = None
) -> np.ndarray:
    """Return the labels `(height, width)` uint8 of a window of a mask: class indices in one band, or colours in three.

    The nodata value of the file, and its transparent pixels, mean no class, unless the rule's `label_map` names the
    value.

    Raises:
        DataError: if the raster is no mask, or as [`LabelRule.apply`].
    """
    values = raster.read(rows, columns)
    if raster.dtype.kind == "f":
        raise DataError(f"the mask {raster.name} holds floating-point numbers: save whole numbers")
    if raster.bands not in (1, 3):
        raise DataError(
            f"the mask {raster.name} has {raster.bands} bands: expected is one with class indices, or three with "
            "colours"
        )
    label_map = rule.label_map if isinstance(rule, LabelRule) else None
    known = raster.nodata is not None and raster.nodata in (label_map or {})
    valid = np.ones(values.shape[1:], bool) if known else raster.valid(rows, columns, values=values)
    has_equal_channels = raster.bands == 3 and bool((values[:1] == values[1:]).all())
    if raster.bands == 1 or has_equal_channels:
        filled = values[0].astype(np.int64)
        if not valid.all():  # with a value that is allowed
            filled[~valid] = int(filled[valid][0]) if has_equal_channels and valid.any() else NO_CLASS
        mask = Mask(filled, raster.palette, has_equal_channels)
    else:
        colours = rule.colours if isinstance(rule, LabelRule) else None
        colour = next(iter(colours or {}), (0, 0, 0))
        mask = Mask(np.where(valid[..., None], values.transpose(1, 2, 0), np.array(colour, values.dtype)))
    labels = rule.apply(mask, raster.name)
    labels[..., ~valid] = NO_CLASS
    return labels


def _opened(path: Path) -> Raster:
    try:
        return open_raster(path)
    except FileNotFoundError:
        raise DataError(f"{path} was removed after the data set was loaded") from None
    except RasterError as error:
        raise DataError(str(error)) from None


def _kept_dtype(raster: Raster) -> str:
    """Return the type in which values are kept: float64 becomes float32."""
    return "float32" if raster.dtype == np.float64 else raster.dtype.name


def _check_size(image: Raster, size: tuple[int, int], name: str) -> None:
    if (image.height, image.width) != size:
        raise DataError(
            f"the image {image.name} is {image.width} x {image.height}, its mask {name} {size[1]} x {size[0]} (width x "
            "height): both must have the same size"
        )


def _check_position(image: Raster, mask: Raster) -> None:
    """Refuse a mask whose georeference places it more than half a pixel beside its image."""
    if image.transform is None or mask.transform is None or image.crs != mask.crs:
        return
    here, there = image.transform, mask.transform
    determinant = here.a * here.e - here.b * here.d  # not 0 of a transform that may be rotated
    for column, row in ((0, 0), (image.width, image.height)) if determinant else ():
        x = there.a * column + there.b * row + there.c - here.c
        y = there.d * column + there.e * row + there.f - here.f
        own = (here.e * x - here.b * y) / determinant, (here.a * y - here.d * x) / determinant
        off = max(abs(own[0] - column), abs(own[1] - row))
        if off > 0.5:
            raise DataError(
                f"the mask {mask.name} lies {off:.1f} pixels beside its image {image.name}, by their georeferences: "
                "cut both to the same area"
            )


__all__ = ["RasterRows", "held_out_area", "labels_of_raster", "raster_rows"]
