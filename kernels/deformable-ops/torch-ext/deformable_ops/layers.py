# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Layers for `kernels.kernelize`, which replaces the `forward` of a model's layer by that of the layer here."""

import torch
from torch import nn

from . import functions


class MultiScaleDeformableAttention(nn.Module):
    """For the layer of this name in transformers (Deformable DETR, Grounding DINO, RF-DETR...) and segtransformers."""

    has_backward = True
    can_torch_compile = True

    def forward(
        self,
        value: torch.Tensor,
        value_spatial_shapes: torch.Tensor,
        value_spatial_shapes_list: list[tuple[int, int]],
        level_start_index: torch.Tensor,
        sampling_locations: torch.Tensor,
        attention_weights: torch.Tensor,
        im2col_step: int,
    ) -> torch.Tensor:
        """See [`functions.ms_deform_attn`]; the other arguments are not read."""
        return functions.ms_deform_attn(value, value_spatial_shapes_list, sampling_locations, attention_weights)


class DeformableConvolutionV3(nn.Module):
    """For the layer of this name in segtransformers: the sampling of DCNv3."""

    has_backward = True
    can_torch_compile = True

    def forward(
        self,
        value: torch.Tensor,
        offset: torch.Tensor,
        mask: torch.Tensor,
        kernel_size: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
        offset_scale: float,
        remove_center: bool,
    ) -> torch.Tensor:
        """See [`functions.dcnv3`]."""
        return functions.dcnv3(
            value, offset, mask, kernel_size, stride, padding, dilation, groups, offset_scale, remove_center
        )


class DeformableConvolutionV4(nn.Module):
    """For the layer of this name in segtransformers: the sampling of DCNv4."""

    has_backward = True
    can_torch_compile = True

    def forward(
        self,
        value: torch.Tensor,
        offset_mask: torch.Tensor,
        kernel_size: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
        offset_scale: float,
        remove_center: bool,
    ) -> torch.Tensor:
        """See [`functions.dcnv4`]."""
        return functions.dcnv4(
            value, offset_mask, kernel_size, stride, padding, dilation, groups, offset_scale, remove_center
        )
