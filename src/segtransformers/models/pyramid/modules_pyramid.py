# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Modules of the convolutional pyramid beside a plain ViT, which ViT-Adapter and ViT-CoMer share.

Sources: ViT-Adapter (https://arxiv.org/abs/2205.08534), `segmentation/mmseg_custom/models/backbones/adapter_modules.py`
of czczup/ViT-Adapter; ViT-CoMer (https://arxiv.org/abs/2403.07392).
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from ..layers.deformable_attention import DeformableAttention, SamplingGeometry
from ..layers.drop_path import DropPath
from ..layers.token_grid import Grid, split_levels
from .configuration_pyramid import PyramidConfig


def _conv_norm_relu(in_channels: int, out_channels: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    ]


class SpatialPrior(nn.Module):
    """Convolutional stem that gives feature maps of equal width at strides 4, 8, 16 and 32.

    Args:
        channels: channels of the stem; the deeper stages have 2, 4 and 4 times as many.
        hidden_size: channels of the four feature maps.
        num_channels: channels of the images.
    """

    def __init__(self, channels: int, hidden_size: int, num_channels: int = 3):
        super().__init__()
        self.stem = nn.Sequential(
            *_conv_norm_relu(num_channels, channels, stride=2),
            *_conv_norm_relu(channels, channels, stride=1),
            *_conv_norm_relu(channels, channels, stride=1),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        )
        self.conv2 = nn.Sequential(*_conv_norm_relu(channels, 2 * channels, stride=2))
        self.conv3 = nn.Sequential(*_conv_norm_relu(2 * channels, 4 * channels, stride=2))
        self.conv4 = nn.Sequential(*_conv_norm_relu(4 * channels, 4 * channels, stride=2))
        self.fc1 = nn.Conv2d(channels, hidden_size, kernel_size=1)
        self.fc2 = nn.Conv2d(2 * channels, hidden_size, kernel_size=1)
        self.fc3 = nn.Conv2d(4 * channels, hidden_size, kernel_size=1)
        self.fc4 = nn.Conv2d(4 * channels, hidden_size, kernel_size=1)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Map images `(B, num_channels, H, W)` to the stem's feature map `(B, channels, H / 4, W / 4)` and four feature
        maps `(B, hidden_size, h, w)`."""
        stem = self.stem(pixel_values)
        stage2 = self.conv2(stem)
        stage3 = self.conv3(stage2)
        stage4 = self.conv4(stage3)
        return stem, [self.fc1(stem), self.fc2(stage2), self.fc3(stage3), self.fc4(stage4)]


class ConvFeedForward(nn.Module):
    """Feed-forward network with a depthwise 3x3 convolution, shared by all levels, between its linear layers.

    Args:
        hidden_size: channels of input and output.
        ratio: hidden width over `hidden_size`.
    """

    def __init__(self, hidden_size: int, ratio: float):
        super().__init__()
        width = int(hidden_size * ratio)
        self.fc1 = nn.Linear(hidden_size, width)
        self.dwconv = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(width, hidden_size)

    def forward(self, tokens: torch.Tensor, grids: Sequence[Grid]) -> torch.Tensor:
        """Map `(B, sum(h * w), C)`, the levels of `grids` one after another, to the same shape."""
        levels = [self.dwconv(level).flatten(2).transpose(1, 2) for level in split_levels(self.fc1(tokens), grids)]
        return self.fc2(self.act(torch.cat(levels, dim=1)))


class DeformableCrossAttention(GradientCheckpointingLayer):
    """Deformable attention between normalized queries and values. Subclasses define the residual around it."""

    def __init__(self, config: PyramidConfig, num_levels: int):
        super().__init__()
        self.query_norm = nn.LayerNorm(config.hidden_size, eps=config.adapter_layer_norm_eps)
        self.feat_norm = nn.LayerNorm(config.hidden_size, eps=config.adapter_layer_norm_eps)
        self.attn = DeformableAttention(
            config.hidden_size,
            num_heads=config.deformable_num_heads,
            num_levels=num_levels,
            num_points=config.deformable_num_points,
            value_ratio=config.deformable_value_ratio,
        )

    def attend(self, query: torch.Tensor, value: torch.Tensor, geometry: SamplingGeometry) -> torch.Tensor:
        """Attend from `(B, queries, C)` to `(B, tokens, C)`; returns `(B, queries, C)`."""
        return self.attn(self.query_norm(query), self.feat_norm(value), geometry)


class Extractor(DeformableCrossAttention):
    """Add to the pyramid its deformable attention to other tokens, and then a feed-forward network.

    Args:
        num_levels: number of levels among the other tokens.
    """

    def __init__(self, config: PyramidConfig, num_levels: int):
        super().__init__(config, num_levels)
        self.ffn = None
        if config.use_conv_ffn:
            self.ffn = ConvFeedForward(config.hidden_size, config.conv_ffn_ratio)
            self.ffn_norm = nn.LayerNorm(config.hidden_size, eps=config.adapter_layer_norm_eps)
            self.drop_path = DropPath(config.adapter_drop_path_rate)

    def forward(
        self, pyramid: torch.Tensor, tokens: torch.Tensor, geometry: SamplingGeometry, grids: Sequence[Grid]
    ) -> torch.Tensor:
        """Return new pyramid tokens `(B, 16n + 4n + n, C)` from the old ones and the other tokens `(B, tokens, C)`."""
        pyramid = pyramid + self.attend(pyramid, tokens, geometry)
        if self.ffn is not None:
            pyramid = pyramid + self.drop_path(self.ffn(self.ffn_norm(pyramid), grids))
        return pyramid


def init_pyramid_weights(module: nn.Module) -> None:
    """Initialize convolutions and deformable attention as the originals do. For use in `_init_weights`."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, DeformableAttention):
        module.init_weights()


__all__ = [
    "ConvFeedForward",
    "DeformableCrossAttention",
    "Extractor",
    "SpatialPrior",
    "init_pyramid_weights",
]
