# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""ONE-PEACE's ViT-Adapter.

Source: `one_peace_vision/seg/mmseg_custom/models/backbones/onepeace_adapter.py` of OFA-Sys/ONE-PEACE.
"""

import torch

from ..models.vit_adapter import ViTAdapterConfig
from .mapping import MOST_LAYERS, Backbone, ConversionError, Rule, Settings, shape_of
from .vit_adapter import ADAPTER_RULES, pyramid_config

TRUNK = "one_peace_giant_patch16"


def _as_batch(name: str, positions: torch.Tensor) -> torch.Tensor:
    if positions.dim() != 2:
        raise ConversionError(f"{name} is {shape_of(positions)}, expected (1 + positions, channels)")
    return positions[None].clone()


_LAYER = r"encoder\.layers\.(\d+)\."
RULES = [
    Rule(r"image_adapter\.cls_embedding", r"trunk.embeddings.cls_token"),
    Rule(r"image_adapter\.pos_embed", r"trunk.embeddings.pos_embed", _as_batch),
    Rule(r"image_adapter\.embed_images\.([03])\.(.+)", r"trunk.embeddings.patch_embed.stem.\1.\2"),
    Rule(r"image_adapter\.embed_images\.([14])\.layer_norm\.(.+)", r"trunk.embeddings.patch_embed.stem.\1.\2"),
    Rule(r"image_adapter\.embed_images\.6\.(.+)", r"trunk.embeddings.patch_embed.proj.\1"),
    Rule(r"image_adapter\.rel_pos_table\..+", None, why="a shared table that the adapter never reads"),
    Rule(r"(.+\.)?rp_bucket", None, why="follows from the grid"),
    Rule(_LAYER + r"self_attn_layer_norm\.(.+)", r"trunk.blocks.\1.norm1.\2"),
    Rule(_LAYER + r"final_layer_norm\.(.+)", r"trunk.blocks.\1.norm2.\2"),
    Rule(_LAYER + r"(gamma_[12])", r"trunk.blocks.\1.\2"),
    Rule(_LAYER + r"rel_pos_table\.weight", r"trunk.blocks.\1.relative_position_bias_table"),
    Rule(_LAYER + r"self_attn\.ln\.(.+)", r"trunk.blocks.\1.attn.norm.\2"),
    Rule(_LAYER + r"self_attn\.out_proj\.(.+)", r"trunk.blocks.\1.attn.proj.\2"),
    Rule(_LAYER + r"self_attn\.([qkv]_proj)\.(.+)", r"trunk.blocks.\1.attn.\2.\3"),
    Rule(_LAYER + r"image_ffn\.0\.wi_0\.(.+)", r"trunk.blocks.\1.mlp.fc1_g.\2"),
    Rule(_LAYER + r"image_ffn\.0\.wi_1\.(.+)", r"trunk.blocks.\1.mlp.fc1_x.\2"),
    Rule(_LAYER + r"image_ffn\.2\.(.+)", r"trunk.blocks.\1.mlp.norm.\2"),
    Rule(_LAYER + r"image_ffn\.3\.(.+)", r"trunk.blocks.\1.mlp.fc2.\2"),
    *ADAPTER_RULES,
]


def read_config(settings: Settings) -> ViTAdapterConfig:
    """Convert the settings of ONE-PEACE's `OnePeaceAdapter`; numbers of the trunk must be given."""
    width, hidden = settings.count("embed_dim"), settings.count("ffn_embed_dim")
    settings.expect("dropout", 0.0)
    settings.expect("attention_dropout", 0.0)
    settings.drop("use_checkpoint", "shared_rp_bias", "layer_norm_first")
    for name, value in (
        ("embed_dim", width),
        ("num_heads", settings.count("attention_heads")),
        ("mlp_ratio", (hidden + 0.5) / width),  # timm truncates the product
    ):
        settings.put(name, value)
    return pyramid_config(
        settings,
        ViTAdapterConfig,
        {},
        TRUNK,
        settings.count("layers", most=MOST_LAYERS),
        patch_size=16,
        pretrain_image_size=16 * settings.count("bucket_size"),
        qkv_bias=True,
        patch_bias=True,
        use_absolute_position_embeddings=True,
        use_relative_position_bias=settings.take("rp_bias", False),
        layer_scale_init_value=settings.take("layer_scale_init_value", 0.01),
        layer_norm_eps=1e-5,
        adapter_layer_norm_eps=1e-6,
        injector_init_value=settings.take("init_values", 0.0),
        use_extra_extractors=settings.take("use_extra_extractor", True),
    )


BACKBONES = {"OnePeaceAdapter": Backbone(RULES, read_config)}
