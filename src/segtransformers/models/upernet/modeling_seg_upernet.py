# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""UperNet: Unified Perceptual Parsing for Scene Understanding (https://arxiv.org/abs/1807.10221).

The heads are transformers' own modules, which equal `mmseg/models/decode_heads/{uper_head,fcn_head}.py` of
MMSegmentation 0.20 to the last bit, apart from the original's dropout in front of the classifiers.
"""

from torch import nn
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

from ..modeling_segmentation import BackboneForSemanticSegmentation, SegmentationClassifier
from .configuration_seg_upernet import SegUperNetConfig


class SegUperNetDecodeHead(UperNetHead):
    """Pyramid pooling and feature pyramid, from the backbone's maps to logits at the finest map's size."""

    def __init__(self, config: SegUperNetConfig, in_channels: list[int]):
        super().__init__(config, in_channels)
        self.classifier = SegmentationClassifier(self.channels, config.num_labels, config.classifier_dropout)


class SegUperNetAuxiliaryHead(UperNetFCNHead):
    """A few convolutions on one of the backbone's maps."""

    def __init__(self, config: SegUperNetConfig, in_channels: list[int]):
        super().__init__(config, in_channels, in_index=config.auxiliary_in_index)
        self.classifier = SegmentationClassifier(self.channels, config.num_labels, config.classifier_dropout)


class SegUperNetForSemanticSegmentation(BackboneForSemanticSegmentation):
    """UperNet over any backbone.

    Args:
        config: a [`SegUperNetConfig`].
    """

    config: SegUperNetConfig

    def build_decode_head(self, in_channels: list[int]) -> nn.Module:
        return SegUperNetDecodeHead(self.config, in_channels)

    def build_auxiliary_head(self, in_channels: list[int]) -> nn.Module | None:
        return SegUperNetAuxiliaryHead(self.config, in_channels) if self.config.use_auxiliary_head else None


__all__ = ["SegUperNetForSemanticSegmentation"]
