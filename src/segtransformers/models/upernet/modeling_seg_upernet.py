# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""UperNet: Unified Perceptual Parsing for Scene Understanding (https://arxiv.org/abs/1807.10221).

The heads have the parameters of transformers' UperNet, which equals
`mmseg/models/decode_heads/{uper_head,fcn_head}.py` of MMSegmentation 0.20 to the last bit, apart from the original's
dropout before the classifiers.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers.models.upernet.modeling_upernet import UperNetConvModule, UperNetFCNHead

from ..layers.resize import resize
from ..segmentation.modeling_segmentation import BackboneForSemanticSegmentation
from .configuration_seg_upernet import SegUperNetConfig
from .upsampled_convolution import concatenate_resized, convolve_resized, is_called_plainly


class SegUperNetDecodeHead(nn.Module):
    """Pyramid pooling and a feature pyramid over the backbone's feature maps.

    Args:
        in_channels: channels of the feature maps, the finest first.
    """

    def __init__(self, config: SegUperNetConfig, in_channels: list[int]):
        super().__init__()
        width, self.align_corners = config.hidden_size, config.align_corners
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), UperNetConvModule(in_channels[-1], width, kernel_size=1))
            for scale in config.pool_scales
        )
        pooled_channels = in_channels[-1] + len(config.pool_scales) * width
        self.bottleneck = UperNetConvModule(pooled_channels, width, kernel_size=3, padding=1)
        self.lateral_convs = nn.ModuleList(
            UperNetConvModule(channels, width, kernel_size=1) for channels in in_channels[:-1]
        )
        self.fpn_convs = nn.ModuleList(
            UperNetConvModule(width, width, kernel_size=3, padding=1) for _ in in_channels[:-1]
        )
        self.fpn_bottleneck = UperNetConvModule(len(in_channels) * width, width, kernel_size=3, padding=1)
        self.dropout = nn.Dropout2d(config.classifier_dropout)
        self.classifier = nn.Conv2d(width, config.num_labels, kernel_size=1)

    def forward(self, feature_maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Map feature maps `(B, C_i, h_i, w_i)`, the finest first, to logits `(B, num_labels, h_0, w_0)`."""
        *finer, coarsest = feature_maps
        pooled = [pool(coarsest) for pool in self.psp_modules]
        merged = _conv_module_of_resized(self.bottleneck, [coarsest, *pooled], self.align_corners)
        pyramid = [merged]
        for lateral_conv, fpn_conv, feature_map in zip(
            reversed(self.lateral_convs), reversed(self.fpn_convs), reversed(finer), strict=True
        ):
            merged = lateral_conv(feature_map) + resize(merged, feature_map.shape[2:], self.align_corners)
            pyramid.insert(0, fpn_conv(merged))
        fused = _conv_module_of_resized(self.fpn_bottleneck, pyramid, self.align_corners)
        return self.classifier(self.dropout(fused))


def _conv_module_of_resized(
    module: UperNetConvModule, feature_maps: Sequence[torch.Tensor], align_corners: bool
) -> torch.Tensor:
    """Apply a convolution module to feature maps that are resized to the size of the first and concatenated.

    The resized tensor is made only where something but the module's own layers has to see it.
    """
    if type(module) is UperNetConvModule and is_called_plainly(module):
        return module.activation(module.batch_norm(convolve_resized(module.conv, feature_maps, align_corners)))
    return module(concatenate_resized(feature_maps, align_corners))


class SegUperNetAuxiliaryHead(UperNetFCNHead):
    """A few convolutions on one of the backbone's feature maps, for an auxiliary loss."""

    def __init__(self, config: SegUperNetConfig, in_channels: list[int]):
        super().__init__(config, in_channels, in_index=config.auxiliary_in_index)
        self.dropout = nn.Dropout2d(config.classifier_dropout)

    def forward(self, feature_maps: Sequence[torch.Tensor]) -> torch.Tensor:  # type: ignore[override]
        """Map the backbone's feature maps `(B, C_i, h_i, w_i)` to logits `(B, num_labels, h, w)`."""
        feature_map = feature_maps[self.in_index]
        features = self.convs(feature_map)
        if self.concat_input:
            features = self.conv_cat(torch.cat([feature_map, features], dim=1))
        return self.classifier(self.dropout(features))


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

    def _is_enlarged_by_resize(self, size: torch.Size) -> bool:
        return not self.config.align_corners


__all__ = ["SegUperNetForSemanticSegmentation"]
