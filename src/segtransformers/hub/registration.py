# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Makes our classes known to transformers. The only file that touches its registries."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

from ..image_processing import SegmentationImageProcessor, SegmentationImageProcessorPil
from ..models.internimage import InternImageBackbone, InternImageConfig
from ..models.mask2former import SegMask2FormerConfig, SegMask2FormerForSemanticSegmentation
from ..models.segformer import SegSegformerConfig, SegSegformerForSemanticSegmentation
from ..models.segmenter import (
    SegmenterConfig,
    SegmenterForSemanticSegmentation,
    SegmenterViTBackbone,
    SegmenterViTConfig,
)
from ..models.upernet import SegUperNetConfig, SegUperNetForSemanticSegmentation
from ..models.vit_adapter import ViTAdapterBackbone, ViTAdapterConfig
from ..models.vit_comer import ViTCoMerBackbone, ViTCoMerConfig

BACKBONES: dict[type[PreTrainedConfig], type[PreTrainedModel]] = {
    InternImageConfig: InternImageBackbone,
    SegmenterViTConfig: SegmenterViTBackbone,
    ViTAdapterConfig: ViTAdapterBackbone,
    ViTCoMerConfig: ViTCoMerBackbone,
}
SEGMENTERS: dict[type[PreTrainedConfig], type[PreTrainedModel]] = {
    SegMask2FormerConfig: SegMask2FormerForSemanticSegmentation,
    SegSegformerConfig: SegSegformerForSemanticSegmentation,
    SegmenterConfig: SegmenterForSemanticSegmentation,
    SegUperNetConfig: SegUperNetForSemanticSegmentation,
}
IMAGE_PROCESSORS: dict[str, type] = {"torchvision": SegmentationImageProcessor, "pil": SegmentationImageProcessorPil}


def register() -> None:
    """Register configs, backbones and models. Doing it again, or after somebody took a name, is no error."""
    for config_class in (*BACKBONES, *SEGMENTERS):
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    for config_class, model_class in BACKBONES.items():
        AutoBackbone.register(config_class, model_class, exist_ok=True)
    for config_class, model_class in SEGMENTERS.items():
        AutoModelForSemanticSegmentation.register(config_class, model_class, exist_ok=True)
        AutoImageProcessor.register(config_class, image_processor_classes=IMAGE_PROCESSORS, exist_ok=True)
        # the image-segmentation pipeline looks class names up here before it says "not supported"
        MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[config_class.model_type] = model_class.__name__
