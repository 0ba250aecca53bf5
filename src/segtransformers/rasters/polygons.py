# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Polygons of the classes of a label raster, for GIS programs."""

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..files import complete_file
from .raster import RasterError, in_one_line
from .writing import WriteError, gdal_environment, needed_rasterio

POLYGONS_AT_ONCE = 20_000
INSTALL = "pyogrio is needed to write polygons: pip install 'segtransformers[geo]'"


def needed_pyogrio() -> Any:
    """Import pyogrio.

    Raises:
        RasterError: if it is not installed.
    """
    try:
        import pyogrio.raw
    except ImportError:
        raise RasterError(INSTALL) from None
    return pyogrio


def write_polygons(labels: Path, target: Path, class_names: Mapping[int, str]) -> int:
    """Write one polygon for each connected area of a class, with the fields `class` and `value`.

    Pixels are connected through their sides. GDAL holds the polygons in memory, while pixels are read by rows.

    Args:
        labels: a GeoTIFF file of labels, whose nodata pixels get no polygon.
        target: a GeoPackage file, which ends in `.gpkg`. It is replaced.
        class_names: name of each value.

    Returns:
        the number of polygons.

    Raises:
        RasterError: if rasterio or pyogrio is missing.
        WriteError: if the file cannot be written.
    """
    rasterio, pyogrio = needed_rasterio(), needed_pyogrio()
    count = 0
    with complete_file(target) as file, gdal_environment(rasterio), rasterio.open(labels) as raster:
        crs = None if raster.crs is None else raster.crs.to_wkt()
        found = rasterio.features.shapes(rasterio.band(raster, 1), connectivity=4, transform=raster.transform)
        for shapes, values in _groups(found, raster.nodata):
            names = np.array([class_names.get(value, str(value)) for value in values], object)
            try:
                pyogrio.raw.write(
                    file,
                    geometry=np.array(shapes, object),
                    field_data=[names, np.array(values, np.int32)],
                    fields=["class", "value"],
                    geometry_type="Polygon",
                    crs=crs,
                    append=count > 0,
                    layer=target.stem,
                    driver="GPKG",
                )
            except (pyogrio.errors.DataSourceError, pyogrio.errors.FeatureError, pyogrio.errors.GeometryError) as error:
                raise WriteError(f"cannot write {target.name}, is the disk full? {in_one_line(error)}") from None
            count += len(shapes)
        if count == 0 or pyogrio.read_info(file)["features"] != count:
            raise WriteError(f"{target.name} was not written correctly: is the disk full?")
    return count


def _groups(shapes: Any, nodata: float) -> Iterator[tuple[list[bytes], list[int]]]:
    """Yield polygons with data as WKB, with their values, in groups of limited size."""
    found: list[bytes] = []
    values: list[int] = []
    for geometry, value in shapes:
        if value == nodata:
            continue
        found.append(_wkb(geometry["coordinates"]))
        values.append(int(value))
        if len(found) == POLYGONS_AT_ONCE:
            yield found, values
            found, values = [], []
    if found:
        yield found, values


def _wkb(rings: Any) -> bytes:
    """Return the well-known binary of a polygon, from its rings of (x, y)."""
    parts = [struct.pack("<BII", 1, 3, len(rings))]
    for ring in rings:
        parts += [struct.pack("<I", len(ring)), np.asarray(ring, "<f8").tobytes()]
    return b"".join(parts)


__all__ = ["needed_pyogrio", "write_polygons"]
