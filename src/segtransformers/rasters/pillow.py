# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Rasters from image files that PIL decodes as a whole."""

import warnings
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
from PIL import ExifTags

from .arrays import ArrayRaster
from .raster import Raster, RasterError, in_one_line

_GEOTIFF_TAGS = (33550, 33922, 34264, 34735, 42113)  # scale, tie points, transform, keys, GDAL's nodata


def open_pillow(path: Path, name: str) -> Raster:
    """Decode an image file. Transparent pixels have no data, palettes are kept beside their indices.

    `profile["unread"]` says what PIL leaves out of a TIFF file, or is None.

    Raises:
        RasterError: if PIL cannot decode the file, or it has more pixels than PIL allows.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(path) as opened:
                unread = _unread(opened)
                driver = opened.format
                image = PIL.ImageOps.exif_transpose(opened)
                image.load()
    except PIL.Image.DecompressionBombError:
        most = 2 * (PIL.Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise RasterError(
            f"{name} has more than {most} million pixels: convert it to a tiled GeoTIFF, which is read by windows"
        ) from None
    except PIL.UnidentifiedImageError:
        raise RasterError(
            f"cannot read {name} as a raster: expected is a GeoTIFF, TIFF, JPEG 2000, .npy, .npz, DICOM or image file"
        ) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise RasterError(f"cannot read {name} as an image: {in_one_line(error)}") from None
    palette = None
    valid = None
    if image.mode == "P" and "transparency" not in image.info:
        palette = np.zeros((256, 3), np.uint8)
        colours = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)[:256]
        palette[: len(colours)] = colours
    elif image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    elif image.mode not in ("1", "L", "LA", "RGB", "RGBA", "F") and not image.mode.startswith("I"):
        image = image.convert("RGB")
    values = np.asarray(image)
    if values.dtype == bool:
        values = values.astype(np.uint8)
    values = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    if image.mode in ("LA", "RGBA"):
        values, valid = values[:-1], values[-1] != 0
    return ArrayRaster(name, values, valid, palette=palette, profile={"driver": driver, "unread": unread})


def _unread(image: PIL.Image.Image) -> str | None:
    """Return a reason why PIL does not read all of a TIFF file, or None."""
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return None
    bits = max(tags.get(ExifTags.Base.BitsPerSample, (8,)), default=8)
    if getattr(image, "n_frames", 1) > 1:
        return "it has several pages"
    if tags.get(ExifTags.Base.SamplesPerPixel, 1) > 3 or (bits > 8 and image.mode == "RGB"):
        return "PIL reads at most three bands of 8 bits"
    if any(tag in tags for tag in _GEOTIFF_TAGS):
        return "PIL does not read its georeference and nodata value"
    return None
