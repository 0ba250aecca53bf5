# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Resizing, padding and cropping of images and feature maps."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from .token_grid import has_variable_size

STRIDES = (4, 8, 16, 32)  # of a backbone's feature maps, in pixels


def resize(features: torch.Tensor, size: Sequence[int], align_corners: bool = False) -> torch.Tensor:
    """Resize `(B, C, h, w)` bilinearly to (height, width) `size`."""
    if tuple(features.shape[2:]) == tuple(size):
        return features
    return F.interpolate(features, size=tuple(size), mode="bilinear", align_corners=align_corners)


class Resize(nn.Module):
    """[`resize`] as a layer, so that `optimize_for_inference` can replace it."""

    def __init__(self, align_corners: bool = False):
        super().__init__()
        self.align_corners = align_corners

    def forward(self, features: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """Map `(B, C, h, w)` to `(B, C, *size)`."""
        return resize(features, size, self.align_corners)


class AddResized(nn.Module):
    """Add a feature map that is resized to the size of another one."""

    def forward(self, features: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Map `(B, C, H, W)` and `(B, C, h, w)` to `(B, C, H, W)`."""
        return features + resize(other, features.shape[2:])


class AddUpsampled(nn.Module):
    """Add a feature map that was upsampled to the size of another one."""

    def forward(self, features: torch.Tensor, upsampled: torch.Tensor) -> torch.Tensor:
        """Map two feature maps `(B, C, H, W)` to their sum."""
        return upsampled + features


def pad_to_multiple(pixel_values: torch.Tensor, divisor: int = STRIDES[-1], center: bool = False) -> torch.Tensor:
    """Pad `(B, C, H, W)` with zeros until both sides are multiples of `divisor`.

    Args:
        center: whether to pad on all sides, the smaller half at the left and the top, or only at the right and the
            bottom.
    """
    height, width = pixel_values.shape[2:]
    # not `-side % divisor`: inductor has no such expression for dynamic sizes
    bottom, right = (divisor - height % divisor) % divisor, (divisor - width % divisor) % divisor
    top, left = (bottom // 2, right // 2) if center else (0, 0)
    # variable sides of exported programs are multiples of 32
    is_variable = has_variable_size((height, width)) and STRIDES[-1] % divisor != 0
    if is_variable or bottom or right:
        return F.pad(pixel_values, (left, right - left, top, bottom - top))
    return pixel_values


def crop_to_image(features: torch.Tensor, stride: int, height: int, width: int) -> torch.Tensor:
    """Undo [`pad_to_multiple`] on a feature map: `(B, C, ceil(height / stride), ceil(width / stride))`."""
    # not `math.ceil`: torch.export cannot save it for variable sizes
    return features[:, :, : (height + stride - 1) // stride, : (width + stride - 1) // stride]


__all__ = ["STRIDES", "AddResized", "AddUpsampled", "Resize", "crop_to_image", "pad_to_multiple", "resize"]
