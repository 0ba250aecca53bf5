# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Masks drawn from the polygons of GeoJSON files (RFC 7946), as SpaceNet has them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..files import check_readable
from ..rasters import Raster
from ..rasters.geotiff import INSTALL
from .reading import DataError

POLYGON_ENDINGS = (".geojson",)
LARGEST_FILE = 256 << 20  # bytes
DEFAULT_CRS = "EPSG:4326"
_KINDS = ("Polygon", "MultiPolygon")


def polygon_values(path: Path, image: Raster, rows: slice | None = None, columns: slice | None = None) -> np.ndarray:
    """Draw the polygons of a file onto the pixels of a window of its image.

    A pixel whose centre lies in a polygon gets its integer property `class`, or 1 without one, and all others get 0.
    Later polygons cover earlier ones.

    Args:
        path: a GeoJSON file in its own coordinate system (`crs`), or in longitude and latitude.
        image: the raster whose pixels are labelled, with a coordinate system.

    Returns:
        `(height, width)` uint8.

    Raises:
        DataError: if the file is damaged, holds lines or points, or the image has no coordinate system.
    """
    try:
        from rasterio.errors import RasterioError
        from rasterio.features import rasterize
        from rasterio.windows import Window
        from rasterio.windows import transform as window_transform
    except ImportError:
        raise DataError(f"the polygons of {path} need rasterio: {INSTALL}") from None
    if image.crs is None or image.transform is None:
        raise DataError(
            f"the image {image.name} has no coordinate system, so that the polygons of {path} cannot be drawn onto it"
        )
    top, bottom = (0, image.height) if rows is None else (rows.start, rows.stop)
    left, right = (0, image.width) if columns is None else (columns.start, columns.stop)
    try:
        shapes = _shapes(_read(path), image.crs)
        if not shapes:
            return np.zeros((bottom - top, right - left), np.uint8)
        return rasterize(
            shapes,
            (bottom - top, right - left),
            transform=window_transform(Window(left, top, right - left, bottom - top), image.transform),
            dtype="uint8",
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, RasterioError) as error:
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        raise DataError(f"cannot read the polygons of {path}: {reason}") from None


def _read(path: Path) -> dict[str, Any]:
    check_readable(path)
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"the file has more than {LARGEST_FILE >> 20} MiB")
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.get("type") != "FeatureCollection":
        raise ValueError("expected is a FeatureCollection of GeoJSON")
    return content


def _shapes(content: dict[str, Any], crs: Any) -> list[tuple[dict[str, Any], int]]:
    """Return the polygons in the coordinate system `crs`, each with its class."""
    from rasterio.crs import CRS
    from rasterio.warp import transform_geom

    named = (content.get("crs") or {}).get("properties", {}).get("name", DEFAULT_CRS)
    own = CRS.from_user_input(named)
    shapes = []
    for feature in content["features"]:
        geometry = feature["geometry"]
        if geometry is None or not geometry.get("coordinates"):
            continue  # SpaceNet writes empty ones
        if geometry["type"] not in _KINDS:
            raise ValueError(f"it holds a {geometry['type']}, and only polygons can be drawn")
        value = (feature.get("properties") or {}).get("class", 1)
        if type(value) is not int or not 0 <= value <= 255:
            raise ValueError(f"the property class must be a whole number from 0 to 255, got {value!r:.40}")
        if own != crs:
            geometry = transform_geom(own, crs, geometry)
        shapes.append((geometry, value))
    return shapes


__all__ = ["POLYGON_ENDINGS", "polygon_values"]
