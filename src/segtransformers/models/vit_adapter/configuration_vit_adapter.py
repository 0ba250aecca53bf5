# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""ViT-Adapter configuration."""

from huggingface_hub.dataclasses import strict

from ..pyramid.configuration_pyramid import PyramidConfig


@strict
class ViTAdapterConfig(PyramidConfig):
    r"""
    Configuration of [`ViTAdapterBackbone`]. The defaults are those of ViT-Adapter-T; [`PyramidConfig`] and
    [`TrunkConfig`] describe the other fields.

    Args:
        use_injectors (`bool`, defaults to `True`):
            Whether interactions add features of the pyramid to the trunk's tokens. DINOv3's adapter does not, so that
            its trunk computes what it computes alone.

    Example:

    ```python
    >>> from segtransformers import ViTAdapterBackbone, ViTAdapterConfig

    >>> config = ViTAdapterConfig(trunk="vit_tiny_patch16_224", out_indices=[1, 2, 3, 4])
    >>> backbone = ViTAdapterBackbone(config)
    >>> backbone.channels
    [192, 192, 192, 192]
    ```
    """

    model_type = "seg_vit_adapter"

    use_injectors: bool = True


__all__ = ["ViTAdapterConfig"]
