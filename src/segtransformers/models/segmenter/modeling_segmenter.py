# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Segmenter: Transformer for Semantic Segmentation (https://arxiv.org/abs/2105.05633).

Behaviour follows `mmseg/models/{backbones/vit,decode_heads/segmenter_mask_head}.py` of MMSegmentation 0.30, or
`segm/model` of rstrudel/segmenter for its checkpoints. The config distinguishes them.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from ..layers.resize import resize
from ..layers.sliding_windows import SlidingWindow
from ..layers.token_grid import grid_of
from ..plain_vit import PlainViTBackbone
from ..segmentation.modeling_segmentation import BackboneForSemanticSegmentation
from ..trunk import plain_block
from .configuration_segmenter import SegmenterConfig, SegmenterViTConfig


class SegmenterViTBackbone(PlainViTBackbone):
    """A plain ViT whose final norm applies to the last feature map only. [`PlainViTBackbone`] describes the rest.

    Args:
        config: a [`SegmenterViTConfig`].
    """

    config: SegmenterViTConfig


class SegmenterMaskTransformer(nn.Module):
    """Transformer blocks over patch tokens and one token for each class.

    The logits are the cosines between patches and classes, normalized over the classes of each patch.

    Args:
        in_channels: channels of the feature map.

    Raises:
        ValueError: if the heads do not divide the width.
    """

    def __init__(self, config: SegmenterConfig, in_channels: int):
        super().__init__()
        width, eps = config.decoder_hidden_size or in_channels, config.decoder_layer_norm_eps
        num_heads = config.decoder_num_attention_heads or max(width // 64, 1)
        if width % num_heads:
            raise ValueError(
                f"the mask transformer's width ({width}) must be a multiple of its {num_heads} heads: set "
                "decoder_hidden_size or decoder_num_attention_heads"
            )
        count = config.decoder_num_hidden_layers
        self.input_proj = nn.Linear(in_channels, width)
        self.class_embeddings = nn.Parameter(torch.zeros(1, config.num_labels, width))
        self.layers = nn.ModuleList(
            plain_block(
                width,
                num_heads,
                mlp_ratio=config.decoder_mlp_ratio,
                dropout=config.decoder_dropout,
                drop_path=config.decoder_drop_path_rate * index / max(count - 1, 1),
                layer_norm_eps=eps,
            )
            for index in range(count)
        )
        self.norm = nn.LayerNorm(width, eps=eps)
        self.patch_proj = nn.Linear(width, width, bias=False)
        self.class_proj = nn.Linear(width, width, bias=False)
        self.mask_norm = nn.LayerNorm(config.num_labels, eps=eps)

    def forward(self, feature_maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Map the last feature map `(B, C, h, w)` to logits `(B, num_labels, h, w)`."""
        feature_map = feature_maps[-1]
        grid = grid_of(feature_map)
        patches = self.input_proj(feature_map.flatten(2).transpose(1, 2))
        classes = self.class_embeddings.expand(feature_map.shape[0], -1, -1).to(patches.dtype)
        tokens = torch.cat([patches, classes], dim=1)
        for layer in self.layers:
            tokens = layer(tokens, grid)
        patches, classes = self.norm(tokens).split([patches.shape[1], classes.shape[1]], dim=1)
        patches = F.normalize(self.patch_proj(patches), dim=-1)
        classes = F.normalize(self.class_proj(classes), dim=-1)
        return self.mask_norm(patches @ classes.transpose(1, 2)).transpose(1, 2).unflatten(2, grid)


class SegmenterLinearDecoder(nn.Module):
    """One linear layer on every token of the last feature map."""

    def __init__(self, config: SegmenterConfig, in_channels: int):
        super().__init__()
        self.dropout = nn.Dropout2d(config.classifier_dropout)
        self.classifier = nn.Conv2d(in_channels, config.num_labels, kernel_size=1)

    def forward(self, feature_maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Map the last feature map `(B, C, h, w)` to logits `(B, num_labels, h, w)`."""
        return self.classifier(self.dropout(feature_maps[-1]))


class SegmenterForSemanticSegmentation(BackboneForSemanticSegmentation):
    """Segmenter with its mask transformer or its linear decoder.

    Args:
        config: a [`SegmenterConfig`].

    Example, with a folder written by `convert_segmenter.py`; the arguments of `forward` are those of
    [`BackboneForSemanticSegmentation`]:

    ```python
    >>> from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

    >>> folder = "segmenter_vit-t_mask_8x1_512x512_160k_ade20k"
    >>> model = AutoModelForSemanticSegmentation.from_pretrained(folder).eval()
    >>> inputs = AutoImageProcessor.from_pretrained(folder)(images=image, return_tensors="pt")
    >>> labels = model(**inputs).logits.argmax(dim=1)
    ```
    """

    config: SegmenterConfig

    def build_decode_head(self, in_channels: list[int]) -> nn.Module:
        if self.config.decoder_type == "mask_transformer":
            return SegmenterMaskTransformer(self.config, in_channels[-1])
        return SegmenterLinearDecoder(self.config, in_channels[-1])

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, SegmenterMaskTransformer):
            init.trunc_normal_(module.class_embeddings, std=self.config.initializer_range)

    def _enlarge(self, logits: torch.Tensor, size: torch.Size) -> torch.Tensor:
        divisor = self.config.padding_divisor
        if divisor is None:
            return super()._enlarge(logits, size)
        # not `side + -side % divisor`: inductor has no such expression for dynamic sizes
        padded = torch.Size((side + divisor - 1) // divisor * divisor for side in size)
        return super()._enlarge(logits, padded)[:, :, : size[0], : size[1]]

    def _is_enlarged_by_resize(self, size: torch.Size) -> bool:
        divisor = self.config.padding_divisor
        return divisor is None or all(side % divisor == 0 for side in size)

    def _needs_windows(self, size: torch.Size, window: SlidingWindow) -> bool:
        return super()._needs_windows(size, window) or self._is_enlarged(size, window)

    def _is_enlarged(self, size: torch.Size, window: SlidingWindow) -> bool:
        """Return whether an image of (height, width) `size` is enlarged until a window fits into it."""
        return self.config.enlarge_to_window and (size[0] < window.size[0] or size[1] < window.size[1])

    def _slide(self, pixel_values: torch.Tensor, window: SlidingWindow) -> torch.Tensor:
        size = pixel_values.shape[2:]
        if self._is_enlarged(size, window):
            enlarged = resize(pixel_values, _covering(size, window.size))
            return super()._enlarge(super()._slide(enlarged, window), size)
        return super()._slide(pixel_values, window)


def _covering(size: Sequence[int], window: Sequence[int]) -> tuple[int, int]:
    """Return the smallest size of the same aspect ratio that a window fits into, with the longer side rounded down."""
    height, width = size
    if window[0] * width > window[1] * height:  # the height has to grow by the larger factor
        return window[0], max(int(width / height * window[0]), window[1])
    return max(int(height / width * window[1]), window[0]), window[1]


__all__ = ["SegmenterForSemanticSegmentation", "SegmenterViTBackbone"]
