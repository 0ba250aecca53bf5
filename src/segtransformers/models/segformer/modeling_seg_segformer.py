# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""SegFormer's head (https://arxiv.org/abs/2105.15203) over any backbone.

It follows `mmseg/models/decode_heads/segformer_head.py` of MMSegmentation 0.27, which normalises every level and joins
the finest first. transformers' `SegformerDecodeHead` comes from SegFormer's own repository: its levels have a bias and
no norm and are joined the other way round, so it is another function of other tensors.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.upernet.modeling_upernet import UperNetConvModule

from ..segmentation.modeling_segmentation import BackboneForSemanticSegmentation, SegmentationClassifier
from .configuration_seg_segformer import SegSegformerConfig


class SegSegformerDecodeHead(nn.Module):
    """Brings all maps to one width and one size, and classifies each pixel by itself."""

    def __init__(self, config: SegSegformerConfig, in_channels: list[int]):
        super().__init__()
        width = config.hidden_size
        self.levels = nn.ModuleList(UperNetConvModule(channels, width, kernel_size=1) for channels in in_channels)
        self.fusion = UperNetConvModule(len(in_channels) * width, width, kernel_size=1)
        self.classifier = SegmentationClassifier(width, config.num_labels, config.classifier_dropout)

    def forward(self, feature_maps: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """From maps `(B, C, h, w)`, the finest first, to logits `(B, num_labels, h, w)` at its size."""
        maps = [level(map_) for level, map_ in zip(self.levels, feature_maps, strict=True)]
        size = maps[0].shape[2:]
        maps = [F.interpolate(map_, size=size, mode="bilinear", align_corners=False) for map_ in maps]
        return self.classifier(self.fusion(torch.cat(maps, dim=1)))


class SegSegformerForSemanticSegmentation(BackboneForSemanticSegmentation):
    """SegFormer's head over any backbone.

    Args:
        config: a [`SegSegformerConfig`].
    """

    config: SegSegformerConfig

    def build_decode_head(self, in_channels: list[int]) -> nn.Module:
        return SegSegformerDecodeHead(self.config, in_channels)


__all__ = ["SegSegformerForSemanticSegmentation"]
