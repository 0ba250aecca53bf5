# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""InternImage: Exploring Large-Scale Vision Foundation Models with Deformable Convolutions.

Source: https://arxiv.org/abs/2211.05778. Behaviour follows `segmentation/mmseg_custom/models/backbones/intern_image.py`
and, where it has more options, `classification/models/intern_image.py` of OpenGVLab/InternImage. FlashInternImage
(https://arxiv.org/abs/2401.06197) follows `segmentation/mmseg_custom/models/backbones/flash_intern_image.py` of
OpenGVLab/DCNv4.
"""

import math
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BackboneOutput
from transformers.utils import can_return_tuple

from ...operators import DeformableConvolutionV3, DeformableConvolutionV4
from ...operators.deformable_convolution import packed_width
from ..layers.drop_path import DropPath
from ..layers.hidden_states import hidden_states_selection, select_hidden_states
from ..layers.initialization import SegmentationModelMixin
from ..layers.input_checks import check_image_size
from ..layers.keywords import check_transformers_kwargs
from ..layers.precision import without_autocast
from .configuration_internimage import KERNEL_SIZE, InternImageConfig


def _channels_last(feature_map: torch.Tensor) -> torch.Tensor:
    return feature_map.permute(0, 2, 3, 1)


def _channels_first(features: torch.Tensor) -> torch.Tensor:
    return features.permute(0, 3, 1, 2)


def _contiguous(feature_map: torch.Tensor, channels_last: bool) -> torch.Tensor:
    return feature_map.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


class InternImageEmbeddings(nn.Module):
    """Two convolutions of stride 2, each with a norm: the stem."""

    def __init__(self, config: InternImageConfig):
        super().__init__()
        channels = config.embed_dim
        self.conv1 = nn.Conv2d(config.num_channels, channels // 2, kernel_size=3, stride=2, padding=1)
        self.norm1 = nn.LayerNorm(channels // 2, eps=config.layer_norm_eps)
        self.act = nn.GELU()
        self.conv2 = nn.Conv2d(channels // 2, channels, kernel_size=3, stride=2, padding=1)
        self.norm2 = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.channels_last = False  # memory format of the output

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """From `(B, num_channels, H, W)` to `(B, C, ceil(H / 4), ceil(W / 4))`."""
        features = self.act(self.norm1(_channels_last(self.conv1(pixel_values))))
        features = self.norm2(_channels_last(self.conv2(_channels_first(features))))
        return _contiguous(_channels_first(features), self.channels_last)


class InternImageDownsample(nn.Module):
    """Halve the size of a feature map and double its channels, between two stages."""

    def __init__(self, config: InternImageConfig, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, kernel_size=3, stride=2, padding=1, bias=False)
        self.norm = nn.LayerNorm(2 * channels, eps=config.layer_norm_eps)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        """From `(B, C, h, w)` to `(B, 2 * C, ceil(h / 2), ceil(w / 2))`."""
        return _channels_first(self.norm(_channels_last(self.conv(feature_map))))


class InternImageDeformableConvolution(nn.Module):
    """Deformable convolution v3 with its projections.

    Args:
        channels: of input and output.
        groups: parts of the channels, each with its own sampling points and weights.
    """

    def __init__(self, config: InternImageConfig, channels: int, groups: int):
        super().__init__()
        self.groups = groups
        self.offset_scale = float(config.offset_scale)
        self.remove_center = config.remove_center
        self.num_points = KERNEL_SIZE**2 - int(config.remove_center)
        side = config.depthwise_kernel_size
        self.depthwise = nn.Conv2d(channels, channels, kernel_size=side, padding=side // 2, groups=channels)
        self.depthwise_norm = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.act = nn.GELU()
        self.offset = nn.Linear(channels, groups * self.num_points * 2)
        self.mask = nn.Linear(channels, groups * self.num_points)
        self.softmax = nn.Softmax(dim=-1)
        self.center_gate = nn.Linear(channels, groups) if config.center_feature_scale else None
        self.input_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels, bias=config.output_bias)
        self.convolution = DeformableConvolutionV3()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """From and to `(B, h, w, C)`."""
        value = self.input_proj(features)
        guide = _channels_last(self.depthwise(_channels_first(features)))
        guide = self.act(self.depthwise_norm(guide))
        offset = without_autocast(self.offset, guide)
        mask = self.softmax(self.mask(guide).unflatten(3, (self.groups, self.num_points)))
        sampled = self.convolution(
            value,
            offset,
            mask.flatten(3).to(value.dtype),
            (KERNEL_SIZE, KERNEL_SIZE),
            (1, 1),
            (KERNEL_SIZE // 2, KERNEL_SIZE // 2),
            (1, 1),
            self.groups,
            self.offset_scale,
            self.remove_center,
        )
        if self.center_gate is not None:
            gate = self.center_gate(guide).sigmoid().to(value.dtype)
            gate = gate.repeat_interleave(value.shape[3] // self.groups, dim=3)
            sampled = sampled * (1 - gate) + value * gate
        return self.output_proj(sampled)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Start with no offsets, equal weights of all points, and gates half open."""
        for linear in (self.offset, self.mask, self.center_gate):
            if linear is not None:
                init.zeros_(linear.weight)
                init.zeros_(linear.bias)
        _init_projections(self.input_proj, self.output_proj)


def _init_projections(*projections: nn.Linear) -> None:
    for projection in projections:
        init.xavier_uniform_(projection.weight)
        if projection.bias is not None:
            init.zeros_(projection.bias)


class InternImageDeformableConvolutionV4(nn.Module):
    """Deformable convolution v4 with its projections. Its weights have no softmax, so they may have any sign and sum.

    Args:
        channels: of input and output.
        groups: parts of the channels, each with its own sampling points and weights.
    """

    def __init__(self, config: InternImageConfig, channels: int, groups: int):
        super().__init__()
        self.groups = groups
        self.offset_scale = float(config.offset_scale)
        self.remove_center = config.remove_center
        side = config.depthwise_kernel_size
        self.depthwise = None
        if side is not None:
            self.depthwise = nn.Conv2d(channels, channels, kernel_size=side, padding=side // 2, groups=channels)
        self.num_points = KERNEL_SIZE**2 - int(config.remove_center)
        self.offset_mask = nn.Linear(channels, packed_width(groups, self.num_points))
        self.input_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels, bias=config.output_bias)
        self.convolution = DeformableConvolutionV4()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """From and to `(B, h, w, C)`."""
        value = self.input_proj(features)
        guide = features
        if self.depthwise is not None:
            guide = _channels_last(self.depthwise(_channels_first(features)))
        sampled = self.convolution(
            value,
            without_autocast(self.offset_mask, guide),
            (KERNEL_SIZE, KERNEL_SIZE),
            (1, 1),
            (KERNEL_SIZE // 2, KERNEL_SIZE // 2),
            (1, 1),
            self.groups,
            self.offset_scale,
            self.remove_center,
        )
        return self.output_proj(sampled)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Start with no offsets and equal weights of all points, as DCNv3 does.

        The original starts with weights of zero. The norm after such a layer would divide by almost zero.
        """
        numbers = torch.zeros(self.offset_mask.out_features)
        by_group = numbers[: self.groups * self.num_points * 3].view(self.groups, -1)
        by_group[:, self.num_points * 2 :] = 1 / self.num_points
        init.zeros_(self.offset_mask.weight)
        init.copy_(self.offset_mask.bias, numbers)
        _init_projections(self.input_proj, self.output_proj)


class InternImageMLP(nn.Module):
    """Feed-forward network."""

    def __init__(self, config: InternImageConfig, channels: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, int(channels * config.mlp_ratio))
        self.act = nn.GELU()
        self.fc2 = nn.Linear(int(channels * config.mlp_ratio), channels, bias=config.mlp_output_bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """From and to `(..., C)`."""
        return self.fc2(self.act(self.fc1(features)))


class InternImageBranch(nn.Module):
    """Residual branch of a block: a layer with norms and a layer scale, dropped at random in training.

    Args:
        layer: from and to `(B, h, w, C)`.
        drop_path_rate: probability of dropping the branch.
    """

    def __init__(self, config: InternImageConfig, channels: int, layer: nn.Module, drop_path_rate: float):
        super().__init__()
        scale = config.layer_scale_init_value
        self.post_norm = config.post_norm
        self.norm = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        has_result_norm = config.res_post_norm and not config.post_norm and scale is None
        self.result_norm = nn.LayerNorm(channels, eps=config.layer_norm_eps) if has_result_norm else None
        self.gamma = nn.Parameter(torch.full((channels,), float(scale))) if scale is not None else None
        self.layer = layer
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """From and to `(B, h, w, C)`."""
        branch = self.norm(self.layer(features)) if self.post_norm else self.layer(self.norm(features))
        if self.result_norm is not None:
            branch = self.result_norm(branch)
        if self.gamma is not None:
            branch = self.gamma * branch
        return self.drop_path(branch)


class InternImageBlock(GradientCheckpointingLayer):
    """A deformable convolution and a feed-forward network, each added to its input."""

    def __init__(self, config: InternImageConfig, channels: int, groups: int, drop_path_rate: float):
        super().__init__()
        is_v4 = config.core_operator == "dcnv4"
        layer_class = InternImageDeformableConvolutionV4 if is_v4 else InternImageDeformableConvolution
        convolution = layer_class(config, channels, groups)
        self.spatial = InternImageBranch(config, channels, convolution, drop_path_rate)
        self.channel = InternImageBranch(config, channels, InternImageMLP(config, channels), drop_path_rate)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """From and to `(B, h, w, C)`."""
        features = features + self.spatial(features)
        return features + self.channel(features)


class InternImageStage(nn.Module):
    """Blocks on feature maps of one size.

    Args:
        index: of the stage, from 0.
        drop_path_rates: one for each block.
    """

    def __init__(self, config: InternImageConfig, index: int, drop_path_rates: list[float]):
        super().__init__()
        channels, groups = config.hidden_sizes[index], config.num_groups[index]
        self.blocks = nn.ModuleList(InternImageBlock(config, channels, groups, rate) for rate in drop_path_rates)
        self.norm_block_ids = list(config.stage3_norm_block_ids or []) if index == 2 else []
        self.block_norms = nn.ModuleList(nn.LayerNorm(channels, eps=config.layer_norm_eps) for _ in self.norm_block_ids)
        has_norm = not config.post_norm or config.center_feature_scale
        self.norm = nn.LayerNorm(channels, eps=config.layer_norm_eps) if has_norm else None
        self.channels_last = False  # memory format of the output

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        """From and to `(B, C, h, w)`."""
        norms = dict(zip(self.norm_block_ids, self.block_norms, strict=True))
        features = _channels_last(feature_map).contiguous()
        for index, block in enumerate(self.blocks):
            features = block(features)
            if index in norms:
                features = norms[index](features)
        if self.norm is not None:
            features = self.norm(features)
        return _contiguous(_channels_first(features), self.channels_last)


class InternImagePreTrainedModel(SegmentationModelMixin, PreTrainedModel):
    """Weight initialization and class attributes of InternImage models."""

    config: InternImageConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True  # any setting is accepted, because the model has no attention
    _no_split_modules = ["InternImageEmbeddings", "InternImageBlock", "InternImageDownsample"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.Conv2d):  # torch's own way, as in the original
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, (InternImageDeformableConvolution, InternImageDeformableConvolutionV4)):
            module.init_weights()
        elif isinstance(module, InternImageBranch) and module.gamma is not None:
            init.constant_(module.gamma, float(self.config.layer_scale_init_value))


class InternImageBackbone(BackboneMixin, InternImagePreTrainedModel):
    """InternImage, whose deformable convolutions choose their sampling points.

    Feature maps: `stem` (stride 4) and `stage1` to `stage4` (strides 4, 8, 16 and 32). Images may have any size: every
    strided convolution rounds its output size up, so a feature map has `ceil(side / stride)` rows or columns.

    Args:
        config: an [`InternImageConfig`].
    """

    has_attentions = False

    def __init__(self, config: InternImageConfig):
        super().__init__(config)
        self.num_features = [config.embed_dim, *config.hidden_sizes]
        self.embeddings = InternImageEmbeddings(config)
        last = max(sum(config.depths) - 1, 1)
        rates = iter([config.drop_path_rate * index / last for index in range(sum(config.depths))])
        self.stages = nn.ModuleList(
            InternImageStage(config, index, [next(rates) for _ in range(depth)])
            for index, depth in enumerate(config.depths)
        )
        self.downsamples = nn.ModuleList(
            InternImageDownsample(config, channels) for channels in config.hidden_sizes[:-1]
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.conv1

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | int | list[int] | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> BackboneOutput:
        """
        Args:
            pixel_values: `(B, num_channels, H, W)`, normalized.
            output_hidden_states: also return the feature maps after the stem and after each stage. A list of indices
                returns only those; the others are None.
            output_attentions: has no effect, because the model has no attention.
            kwargs: other names of `TransformersKwargs`, which transformers' heads pass on. They have no effect.

        Returns:
            `BackboneOutput` with the `feature_maps` named by `config.out_features`,
            `(B, C, ceil(H / stride), ceil(W / stride))`.

        Raises:
            ValueError: if `pixel_values` is no batch of images with `num_channels` channels.

        Example, with a folder written by `convert_internimage.py`:

        ```python
        >>> import torch
        >>> from segtransformers import InternImageBackbone

        >>> backbone = InternImageBackbone.from_pretrained("upernet_internimage_t_512_160k_ade20k")
        >>> feature_maps = backbone(torch.randn(1, 3, 512, 512)).feature_maps
        >>> [tuple(feature_map.shape) for feature_map in feature_maps]
        [(1, 64, 128, 128), (1, 128, 64, 64), (1, 256, 32, 32), (1, 512, 16, 16)]
        ```
        """
        check_transformers_kwargs(kwargs)
        check_image_size(pixel_values, self.config.num_channels)
        feature_map = self.embeddings(pixel_values.to(self.get_input_embeddings().weight.dtype))
        feature_maps = [feature_map]
        for index, stage in enumerate(self.stages):
            feature_map = stage(self.downsamples[index - 1](feature_map) if index else feature_map)
            feature_maps.append(feature_map)
        named = dict(zip(self.stage_names, feature_maps, strict=True))
        selection = hidden_states_selection(self, output_hidden_states)
        return BackboneOutput(
            feature_maps=tuple(named[name] for name in self.out_features),
            hidden_states=select_hidden_states(self, None if selection is False else feature_maps, selection),
        )


__all__ = ["InternImageBackbone", "InternImagePreTrainedModel"]
