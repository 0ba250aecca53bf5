# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The three ViT-Adapter backbones of czczup/ViT-Adapter.

Source: `segmentation/mmseg_custom/models/backbones/{vit_adapter,beit_adapter,uniperceiver_adapter}.py`.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch

from ..models.pyramid.configuration_pyramid import PyramidConfig
from ..models.vit_adapter import ViTAdapterConfig
from .mapping import MOST_LAYERS, Backbone, ConversionError, Rule, Settings

# The config overrides every number of these architectures, so the names only describe the model.
VIT_NAMES = {192: "vit_tiny_patch16_224", 384: "vit_small_patch16_224", 1024: "vit_large_patch16_224"}
BEIT_NAMES = {1024: "beit_large_patch16_224"}
# CLIP's architecture has a norm before the blocks, as Uni-Perceiver has
UNIPERCEIVER_NAMES = {1024: "vit_large_patch14_clip_224"}

PyramidConfigType = TypeVar("PyramidConfigType", bound=PyramidConfig)


def without_first_position(name: str, positions: torch.Tensor) -> torch.Tensor:
    """Remove the first position embedding, of a class token that the original does not have."""
    if positions.dim() != 3:
        raise ConversionError(f"{name} is {tuple(positions.shape)}, expected (1, 1 + positions, channels)")
    return positions[:, 1:].clone()


# ViT-CoMer's backbones have these names too
PYRAMID_RULES = [
    Rule(r"level_embed", r"level_embed"),
    Rule(r"spm\.(.+)", r"spatial_prior.\1"),
    Rule(r"up\.(.+)", r"upsample.\1"),
    *(Rule(rf"norm{index + 1}\.(.+)", rf"norms.{index}.\1") for index in range(4)),
]
PLAIN_VIT_RULES = [
    Rule(r"pos_embed", r"trunk.embeddings.pos_embed", without_first_position),
    Rule(r"patch_embed\.(.+)", r"trunk.embeddings.patch_embed.\1"),
    Rule(r"blocks\.(\d+)\.gamma([12])", r"trunk.blocks.\1.ls\2.gamma"),
    Rule(r"blocks\.(.+)", r"trunk.blocks.\1"),
]
ADAPTER_RULES = [
    *PYRAMID_RULES,
    Rule(r"interactions\.(.+)\.ffn\.dwconv\.dwconv\.(.+)", r"interactions.\1.ffn.dwconv.\2"),
    Rule(r"interactions\.(.+)", r"interactions.\1"),
]
VIT_RULES = [*PLAIN_VIT_RULES, *ADAPTER_RULES]
BEIT_RULES = [
    Rule(r"cls_token", r"trunk.embeddings.cls_token"),
    Rule(r"patch_embed\.(.+)", r"trunk.embeddings.patch_embed.\1"),
    Rule(r"blocks\.\d+\.attn\.relative_position_index", None, why="follows from the grid"),
    # exists with use_shared_rel_pos_bias
    Rule(r"rel_pos_bias\..+", None, why="a shared table that the original never reads"),
    Rule(r"blocks\.(\d+)\.attn\.relative_position_bias_table", r"trunk.blocks.\1.relative_position_bias_table"),
    Rule(r"blocks\.(.+)", r"trunk.blocks.\1"),
    *ADAPTER_RULES,
]
UNIPERCEIVER_RULES = [
    Rule(r"visual_embed\.patch_embed\.proj\.(.+)", r"trunk.embeddings.patch_embed.proj.\1"),
    Rule(r"visual_embed\.patch_embed\.pos_embed", r"trunk.embeddings.pos_embed"),  # created by `with_whole_positions`
    Rule(r"visual_embed\.embeddings_norm\.(.+)", r"trunk.embeddings.norm_pre.\1"),
    Rule(r"layers\.(\d+)\.self_attn\.in_proj\.(.+)", r"trunk.blocks.\1.attn.qkv.\2"),
    Rule(r"layers\.(\d+)\.self_attn\.out_proj\.(.+)", r"trunk.blocks.\1.attn.proj.\2"),
    Rule(r"layers\.(\d+)\.linear([12])\.(.+)", r"trunk.blocks.\1.mlp.fc\2.\3"),
    Rule(r"layers\.(\d+)\.gamma_([12])", r"trunk.blocks.\1.ls\2.gamma"),
    Rule(r"layers\.(.+)", r"trunk.blocks.\1"),
    *ADAPTER_RULES,
]


