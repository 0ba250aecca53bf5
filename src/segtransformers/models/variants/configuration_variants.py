# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Configurations of transformers' backbones with further options."""

import math

from huggingface_hub.dataclasses import strict
from transformers import ConvNextConfig, ResNetConfig, SwinConfig

from ...remote_code import RemoteCodeConfigMixin


@strict
class SegSwinConfig(RemoteCodeConfigMixin, SwinConfig):
    r"""
    transformers' `SwinConfig` with two options of MMSegmentation's `SwinTransformer`.

    Args:
        patch_norm (`bool`, defaults to `True`):
            Whether norms follow the patch embedding and precede the reduction of each patch merging.
        qk_scale (`float`, *optional*):
            Factor on the products of queries and keys. None takes `head width ** -0.5`.

    Raises:
        ValueError: if `qk_scale` is not a positive number.

    Example:

    ```python
    >>> from segtransformers import SegSwinBackbone, SegSwinConfig

    >>> backbone = SegSwinBackbone(SegSwinConfig(patch_norm=False, out_features=["stage1", "stage4"]))
    >>> backbone.channels
    [96, 768]
    ```
    """

    model_type = "seg_swin"

    patch_norm: bool = True
    qk_scale: float | int | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.qk_scale is not None and not 0 < self.qk_scale < math.inf:
            raise ValueError(f"qk_scale must be a positive number, got {self.qk_scale}")


@strict
class SegConvNextConfig(RemoteCodeConfigMixin, ConvNextConfig):
    r"""
    transformers' `ConvNextConfig` with the norms of MMClassification 0.x, which trained MMSegmentation's ConvNeXt.

    Args:
        downsampling_norm_eps (`float`, defaults to 1e-5):
            Epsilon of the norms before the three downsampling convolutions. transformers has 1e-6.

    Raises:
        ValueError: if `downsampling_norm_eps` is not a positive number.

    Example:

    ```python
    >>> from segtransformers import SegConvNextBackbone, SegConvNextConfig

    >>> backbone = SegConvNextBackbone(SegConvNextConfig(out_features=["stage1", "stage4"]))
    >>> backbone.channels
    [96, 768]
    ```
    """

    model_type = "seg_convnext"

    downsampling_norm_eps: float | int = 1e-5

    def __post_init__(self, **kwargs):
        self.hidden_sizes = list(self.hidden_sizes or ())  # transformers' backbone appends it to a list
        super().__post_init__(**kwargs)
        if not 0 < self.downsampling_norm_eps < math.inf:
            raise ValueError(f"downsampling_norm_eps must be a positive number, got {self.downsampling_norm_eps}")


@strict
class SegResNetConfig(RemoteCodeConfigMixin, ResNetConfig):
    r"""
    transformers' `ResNetConfig` for ResNet-C of "Bag of Tricks" (https://arxiv.org/abs/1812.01187), which is
    MMSegmentation's `ResNetV1c`: the stem has three 3x3 convolutions, the first two with half of `embedding_size`
    channels.

    Raises:
        ValueError: if `embedding_size` is not even.

    Example:

    ```python
    >>> from segtransformers import SegResNetBackbone, SegResNetConfig

    >>> backbone = SegResNetBackbone(SegResNetConfig(out_features=["stage1", "stage4"]))
    >>> backbone.channels
    [256, 2048]
    ```
    """

    model_type = "seg_resnet"

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.embedding_size % 2:
            raise ValueError(f"embedding_size must be even, got {self.embedding_size}")


__all__ = ["SegConvNextConfig", "SegResNetConfig", "SegSwinConfig"]
