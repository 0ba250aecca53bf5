# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Feature maps of ViT-Adapter, ViT-CoMer and InternImage with channels last on a CPU.

Tokens are feature maps whose channels come last in memory. Where all layers keep that order, nothing is transposed
between convolutions and token layers. On a CPU such a transposition costs more than much of the arithmetic.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..internimage.modeling_internimage import InternImageBackbone
from ..layers.resize import AddResized
from ..pyramid.modeling_pyramid import PyramidBackbone
from ..vit_comer.modeling_vit_comer import JoinLevels
from .dense_layers import FastAddResized
from .replacement import is_on_cpu, is_plain, linear_layer, replace_modules


class ChannelAffine(nn.Module):
    """A batch norm in evaluation mode as one multiplication and addition for each channel.

    Args:
        norm: with running statistics.
        inplace: whether to write to the input where no gradient is computed.
    """

    def __init__(self, norm: nn.BatchNorm2d, inplace: bool = False):
        super().__init__()
        self.inplace = inplace
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        self.register_buffer("scale", scale.detach()[:, None, None])
        self.register_buffer("shift", (norm.bias - norm.running_mean * scale).detach()[:, None, None])

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map `(B, C, h, w)` to the same shape."""
        is_written = self.inplace and not (torch.is_grad_enabled() and features.requires_grad)
        return torch.addcmul(self.shift, features, self.scale, out=features if is_written else None)


class DoublingConvolution(nn.Module):
    """A transposed 2x2 convolution with stride 2 as a matrix product: its kernels do not overlap.

    Args:
        upsample: transposed convolution.
    """

    def __init__(self, upsample: nn.ConvTranspose2d):
        super().__init__()
        taps = upsample.weight.detach().permute(2, 3, 1, 0)  # (2, 2, C_out, C_in)
        bias = None if upsample.bias is None else upsample.bias.detach().repeat(4)
        self.product = linear_layer(taps.flatten(0, 2).contiguous(), bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map `(B, C_in, h, w)` to `(B, C_out, 2 * h, 2 * w)`."""
        batch, _, height, width = features.shape
        pixels = self.product(features.permute(0, 2, 3, 1))
        pixels = pixels.view(batch, height, width, 2, 2, -1).transpose(2, 3)
        return pixels.reshape(batch, 2 * height, 2 * width, -1).permute(0, 3, 1, 2)


class JoinChannelsLast(JoinLevels):
    """[`JoinLevels`] of feature maps with channels last, whose pixels are rows of the result."""

    def forward(self, levels: Sequence[torch.Tensor]) -> torch.Tensor:
        """Map `(B, C, h, w)` of each level to `(B, sum(h * w), C)`."""
        return torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)


def use_channels_last(model: nn.Module) -> int:
    """Let pyramid backbones and InternImage on a CPU compute with channels last."""
    if not is_on_cpu(model):
        return 0
    count = 0
    backbones: list[Any] = [
        module for module in model.modules() if isinstance(module, (PyramidBackbone, InternImageBackbone))
    ]
    for backbone in backbones:
        is_internimage = isinstance(backbone, InternImageBackbone)
        parts = [backbone.embeddings, *backbone.stages] if is_internimage else [backbone]
        if parts[0].channels_last:  # it was optimized on its own
            continue
        count += 1
        for part in parts:
            part.channels_last = True
        for module in backbone.modules():
            if is_plain(module, nn.Conv2d):  # also the depthwise ones, whose inputs else are transposed and back
                module.to(memory_format=torch.channels_last)
        if is_internimage:
            continue
        replace_modules(backbone, lambda module: JoinChannelsLast() if is_plain(module, JoinLevels) else None)
        if is_plain(backbone.add_resized, AddResized):
            backbone.add_resized = FastAddResized(inplace=True)
        backbone.spatial_prior.stem.insert(0, ToChannelsLast())
        if is_plain(backbone.upsample, nn.ConvTranspose2d):
            backbone.upsample = DoublingConvolution(backbone.upsample)
        for index, norm in enumerate(backbone.norms):
            if is_plain(norm, nn.BatchNorm2d) and norm.track_running_stats:
                backbone.norms[index] = ChannelAffine(norm, inplace=True)
    return count


class ToChannelsLast(nn.Module):
    """Store a feature map with channels last."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map `(B, C, h, w)` to the same values."""
        return features.contiguous(memory_format=torch.channels_last)


__all__ = ["ChannelAffine", "DoublingConvolution", "use_channels_last"]
