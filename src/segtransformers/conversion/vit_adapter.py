# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""ViT-Adapter backbones of czczup/ViT-Adapter (`segmentation/mmseg_custom/models/backbones/vit_adapter.py`)."""

import torch

from ..models.vit_adapter import ViTAdapterConfig
from .mapping import ConversionError, Rule, Settings

# Any plain ViT of timm would do, because the config overrides every number; these only read better.
TRUNK_NAMES = {192: "vit_tiny_patch16_224", 384: "vit_small_patch16_224", 1024: "vit_large_patch16_224"}


def _without_first_position(name: str, positions: torch.Tensor) -> torch.Tensor:
    """The first entry belongs to a class token that the original does not have."""
    if positions.dim() != 3:
        raise ConversionError(f"{name} is {tuple(positions.shape)}, expected (1, 1 + positions, channels)")
    return positions[:, 1:].clone()


RULES = [
    Rule(r"pos_embed", r"trunk.embeddings.pos_embed", _without_first_position),
    Rule(r"patch_embed\.(.+)", r"trunk.embeddings.patch_embed.\1"),
    Rule(r"blocks\.(\d+)\.gamma([12])", r"trunk.blocks.\1.ls\2.gamma"),
    Rule(r"blocks\.(.+)", r"trunk.blocks.\1"),
    Rule(r"level_embed", r"level_embed"),
    Rule(r"spm\.(.+)", r"spatial_prior.\1"),
    Rule(r"interactions\.(.+)\.ffn\.dwconv\.dwconv\.(.+)", r"interactions.\1.ffn.dwconv.\2"),
    Rule(r"interactions\.(.+)", r"interactions.\1"),
    Rule(r"up\.(.+)", r"upsample.\1"),
    *(Rule(rf"norm{index + 1}\.(.+)", rf"norms.{index}.\1") for index in range(4)),
]


def read_config(settings: Settings) -> ViTAdapterConfig:
    """The config of a backbone that mmseg's config calls `ViTAdapter`; defaults are the original's."""
    depth, width = settings.take("depth", 12), settings.take("embed_dim", 768)
    if not isinstance(depth, int):
        raise ConversionError(f"backbone.depth is {depth!r}; a whole number is needed")
    settings.expect("patch_size", 16)
    settings.expect("in_chans", 3)
    for name in ("drop_rate", "attn_drop_rate"):
        settings.expect(name, 0.0, None)
    settings.take("img_size", 224)  # the original reshapes its position embeddings by pretrain_size
    config = ViTAdapterConfig(
        trunk=TRUNK_NAMES.get(width, "vit_base_patch16_224"),
        pretrain_image_size=settings.take("pretrain_size", 224),
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=settings.take("num_heads", 12),
        mlp_ratio=settings.take("mlp_ratio", 4.0),
        qkv_bias=settings.take("qkv_bias", True),
        layer_scale_init_value=1.0 if settings.take("layer_scale", True) else 0.0,
        layer_norm_eps=1e-6,
        use_prefix_tokens=False,
        window_sizes=_window_sizes(settings.take("window_attn", False), settings.take("window_size", 14), depth),
        drop_path_rate=settings.take("drop_path_rate", 0.0),
        spatial_prior_channels=settings.take("conv_inplane", 64),
        interaction_indexes=settings.take("interaction_indexes"),
        deformable_num_heads=settings.take("deform_num_heads", 6),
        deformable_num_points=settings.take("n_points", 4),
        deformable_value_ratio=settings.take("deform_ratio", 1.0),
        injector_init_value=settings.take("init_values", 0.0),
        use_conv_ffn=settings.take("with_cffn", True),
        conv_ffn_ratio=settings.take("cffn_ratio", 0.25),
        use_extra_extractors=settings.take("use_extra_extractor", True),
        add_trunk_features=settings.take("add_vit_feature", True),
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    settings.drop("type", "pretrained", "init_cfg", "with_cp", "num_classes")
    settings.finish()
    return config


def _window_sizes(use_window, window_size, depth: int) -> list[int] | None:
    """One side per block, 0 for global attention; either argument may be one value or a list per block."""
    uses = use_window if isinstance(use_window, list | tuple) else [use_window] * depth
    sizes = window_size if isinstance(window_size, list | tuple) else [window_size] * depth
    if len(uses) != depth or len(sizes) != depth:
        raise ConversionError(f"backbone.window_attn and window_size need one entry for each of the {depth} blocks")
    if not any(uses):
        return None
    return [size if use else 0 for use, size in zip(uses, sizes, strict=True)]
