# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""UperNet: Unified Perceptual Parsing for Scene Understanding (https://arxiv.org/abs/1807.10221).

The heads have the parameters of transformers' own modules, which equal
`mmseg/models/decode_heads/{uper_head,fcn_head}.py` of MMSegmentation 0.20 to the last bit, apart from the original's
dropout in front of the classifiers.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.upernet.modeling_upernet import UperNetConvModule, UperNetFCNHead, UperNetHead

from ..optimize.convolutions import conv_norm_relu, folded
from ..pyramid.modules_pyramid import resized
from ..segmentation.modeling_segmentation import BackboneForSemanticSegmentation, SegmentationClassifier
from .configuration_seg_upernet import SegUperNetConfig
from .upsampled_convolution import UpsampledConvolution, upsampled_convolution


class SegUperNetConvModule(UperNetConvModule):
    """Convolution, batch norm and ReLU; with an [`UpsampledConvolution`] of maps that are brought to one size."""

    def forward(self, features: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
        """From `(B, ., h, w)`, or such maps of which the first has the size, to `(B, ., h, w)`."""
        if isinstance(features, torch.Tensor):
            return conv_norm_relu(self.conv, self.batch_norm, features)
        scale_and_shift = folded(self.conv, self.batch_norm, UpsampledConvolution)
        if scale_and_shift is None:
            return F.relu(self.batch_norm(self.conv(features)), inplace=True)
        scale, shift = scale_and_shift
        return F.relu(upsampled_convolution(features, self.conv.weight, shift, scale), inplace=True)


class SegUperNetDecodeHead(UperNetHead):
    """Pyramid pooling and feature pyramid, from the backbone's maps to logits at the finest map's size."""

    def __init__(self, config: SegUperNetConfig, in_channels: list[int]):
        super().__init__(config, in_channels)
        self.classifier = SegmentationClassifier(self.channels, config.num_labels, config.classifier_dropout)
        _take_over_convolutions(self)
        for block in (self.bottleneck, self.fpn_bottleneck):
            block.conv.__class__ = UpsampledConvolution

    def forward(self, feature_maps: Sequence[torch.Tensor]) -> torch.Tensor:  # type: ignore[override]
        """From maps `(B, ., h, w)`, the finest first, to logits `(B, num_labels, h, w)`."""
        *fine, coarsest = feature_maps
        map_ = self.bottleneck([coarsest, *(block(coarsest) for block in self.psp_modules.blocks)])
        outputs = [map_]
        for lateral, smooth, feature in zip(
            reversed(self.lateral_convs), reversed(self.fpn_convs), reversed(fine), strict=True
        ):
            enlarged, map_ = resized(map_, feature.shape[2:]), lateral(feature)
            map_ = map_ + enlarged if torch.is_grad_enabled() else map_.add_(enlarged)
            outputs.append(smooth(map_))
        return self.classifier(self.fpn_bottleneck(outputs[::-1]))


class SegUperNetAuxiliaryHead(UperNetFCNHead):
    """A few convolutions on one of the backbone's maps."""

    def __init__(self, config: SegUperNetConfig, in_channels: list[int]):
        super().__init__(config, in_channels, in_index=config.auxiliary_in_index)
        self.classifier = SegmentationClassifier(self.channels, config.num_labels, config.classifier_dropout)
        _take_over_convolutions(self)


def _take_over_convolutions(head: nn.Module) -> None:
    """Give transformers' blocks our `forward`."""
    for module in head.modules():
        if type(module) is UperNetConvModule:
            module.__class__ = SegUperNetConvModule


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
