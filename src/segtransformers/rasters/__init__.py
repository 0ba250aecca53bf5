# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Images and label maps with any number of bands, read by windows from GeoTIFF, TIFF, NumPy, DICOM and image files."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .band_image import BandImage, read_band_image, read_bands
    from .raster import Raster, RasterError
    from .reading import RASTER_ENDINGS, open_raster
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "band_image": ("BandImage", "read_band_image", "read_bands"),
            "raster": ("Raster", "RasterError"),
            "reading": ("RASTER_ENDINGS", "open_raster"),
        },
    )

__all__ = [
    "BandImage",
    "RASTER_ENDINGS",
    "Raster",
    "RasterError",
    "open_raster",
    "read_band_image",
    "read_bands",
]
