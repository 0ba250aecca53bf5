# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Images and label maps with any number of bands, read by windows from GeoTIFF, TIFF, NumPy, DICOM and image files."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .raster import Raster, RasterError
    from .reading import RASTER_ENDINGS, open_raster
else:
    __getattr__, __dir__ = lazy_names(
        __name__, {"raster": ("Raster", "RasterError"), "reading": ("RASTER_ENDINGS", "open_raster")}
    )

__all__ = ["RASTER_ENDINGS", "Raster", "RasterError", "open_raster"]
