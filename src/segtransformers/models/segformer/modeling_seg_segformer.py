# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""SegFormer's head (https://arxiv.org/abs/2105.15203) over any backbone.

It follows `mmseg/models/decode_heads/segformer_head.py` of MMSegmentation 0.27, which normalizes every level and
concatenates the finest first. transformers' `SegformerDecodeHead` follows SegFormer's own repository: its levels have a
bias and no norm and are concatenated in the opposite order, so it has other parameters.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers.models.upernet.modeling_upernet import UperNetConvModule

from ..layers.resize import resize
from ..segmentation.modeling_segmentation import BackboneForSemanticSegmentation
from .configuration_seg_segformer import SegSegformerConfig


class SegSegformerDecodeHead(nn.Module):
    """Bring all feature maps to one width and one size, and classify each pixel by itself.

    Args:
        in_channels: channels of the feature maps, the finest first.
    """

    def __init__(self, config: SegSegformerConfig, in_channels: list[int]):
        super().__init__()
        width = config.hidden_size
        self.levels = nn.ModuleList(UperNetConvModule(channels, width, kernel_size=1) for channels in in_channels)
        self.fusion = UperNetConvModule(len(in_channels) * width, width, kernel_size=1)
        self.dropout = nn.Dropout2d(config.classifier_dropout)
        self.classifier = nn.Conv2d(width, config.num_labels, kernel_size=1)

    def forward(self, feature_maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Map feature maps `(B, C_i, h_i, w_i)`, the finest first, to logits `(B, num_labels, h_0, w_0)`."""
        size = feature_maps[0].shape[2:]
        levels = [
            resize(level(feature_map), size) for level, feature_map in zip(self.levels, feature_maps, strict=True)
        ]
        return self.classifier(self.dropout(self.fusion(torch.cat(levels, dim=1))))


class SegSegformerForSemanticSegmentation(BackboneForSemanticSegmentation):
    """SegFormer's head over any backbone.

    Args:
        config: a [`SegSegformerConfig`].
    """

    config: SegSegformerConfig

    def build_decode_head(self, in_channels: list[int]) -> nn.Module:
        return SegSegformerDecodeHead(self.config, in_channels)


__all__ = ["SegSegformerForSemanticSegmentation"]
