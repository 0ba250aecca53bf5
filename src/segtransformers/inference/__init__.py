# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Inference on whole images: scales, mirrored views, sliding windows, confidence, and the pipeline."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .confidence import (
        SegmentedBand,
        segment_bands,
        segment_views_with_confidence,
        segment_with_confidence,
        uncertainty_maps,
    )
    from .pipeline import SegmentationPipeline
    from .protocol import InferenceProtocol
    from .raster_bands import RasterBand, segment_raster_bands
    from .raster_segmentation import ClassPixels, RasterJob, segment_raster
    from .segmentation import image_scores, segment_image, segment_views
    from .views import View, image_size, image_views, view_sizes
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "confidence": (
                "SegmentedBand",
                "segment_bands",
                "segment_views_with_confidence",
                "segment_with_confidence",
                "uncertainty_maps",
            ),
            "pipeline": ("SegmentationPipeline",),
            "protocol": ("InferenceProtocol",),
            "raster_bands": ("RasterBand", "segment_raster_bands"),
            "raster_segmentation": ("ClassPixels", "RasterJob", "segment_raster"),
            "segmentation": ("image_scores", "segment_image", "segment_views"),
            "views": ("View", "image_size", "image_views", "view_sizes"),
        },
    )

__all__ = [
    "ClassPixels",
    "InferenceProtocol",
    "RasterBand",
    "RasterJob",
    "SegmentationPipeline",
    "SegmentedBand",
    "View",
    "image_scores",
    "image_size",
    "image_views",
    "segment_bands",
    "segment_image",
    "segment_raster",
    "segment_raster_bands",
    "segment_views",
    "segment_views_with_confidence",
    "segment_with_confidence",
    "uncertainty_maps",
    "view_sizes",
]