def with_whole_positions(state_dict: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Add the first temporal position embedding of Uni-Perceiver to the spatial ones, because an image is one frame.

    Raises:
        ConversionError: if position embeddings are missing or do not fit together.
    """
    prefix = next(
        (name[: -len("spatial_pos_embed.weight")] for name in state_dict if name.endswith("spatial_pos_embed.weight")),
        None,
    )
    if prefix is None:
        raise ConversionError("the checkpoint has no spatial_pos_embed.weight")
    if f"{prefix}pos_embed" in state_dict:
        raise ConversionError(f"the checkpoint has both {prefix}pos_embed and {prefix}spatial_pos_embed.weight")
    state_dict = dict(state_dict)
    space, time = (state_dict.pop(f"{prefix}{kind}_pos_embed.weight", None) for kind in ("spatial", "temporal"))
    if time is None or time.dim() != 2 or space.dim() != 2 or time.shape[1] != space.shape[1] or not len(time):
        raise ConversionError(
            f"{prefix}temporal_pos_embed.weight is missing, or does not have the channels of spatial_pos_embed.weight"
        )
    state_dict[f"{prefix}pos_embed"] = (space + time[:1])[None]
    return state_dict


def read_vit(settings: Settings) -> ViTAdapterConfig:
    """Convert the settings of mmseg's `ViTAdapter`; the defaults are the original's."""
    return read_plain_vit(settings, ViTAdapterConfig, use_extra_extractors=settings.take("use_extra_extractor", True))


def read_plain_vit(settings: Settings, config_class: type[PyramidConfigType], **fields: Any) -> PyramidConfigType:
    """Convert the settings that ViT-Adapter and ViT-CoMer around a plain ViT share; `fields` are further fields."""
    depth = depth_of(settings)
    settings.expect("patch_size", 16)
    settings.take("img_size", 224)  # the original reshapes its position embeddings by pretrain_size
    return pyramid_config(
        settings,
        config_class,
        VIT_NAMES,
        "vit_base_patch16_224",
        depth,
        pretrain_image_size=settings.take("pretrain_size", 224),
        qkv_bias=settings.take("qkv_bias", True),
        layer_scale_init_value=1.0 if settings.take("layer_scale", True) else 0.0,
        layer_norm_eps=1e-6,
        use_prefix_tokens=False,
        window_sizes=window_sizes(settings.take("window_attn", False), settings.take("window_size", 14), depth),
        injector_init_value=settings.take("init_values", 0.0),
        **fields,
    )


def read_beit(settings: Settings) -> ViTAdapterConfig:
    """Convert the settings of mmseg's `BEiTAdapter`; the defaults are the original's."""
    depth = depth_of(settings)
    settings.expect("patch_size", 16)
    settings.expect("use_abs_pos_emb", False, default=False)
    settings.take("use_shared_rel_pos_bias", False)
    settings.take("pretrain_size", 224)  # img_size determines the size of the bias tables
    size = settings.take("img_size", 512)
    initial = settings.take("init_values", None)
    if not initial:
        raise ConversionError(f"backbone.init_values is {initial!r}; the original needs layer scale")
    return pyramid_config(
        settings,
        ViTAdapterConfig,
        BEIT_NAMES,
        "beit_base_patch16_224",
        depth,
        pretrain_image_size=size,
        qkv_bias=settings.take("qkv_bias", False),
        use_relative_position_bias=settings.take("use_rel_pos_bias", False),
        layer_scale_init_value=initial,
        layer_norm_eps=1e-6,
        use_prefix_tokens=True,
        injector_init_value=initial,
        use_extra_extractors=True,
    )


def read_uniperceiver(settings: Settings) -> ViTAdapterConfig:
    """Convert the settings of mmseg's `UniPerceiverAdapter`; the defaults are the original's."""
    depth = depth_of(settings)
    settings.expect("patch_size", 16)
    settings.take("pretrain_size", 224)  # img_size determines the number of position embeddings
    return pyramid_config(
        settings,
        ViTAdapterConfig,
        UNIPERCEIVER_NAMES,
        "vit_base_patch16_clip_224",
        depth,
        patch_size=16,
        pretrain_image_size=settings.take("img_size", 224),
        qkv_bias=settings.take("qkv_bias", True),
        patch_bias=True,
        layer_scale_init_value=1.0,
        layer_norm_eps=1e-5,
        use_prefix_tokens=False,
        window_sizes=window_sizes(settings.take("window_attn", False), settings.take("window_size", 14), depth),
        pad_before_projection=True,
        injector_init_value=settings.take("init_values", 0.0),
        use_extra_extractors=True,
    )


def depth_of(settings: Settings) -> int:
    return settings.count("depth", 12, MOST_LAYERS)


def pyramid_config(
    settings: Settings,
    config_class: type[PyramidConfigType],
    names: Mapping[int, str],
    name: str,
    depth: int,
    **fields: Any,
) -> PyramidConfigType:
    """Convert the settings that all backbones share; `names` are trunks by width, `name` is that of other widths."""
    width = settings.take("embed_dim", 768)
    settings.expect("in_chans", 3)
    for rate in ("drop_rate", "attn_drop_rate"):
        settings.expect(rate, 0.0, None)
    config = config_class(
        trunk=names.get(width, name),
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=settings.take("num_heads", 12),
        mlp_ratio=settings.take("mlp_ratio", 4.0),
        drop_path_rate=settings.take("drop_path_rate", 0.0),
        spatial_prior_channels=settings.take("conv_inplane", 64),
        interaction_indexes=settings.take("interaction_indexes"),
        deformable_num_heads=settings.take("deform_num_heads", 6),
        deformable_num_points=settings.take("n_points", 4),
        deformable_value_ratio=settings.take("deform_ratio", 1.0),
        use_conv_ffn=settings.take("with_cffn", True),
        conv_ffn_ratio=settings.take("cffn_ratio", 0.25),
        add_trunk_features=settings.take("add_vit_feature", True),
        out_features=["stage1", "stage2", "stage3", "stage4"],
        **fields,
    )
    settings.drop("type", "pretrained", "init_cfg", "with_cp", "num_classes")
    settings.finish()
    return config


def window_sizes(use_window, window_size, depth: int) -> list[int] | None:
    """Return a window side for each block, 0 for global attention. Both arguments may be one value or one per block."""
    uses = use_window if isinstance(use_window, list | tuple) else [use_window] * depth
    sizes = window_size if isinstance(window_size, list | tuple) else [window_size] * depth
    if len(uses) != depth or len(sizes) != depth:
        raise ConversionError(f"backbone.window_attn and window_size need one entry for each of the {depth} blocks")
    if not any(uses):
        return None
    return [size if use else 0 for use, size in zip(uses, sizes, strict=True)]


BACKBONES = {
    "ViTAdapter": Backbone(VIT_RULES, read_vit),
    "BEiTAdapter": Backbone(BEIT_RULES, read_beit),
    "UniPerceiverAdapter": Backbone(UNIPERCEIVER_RULES, read_uniperceiver, with_whole_positions),
}
