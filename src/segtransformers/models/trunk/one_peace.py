# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The vision branch of ONE-PEACE (https://arxiv.org/abs/2305.11172), which timm lacks, made of timm's `Eva`.

Behaviour follows `one_peace_vision/seg/mmseg_custom/models/backbones` of OFA-Sys/ONE-PEACE.
"""

import functools
from typing import Any

from timm.layers import LayerNorm, LayerNorm2d, SwiGLU
from timm.models.eva import Eva
from torch import nn


def one_peace_giant(
    embed_dim: int = 1536,
    depth: int = 40,
    num_heads: int = 24,
    mlp_ratio: float = 4.0,
    in_chans: int = 3,
    img_size: int | tuple[int, int] = 256,
    patch_size: int = 16,
    init_values: float | None = 0.01,
    **arguments: Any,
) -> Eva:
    """Build the model. Its attention and MLPs have a norm inside, and three convolutions embed the patches.

    Args:
        arguments: further arguments of timm's `Eva`.

    Raises:
        AssertionError: if patches are not of 16 pixels, or the width is no multiple of 4.
    """
    assert patch_size == 16, f"its convolutions make patches of 16 pixels, not of {patch_size}"
    assert embed_dim % 4 == 0, f"hidden_size must be a multiple of 4, got {embed_dim}"
    norm_layer = functools.partial(LayerNorm, eps=1e-5)
    model = Eva(
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=mlp_ratio,
        in_chans=in_chans,
        img_size=img_size,
        patch_size=patch_size,
        init_values=init_values,
        qkv_fused=False,
        scale_attn_inner=True,
        norm_layer=norm_layer,
        **arguments,
    )
    for block in model.blocks:
        block.mlp = SwiGLU(
            embed_dim, int(embed_dim * mlp_ratio), act_layer=nn.GELU, norm_layer=norm_layer, bias=(False, True)
        )
    narrow = embed_dim // 4
    # before the projection, whose kernel covers 2x2 of its outputs
    model.patch_embed.stem = nn.Sequential(
        nn.Conv2d(in_chans, narrow, kernel_size=4, stride=4),
        LayerNorm2d(narrow, eps=1e-5),
        nn.GELU(),
        nn.Conv2d(narrow, narrow, kernel_size=2, stride=2),
        LayerNorm2d(narrow, eps=1e-5),
        nn.GELU(),
    )
    model.patch_embed.proj = nn.Conv2d(narrow, embed_dim, kernel_size=2, stride=2)
    return model


__all__ = ["one_peace_giant"]
