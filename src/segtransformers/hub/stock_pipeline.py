# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""transformers' pipeline "image-segmentation", for images of 16 bits, images with bands, and multi-label models."""

from typing import Any

from transformers import pipelines


class ImageSegmentationPipeline(pipelines.ImageSegmentationPipeline):
    """transformers' pipeline, which with our image processors loads images as everything else in this package does.

    transformers itself clips images of 16 bits to white before the image processor gets them. With other image
    processors nothing changes.

    For our binary and multi-label models, the masks follow the threshold of the config. transformers itself has no
    results for multi-label models: theirs have one mask for each class that occurs, and masks may overlap.
    """

    def preprocess(self, image: Any, subtask: str | None = None, timeout: float | None = None) -> Any:  # type: ignore[override]
        # transformers imports this module in the middle of its own
        from ..image_processing import load_image, processor_bands
        from ..inference.views import loaded

        if processor_bands(self.image_processor) is not None and self._has_our_processor():
            raster: Any = loaded(image, self.image_processor)
            processor: Any = self.image_processor
            inputs = processor(images=raster, return_tensors="pt").to(self.dtype)
            inputs["target_size"] = [(raster.height, raster.width)]
            return inputs
        if self._has_our_processor():
            image = load_image(image, timeout=timeout)
        return super().preprocess(image, subtask=subtask, timeout=timeout)

    def postprocess(self, model_outputs: Any, subtask: str | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        from ..image_processing import decision_of, label_map_classes
        from ..inference.pipeline import class_segments

        decision = decision_of(self.model.config)
        if decision.threshold is None or subtask not in (None, "semantic") or not self._has_our_processor():
            return super().postprocess(model_outputs, subtask=subtask, **kwargs)
        processor: Any = self.image_processor
        (labels,) = processor.post_process_semantic_segmentation(
            model_outputs,
            target_sizes=model_outputs["target_size"],
            threshold=decision.threshold,
            multi_label=decision.multi_label,
        )
        return class_segments(labels, label_map_classes(self.model.config))

    def _has_our_processor(self) -> bool:
        from ..image_processing import SegmentationImageProcessor, SegmentationImageProcessorPil

        return isinstance(self.image_processor, SegmentationImageProcessor | SegmentationImageProcessorPil)


__all__ = ["ImageSegmentationPipeline"]
