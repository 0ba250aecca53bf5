# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The linear and multi-layer heads of DINOv2 (https://arxiv.org/abs/2304.07193) and DINOv3, over any backbone.

Behaviour follows `dinov2/eval/segmentation/models/decode_heads/linear_head.py` of facebookresearch/dinov2.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from ..layers.resize import resize
from ..segmentation.modeling_segmentation import BackboneForSemanticSegmentation
from .configuration_seg_linear import SegLinearConfig


class SegLinearDecodeHead(nn.Module):
    """Concatenate feature maps, normalize each channel over the batch, and classify each pixel by one linear layer.

    Args:
        in_channels: channels of the backbone's feature maps.
    """

    def __init__(self, config: SegLinearConfig, in_channels: list[int]):
        super().__init__()
        self.in_index = list(range(len(in_channels))) if config.in_index is None else list(config.in_index)
        self.resize_factors = config.resize_factors
        width = sum(in_channels[index] for index in self.in_index)
        self.dropout = nn.Dropout2d(config.classifier_dropout)
        self.batch_norm = nn.BatchNorm2d(width)
        self.classifier = nn.Conv2d(width, config.num_labels, kernel_size=1)

    def forward(self, feature_maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Map the backbone's feature maps `(B, C_i, h_i, w_i)` to logits `(B, num_labels, h, w)`.

        The logits have the size of the first feature map that is read, times its resize factor.
        """
        feature_maps = [feature_maps[index] for index in self.in_index]
        if self.resize_factors is not None:
            feature_maps = [
                _scaled(feature_map, float(factor))
                for feature_map, factor in zip(feature_maps, self.resize_factors, strict=True)
            ]
        size = feature_maps[0].shape[2:]
        features = torch.cat([resize(feature_map, size) for feature_map in feature_maps], dim=1)
        return self.classifier(self.batch_norm(self.dropout(features)))


def _scaled(feature_map: torch.Tensor, factor: float) -> torch.Tensor:
    """Resize by a factor: bilinearly from 1 on, by the mean of the covered pixels below."""
    if factor == 1:
        return feature_map
    if factor > 1:
        return F.interpolate(feature_map, scale_factor=factor, mode="bilinear", align_corners=False)
    size = [max(int(side * factor), 1) for side in feature_map.shape[2:]]  # a single token stays
    return F.interpolate(feature_map, size=size, mode="area")


class SegLinearForSemanticSegmentation(BackboneForSemanticSegmentation):
    """A linear classifier over any backbone, often a frozen one.

    Args:
        config: a [`SegLinearConfig`].
    """

    config: SegLinearConfig

    def build_decode_head(self, in_channels: list[int]) -> nn.Module:
        return SegLinearDecodeHead(self.config, in_channels)


__all__ = ["SegLinearForSemanticSegmentation"]
