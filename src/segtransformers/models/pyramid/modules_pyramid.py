# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The convolutional pyramid beside a plain ViT: what ViT-Adapter and ViT-CoMer share.

Sources: ViT-Adapter (https://arxiv.org/abs/2205.08534), `segmentation/mmseg_custom/models/backbones/adapter_modules.py`
of czczup/ViT-Adapter; ViT-CoMer (https://arxiv.org/abs/2403.07392).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.generic import maybe_autocast

from ...operators import FusedDeformableAttention
from ..optimize.convolutions import conv_norm_relu
from ..optimize.faster import in_inference_on_cpu, remembered
from ..trunk import DropPath, Grid
from .configuration_pyramid import PyramidConfig


def cropped_to_input(map_: torch.Tensor, stride: int, height: int, width: int) -> torch.Tensor:
    """Undo `padded_to_stride` on a feature map: `(B, C, ceil(height / stride), ceil(width / stride))`."""
    return map_[:, :, : math.ceil(height / stride), : math.ceil(width / stride)]


def _conv_norm_relu(in_channels: int, out_channels: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]


class ConvNormReluSequence(nn.Sequential):
    """What [`_conv_norm_relu`] gives, several times, and what else stands behind it."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        layers = iter(self)
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                norm, _ = next(layers), next(layers)
                features = conv_norm_relu(layer, norm, features)
            else:
                features = layer(features)
        return features


class SpatialPrior(nn.Module):
    """Convolutional stem that gives maps of equal width at strides 4, 8, 16 and 32.

    Args:
        channels: channels of the stem; the deeper stages have 2, 4 and 4 times as many.
        hidden_size: channels of the four maps.
    """

    def __init__(self, channels: int, hidden_size: int):
        super().__init__()
        self.stem = ConvNormReluSequence(
            *_conv_norm_relu(3, channels, stride=2),
            *_conv_norm_relu(channels, channels, stride=1),
            *_conv_norm_relu(channels, channels, stride=1),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        )
        self.conv2 = ConvNormReluSequence(*_conv_norm_relu(channels, 2 * channels, stride=2))
        self.conv3 = ConvNormReluSequence(*_conv_norm_relu(2 * channels, 4 * channels, stride=2))
        self.conv4 = ConvNormReluSequence(*_conv_norm_relu(4 * channels, 4 * channels, stride=2))
        self.fc1 = nn.Conv2d(channels, hidden_size, kernel_size=1)
        self.fc2 = nn.Conv2d(2 * channels, hidden_size, kernel_size=1)
        self.fc3 = nn.Conv2d(4 * channels, hidden_size, kernel_size=1)
        self.fc4 = nn.Conv2d(4 * channels, hidden_size, kernel_size=1)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """From `(B, 3, H, W)` the stem's map `(B, channels, H / 4, W / 4)` and four maps `(B, hidden_size, ., .)`."""
        stem = self.stem(pixel_values)
        if in_inference_on_cpu(stem):
            # every map becomes tokens: with channels last from here on, they already lie as tokens do
            stem = stem.contiguous(memory_format=torch.channels_last)
        stage2 = self.conv2(stem)
        stage3 = self.conv3(stage2)
        stage4 = self.conv4(stage3)
        return stem, (self.fc1(stem), self.fc2(stage2), self.fc3(stage3), self.fc4(stage4))


@dataclass
class SamplingGeometry:
    """Where a deformable attention's queries stand and what it samples from.

    Attributes:
        reference_points: `(1, queries, 1, 2)` float32, (x, y) in the unit square.
        shapes: `(h, w)` of every value level; `shapes_tensor` and `level_starts` are the same for compiled kernels.
    """

    reference_points: torch.Tensor
    shapes: list[Grid]
    shapes_tensor: torch.Tensor
    level_starts: torch.Tensor

    @classmethod
    def build(cls, query_grids: list[Grid], value_grids: list[Grid], device: torch.device) -> "SamplingGeometry":
        """Queries at the pixel centres of `query_grids`, values from `value_grids`.

        The centres are float32 in every mode, because the original computes them so. That of the last sizes is kept:
        a forward pass then sends nothing to the device.
        """
        return _sampling_geometry(tuple(query_grids), tuple(value_grids), device)

    @classmethod
    def _build(
        cls, query_grids: Sequence[Grid], value_grids: Sequence[Grid], device: torch.device
    ) -> "SamplingGeometry":
        points = []
        for height, width in query_grids:
            # torch.compile would make a graph for every size of a linspace
            y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
            x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
            points.append(torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1).flatten(0, 1))
        starts = [0]
        for height, width in value_grids[:-1]:
            starts.append(starts[-1] + height * width)
        return cls(
            reference_points=torch.cat(points)[None, :, None],
            shapes=list(value_grids),
            shapes_tensor=torch.tensor(value_grids, dtype=torch.long, device=device),
            level_starts=torch.tensor(starts, dtype=torch.long, device=device),
        )

    def to(self, device: torch.device, non_blocking: bool = False) -> "SamplingGeometry":
        """On a device, for hooks that move the arguments of a module."""
        points, shapes, starts = (
            tensor.to(device, non_blocking=non_blocking)
            for tensor in (self.reference_points, self.shapes_tensor, self.level_starts)
        )
        return SamplingGeometry(points, self.shapes, shapes, starts)


@remembered(maxsize=32)
def _sampling_geometry(
    query_grids: tuple[Grid, ...], value_grids: tuple[Grid, ...], device: torch.device
) -> SamplingGeometry:
    return SamplingGeometry._build(query_grids, value_grids, device)


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention with its projections.

    Args:
        hidden_size: channels of queries, values and output.
        num_heads, num_levels, num_points: points are per head and level.
        value_ratio: width of the projected values over `hidden_size`.
    """

    def __init__(self, hidden_size: int, num_heads: int, num_levels: int, num_points: int, value_ratio: float):
        super().__init__()
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        value_size = int(hidden_size * value_ratio)
        self.sampling_offsets = nn.Linear(hidden_size, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(hidden_size, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(hidden_size, value_size)
        self.output_proj = nn.Linear(value_size, hidden_size)
        self.attn = FusedDeformableAttention()

    def forward(self, query: torch.Tensor, value: torch.Tensor, geometry: SamplingGeometry) -> torch.Tensor:
        """Attend from `query` `(B, queries, C)` to `value` `(B, tokens, C)`; gives `(B, queries, C)`."""
        value = self.value_proj(value).unflatten(2, (self.num_heads, -1))
        with maybe_autocast(query.device.type, enabled=False):  # offsets in half precision are off by parts of pixels
            offsets = self.sampling_offsets(query.to(self.sampling_offsets.weight.dtype))
        offsets = offsets.unflatten(2, (self.num_heads, self.num_levels, self.num_points, 2))
        logits = self.attention_weights(query).unflatten(2, (self.num_heads, self.num_levels, self.num_points))
        output = self.attn(
            value,
            geometry.shapes_tensor,
            geometry.shapes,
            geometry.level_starts,
            geometry.reference_points,
            offsets,
            logits,
        )
        return self.output_proj(output)

    @torch.no_grad()
    def init_weights(self) -> None:
        """As Deformable DETR: point p of head m looks p + 1 pixels into direction m of a ring, with equal weights."""
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        ring = directions[:, None, None] * steps[:, None]  # (heads, 1, points, 2)
        init.zeros_(self.sampling_offsets.weight)
        init.copy_(self.sampling_offsets.bias, ring.expand(-1, self.num_levels, -1, -1).flatten())
        init.zeros_(self.attention_weights.weight)
        init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            init.xavier_uniform_(projection.weight)
            init.zeros_(projection.bias)


class ConvFeedForward(nn.Module):
    """Feed-forward network with one depthwise 3x3 convolution, shared by the levels, between its linear layers.

    Args:
        hidden_size: channels in and out.
        ratio: hidden width over `hidden_size`.
    """

    def __init__(self, hidden_size: int, ratio: float):
        super().__init__()
        width = int(hidden_size * ratio)
        self.fc1 = nn.Linear(hidden_size, width)
        self.dwconv = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(width, hidden_size)

    def forward(self, tokens: torch.Tensor, grids: list[Grid]) -> torch.Tensor:
        """From and to `(B, sum(h * w), C)`, the levels of `grids` one after another."""
        levels = [self.dwconv(level).flatten(2).transpose(1, 2) for level in split_levels(self.fc1(tokens), grids)]
        return self.fc2(self.act(torch.cat(levels, dim=1)))  # as they lie in memory


class DeformableCrossAttention(GradientCheckpointingLayer):
    """Deformable attention between normalised queries and values. Subclasses say what becomes of its output."""

    def __init__(self, config: PyramidConfig, num_levels: int):
        super().__init__()
        self.query_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feat_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = DeformableAttention(
            config.hidden_size,
            num_heads=config.deformable_num_heads,
            num_levels=num_levels,
            num_points=config.deformable_num_points,
            value_ratio=config.deformable_value_ratio,
        )

    def attend(self, query: torch.Tensor, value: torch.Tensor, geometry: SamplingGeometry) -> torch.Tensor:
        """From `(B, queries, C)` and `(B, tokens, C)` to `(B, queries, C)`."""
        return self.attn(self.query_norm(query), self.feat_norm(value), geometry)


class Extractor(DeformableCrossAttention):
    """Adds to the pyramid what deformable attention reads from other tokens, and then a feed-forward network.

    Args:
        num_levels: of the tokens that are read.
    """

    def __init__(self, config: PyramidConfig, num_levels: int):
        super().__init__(config, num_levels)
        self.ffn = None
        if config.use_conv_ffn:
            self.ffn = ConvFeedForward(config.hidden_size, config.conv_ffn_ratio)
            self.ffn_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
            self.drop_path = DropPath(config.drop_path_rate)

    def forward(
        self, pyramid: torch.Tensor, tokens: torch.Tensor, geometry: SamplingGeometry, grids: list[Grid]
    ) -> torch.Tensor:
        """From pyramid tokens `(B, 16n + 4n + n, C)` and the tokens to read `(B, tokens, C)` to pyramid tokens."""
        pyramid = pyramid + self.attend(pyramid, tokens, geometry)
        if self.ffn is not None:
            pyramid = pyramid + self.drop_path(self.ffn(self.ffn_norm(pyramid), grids))
        return pyramid


def split_levels(pyramid: torch.Tensor, grids: list[Grid]) -> list[torch.Tensor]:
    """Pyramid tokens `(B, sum(h * w), C)` as one map `(B, C, h, w)` for each of `grids`."""
    levels = pyramid.transpose(1, 2).split([height * width for height, width in grids], dim=2)
    return [level.unflatten(2, grid) for level, grid in zip(levels, grids, strict=True)]


def resized(map_: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """A map `(B, C, h, w)` at another size, bilinearly, align_corners False."""
    if tuple(map_.shape[2:]) == tuple(size):
        return map_
    return F.interpolate(map_, size=tuple(size), mode="bilinear", align_corners=False)


def init_pyramid_weights(module: nn.Module) -> None:
    """Initialise convolutions and deformable attention as the originals do. For use in `_init_weights`."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, DeformableAttention):
        module.init_weights()


__all__ = [
    "ConvFeedForward",
    "DeformableAttention",
    "DeformableCrossAttention",
    "DropPath",
    "Extractor",
    "SamplingGeometry",
    "SpatialPrior",
    "cropped_to_input",
    "init_pyramid_weights",
    "resized",
    "split_levels",
]
