# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""ViT-Adapter, ViT-CoMer, InternImage and Segmenter from MMSegmentation 0.x for Hugging Face Transformers.

Importing this package registers its models with transformers' auto classes. Names are imported on first use, so the
import takes neither torch nor transformers.
"""

from typing import TYPE_CHECKING

from .hub.registration import register_automatically
from .lazy import lazy_names
from .packaged import example_image_path, packaged_model_path
from .version import __version__

if TYPE_CHECKING:
    from .conversion.published_model import published_model
    from .freed_memory import keep_freed_memory
    from .image_processing import SegmentationImageProcessor, SegmentationImageProcessorPil
    from .inference.pipeline import SegmentationPipeline
    from .models.input_channels import with_input_channels
    from .models.internimage import InternImageBackbone, InternImageConfig
    from .models.linear import SegLinearConfig, SegLinearForSemanticSegmentation
    from .models.mask2former import SegMask2FormerConfig, SegMask2FormerForSemanticSegmentation
    from .models.optimize import optimize_for_inference
    from .models.plain_vit import PlainViTBackbone, PlainViTConfig
    from .models.segformer import SegSegformerConfig, SegSegformerForSemanticSegmentation
    from .models.segmenter import (
        SegmenterConfig,
        SegmenterForSemanticSegmentation,
        SegmenterViTBackbone,
        SegmenterViTConfig,
    )
    from .models.trunk import trunk_normalization
    from .models.upernet import SegUperNetConfig, SegUperNetForSemanticSegmentation
    from .models.variants import (
        SegConvNextBackbone,
        SegConvNextConfig,
        SegResNetBackbone,
        SegResNetConfig,
        SegSwinBackbone,
        SegSwinConfig,
    )
    from .models.vit_adapter import ViTAdapterBackbone, ViTAdapterConfig
    from .models.vit_comer import ViTCoMerBackbone, ViTCoMerConfig
    from .models.vit_simple_pyramid import ViTSimplePyramidBackbone, ViTSimplePyramidConfig
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "conversion.published_model": ("published_model",),
            "freed_memory": ("keep_freed_memory",),
            "image_processing": ("SegmentationImageProcessor", "SegmentationImageProcessorPil"),
            "inference.pipeline": ("SegmentationPipeline",),
            "models.input_channels": ("with_input_channels",),
            "models.internimage": ("InternImageBackbone", "InternImageConfig"),
            "models.linear": ("SegLinearConfig", "SegLinearForSemanticSegmentation"),
            "models.mask2former": ("SegMask2FormerConfig", "SegMask2FormerForSemanticSegmentation"),
            "models.optimize": ("optimize_for_inference",),
            "models.plain_vit": ("PlainViTBackbone", "PlainViTConfig"),
            "models.segformer": ("SegSegformerConfig", "SegSegformerForSemanticSegmentation"),
            "models.segmenter": (
                "SegmenterConfig",
                "SegmenterForSemanticSegmentation",
                "SegmenterViTBackbone",
                "SegmenterViTConfig",
            ),
            "models.trunk": ("trunk_normalization",),
            "models.upernet": ("SegUperNetConfig", "SegUperNetForSemanticSegmentation"),
            "models.variants": (
                "SegConvNextBackbone",
                "SegConvNextConfig",
                "SegResNetBackbone",
                "SegResNetConfig",
                "SegSwinBackbone",
                "SegSwinConfig",
            ),
            "models.vit_adapter": ("ViTAdapterBackbone", "ViTAdapterConfig"),
            "models.vit_comer": ("ViTCoMerBackbone", "ViTCoMerConfig"),
            "models.vit_simple_pyramid": ("ViTSimplePyramidBackbone", "ViTSimplePyramidConfig"),
        },
        submodules=(
            "conversion",
            "datasets",
            "evaluation",
            "export",
            "hub",
            "inference",
            "metrics",
            "operators",
            "published",
            "rasters",
            "training",
            "visualization",
        ),
    )

register_automatically()

__all__ = [
    "InternImageBackbone",
    "InternImageConfig",
    "PlainViTBackbone",
    "PlainViTConfig",
    "SegConvNextBackbone",
    "SegConvNextConfig",
    "SegLinearConfig",
    "SegLinearForSemanticSegmentation",
    "SegMask2FormerConfig",
    "SegMask2FormerForSemanticSegmentation",
    "SegResNetBackbone",
    "SegResNetConfig",
    "SegSegformerConfig",
    "SegSegformerForSemanticSegmentation",
    "SegSwinBackbone",
    "SegSwinConfig",
    "SegUperNetConfig",
    "SegUperNetForSemanticSegmentation",
    "SegmentationImageProcessor",
    "SegmentationImageProcessorPil",
    "SegmentationPipeline",
    "SegmenterConfig",
    "SegmenterForSemanticSegmentation",
    "SegmenterViTBackbone",
    "SegmenterViTConfig",
    "ViTAdapterBackbone",
    "ViTAdapterConfig",
    "ViTCoMerBackbone",
    "ViTCoMerConfig",
    "ViTSimplePyramidBackbone",
    "ViTSimplePyramidConfig",
    "__version__",
    "example_image_path",
    "keep_freed_memory",
    "optimize_for_inference",
    "packaged_model_path",
    "published_model",
    "trunk_normalization",
    "with_input_channels",
]
