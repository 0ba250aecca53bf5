# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""transformers' pipeline "image-segmentation", for images of more than 8 bits, too."""

from typing import Any

from transformers import pipelines


class ImageSegmentationPipeline(pipelines.ImageSegmentationPipeline):
    """transformers' pipeline, which with our image processors loads images as everything else in this package does.

    transformers itself clips images of 16 bits to white before the image processor gets them. With other image
    processors nothing changes.
    """

    def preprocess(self, image: Any, subtask: str | None = None, timeout: float | None = None) -> Any:  # type: ignore[override]
        # transformers imports this module in the middle of its own
        from ..image_processing import SegmentationImageProcessor, SegmentationImageProcessorPil, load_image

        if isinstance(self.image_processor, SegmentationImageProcessor | SegmentationImageProcessorPil):
            image = load_image(image, timeout=timeout)
        return super().preprocess(image, subtask=subtask, timeout=timeout)


__all__ = ["ImageSegmentationPipeline"]
