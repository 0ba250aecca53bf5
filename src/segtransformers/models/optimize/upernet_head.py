# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""UperNet's head with channels last on a CPU."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers.models.upernet.modeling_upernet import UperNetConvModule

from ...operators import dispatcher
from ..upernet.modeling_seg_upernet import SegUperNetDecodeHead
from ..upernet.upsampled_convolution import is_plain_conv3x3, shifted_resize_matrix
from .dense_layers import FastAddResized
from .onednn_linear import left_product
from .replacement import is_on_cpu, is_plain, linear_layer, replace_modules

CHANNELS_PER_STEP = 64  # of the output, so that the products with a small feature map stay in a CPU's cache


class ResizedConvolution(nn.Module):
    """`upsampled_convolution` followed by ReLU, with weights laid out once and channels last.

    Args:
        convolution: 3x3 convolution with padding 1.
        in_channels: channels of the feature maps that it convolves.
    """

    def __init__(self, convolution: nn.Conv2d, in_channels: Sequence[int]):
        super().__init__()
        first, *rest = convolution.weight.detach().split(list(in_channels), dim=1)
        self.out_channels = convolution.out_channels
        # a layer of its own, which may be replaced in turn
        self.finest = nn.Conv2d(
            first.shape[1], self.out_channels, 3, padding=1, bias=convolution.bias is not None, device="meta"
        )
        self.finest.weight = nn.Parameter(first.contiguous(memory_format=torch.channels_last), requires_grad=False)
        self.finest.bias = convolution.bias
        # of each coarser feature map, layers from C_i to 3 * 3 * channels
        self.taps = nn.ModuleList(
            nn.ModuleList(
                linear_layer(step.permute(2, 3, 0, 1).flatten(0, 2).contiguous())
                for step in part.split(CHANNELS_PER_STEP)
            )
            for part in rest
        )

    def forward(self, feature_maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Map `(B, C_i, h_i, w_i)` to `(B, out_channels, h_0, w_0)`."""
        finest, *coarser = feature_maps
        output = self.finest(finest.contiguous(memory_format=torch.channels_last))
        output = output.contiguous(memory_format=torch.channels_last)
        pixels = output.permute(0, 2, 3, 1)
        dense = dispatcher.dense_operators(output, self.out_channels)
        if dense is None or not 0 < len(coarser) <= dense.MOST_MAPS:
            for taps, feature_map in zip(self.taps, coarser, strict=True):
                self._add(taps, feature_map, pixels)
            return output.relu_()
        maps = [feature_map.permute(0, 2, 3, 1).contiguous() for feature_map in coarser]
        layers = [list(taps.children()) for taps in self.taps]
        for step, start in enumerate(self._starts()):
            products = [taps[step](one).unflatten(3, (9, -1)) for taps, one in zip(layers, maps, strict=True)]
            products = [one.to(output.dtype) for one in products]  # they differ under autocast
            dense.add_resized_taps(products, start, True, pixels)
        return output

    def _starts(self) -> range:
        """Return the first channel of each step."""
        return range(0, self.out_channels, CHANNELS_PER_STEP)

    def _add(self, taps: nn.Module, feature_map: torch.Tensor, output: torch.Tensor) -> None:
        """Add the contribution of one coarser feature map to the output `(B, H, W, out_channels)`, in PyTorch."""
        batch, _, height, width = feature_map.shape
        rows = shifted_resize_matrix(height, output.shape[1], like=feature_map)
        columns = shifted_resize_matrix(width, output.shape[2], like=feature_map)
        pixels = feature_map.permute(0, 2, 3, 1)
        for tap, start in zip(taps.children(), self._starts(), strict=True):
            products = tap(pixels).view(batch, height, width, 3, 3, -1).permute(0, 3, 1, 4, 2, 5)
            lines = left_product(columns, products.reshape(batch * 3 * height, 3 * width, -1))
            lines = left_product(rows, lines.view(batch, 3 * height, -1)).view(*output.shape[:3], -1)
            output[..., start : start + CHANNELS_PER_STEP] += lines


class FastUperNetDecodeHead(nn.Module):
    """The layers of a [`SegUperNetDecodeHead`] with folded norms, with channels last and fewer copies.

    Args:
        head: the head, whose layers are taken over.
    """

    def __init__(self, head: SegUperNetDecodeHead):
        super().__init__()
        width, fine = head.bottleneck.conv.out_channels, len(head.lateral_convs)
        pooled = [width] * len(head.psp_modules)
        self.psp_modules, self.classifier = head.psp_modules, head.classifier
        self.lateral_convs, self.fpn_convs = head.lateral_convs, head.fpn_convs
        coarsest = head.bottleneck.conv.in_channels - sum(pooled)
        self.bottleneck = ResizedConvolution(head.bottleneck.conv, [coarsest, *pooled])
        self.add_resized = FastAddResized(inplace=True)
        self.fpn_bottleneck = ResizedConvolution(head.fpn_bottleneck.conv, [width] * (fine + 1))
        for convolutions in (self.lateral_convs, self.fpn_convs, self.classifier):
            convolutions.to(memory_format=torch.channels_last)

    def forward(self, feature_maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Map feature maps `(B, C_i, h_i, w_i)`, the finest first, to logits `(B, num_labels, h_0, w_0)`."""
        *finer, coarsest = feature_maps
        merged = self.bottleneck([coarsest, *(pool(coarsest) for pool in self.psp_modules)])
        pyramid = [merged]
        for lateral_conv, fpn_conv, feature_map in zip(
            reversed(self.lateral_convs), reversed(self.fpn_convs), reversed(finer), strict=True
        ):
            merged = self.add_resized(lateral_conv(feature_map), merged)
            pyramid.insert(0, fpn_conv(merged))
        return self.classifier(self.fpn_bottleneck(pyramid))


def use_fast_upernet_head(model: nn.Module) -> int:
    """Replace UperNet's head on a CPU, after its norms were folded."""
    return replace_modules(model, _replacement) if is_on_cpu(model) else 0


def _replacement(module: nn.Module) -> nn.Module | None:
    if not (
        is_plain(module, SegUperNetDecodeHead)
        and not module.align_corners
        and is_plain(module.dropout, nn.Dropout2d)
        and all(_is_convolution_and_relu(block) for block in (module.bottleneck, module.fpn_bottleneck))
    ):
        return None
    return FastUperNetDecodeHead(module)


def _is_convolution_and_relu(block: nn.Module) -> bool:
    """Return whether a convolution module computes nothing but these two, because its norm was folded."""
    return (
        is_plain(block, UperNetConvModule)
        and is_plain(block.conv, nn.Conv2d)
        and is_plain_conv3x3(block.conv)
        and is_plain(block.batch_norm, nn.Identity)
        and is_plain(block.activation, nn.ReLU)
    )


__all__ = ["FastUperNetDecodeHead", "ResizedConvolution", "use_fast_upernet_head"]
