# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""ViT-Adapter, ViT-CoMer, InternImage and Segmenter from MMSegmentation 0.x for Hugging Face Transformers.

Importing this package registers its models with transformers' auto classes.
"""

from .hub.registration import register
from .image_processing import SegmentationImageProcessor, SegmentationImageProcessorPil
from .inference.pipeline import SegmentationPipeline
from .models.internimage import InternImageBackbone, InternImageConfig
from .models.mask2former import SegMask2FormerConfig, SegMask2FormerForSemanticSegmentation
from .models.segformer import SegSegformerConfig, SegSegformerForSemanticSegmentation
from .models.segmenter import (
    SegmenterConfig,
    SegmenterForSemanticSegmentation,
    SegmenterViTBackbone,
    SegmenterViTConfig,
)
from .models.trunk import trunk_normalization
from .models.upernet import SegUperNetConfig, SegUperNetForSemanticSegmentation
from .models.vit_adapter import ViTAdapterBackbone, ViTAdapterConfig
from .models.vit_comer import ViTCoMerBackbone, ViTCoMerConfig
from .packaged import example_image_path, packaged_model_path
from .version import __version__

register()

__all__ = [
    "InternImageBackbone",
    "InternImageConfig",
    "SegMask2FormerConfig",
    "SegMask2FormerForSemanticSegmentation",
    "SegSegformerConfig",
    "SegSegformerForSemanticSegmentation",
    "SegUperNetConfig",
    "SegUperNetForSemanticSegmentation",
    "SegmentationImageProcessor",
    "SegmenterConfig",
    "SegmenterForSemanticSegmentation",
    "SegmenterViTBackbone",
    "SegmenterViTConfig",
    "SegmentationImageProcessorPil",
    "SegmentationPipeline",
    "ViTAdapterBackbone",
    "ViTAdapterConfig",
    "ViTCoMerBackbone",
    "ViTCoMerConfig",
    "__version__",
    "example_image_path",
    "packaged_model_path",
    "trunk_normalization",
]
