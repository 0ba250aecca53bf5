# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""DINOv2's own ViT-Adapter, whose token grid is apart from the levels of its pyramid.

Source: `dinov2/eval/segmentation_m2f/models/backbones` of facebookresearch/dinov2. Its config has the type of
czczup/ViT-Adapter's backbone.
"""

from collections.abc import Mapping

import torch

from ..models.vit_adapter import ViTAdapterConfig
from .dino_trunks import DINOV2_NAMES, aligned
from .mapping import Backbone, ConversionError, Rule, Settings, shape_of
from .vit_adapter import ADAPTER_RULES, depth_of, pyramid_config, window_sizes

OWN_SETTINGS = ("ffn_type", "use_cls", "pre_norm", "freeze_vit")
RULES = [
    Rule(r"(cls_token|pos_embed|norm_pre\..+|patch_embed\..+)", r"trunk.embeddings.\1"),
    Rule(r"blocks\.(\d+)\.gamma([12])", r"trunk.blocks.\1.ls\2.gamma"),
    Rule(r"blocks\.(\d+)\.mlp\.w1\.(.+)", r"trunk.blocks.\1.mlp.fc1.\2", piece=(0, 2)),
    Rule(r"blocks\.(\d+)\.mlp\.w2\.(.+)", r"trunk.blocks.\1.mlp.fc1.\2", piece=(1, 2)),
    Rule(r"blocks\.(\d+)\.mlp\.w3\.(.+)", r"trunk.blocks.\1.mlp.fc2.\2"),
    Rule(r"blocks\.(.+)", r"trunk.blocks.\1"),
    *ADAPTER_RULES,
]


def without_unused_position(state_dict: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Remove the position of the class token where a checkpoint has no class token."""
    positions = state_dict.get("backbone.pos_embed")
    if "backbone.cls_token" in state_dict or positions is None:
        return state_dict
    if positions.dim() != 3:
        raise ConversionError(f"backbone.pos_embed is {shape_of(positions)}, expected (1, 1 + positions, channels)")
    return {**state_dict, "backbone.pos_embed": positions[:, 1:].clone()}


def read_config(settings: Settings) -> ViTAdapterConfig:
    """Convert the settings of DINOv2's `ViTAdapter`; the defaults are the original's.

    Raises:
        ConversionError: if the text lacks `pretrain_size`, which the weights need and which no released file shows.
    """
    depth, patch = depth_of(settings), settings.count("patch_size", 16)
    width, swiglu = settings.count("embed_dim", 768), settings.expect("ffn_type", "mlp", "swiglu") == "swiglu"
    ratio = settings.take("mlp_ratio", 4)
    if swiglu:  # one matrix makes both halves; half a channel more, because timm truncates
        ratio = (2 * aligned(width * ratio * 2 / 3, 8) + 0.5) / width
    if not settings.has("pretrain_size"):
        raise ConversionError(
            "backbone.pretrain_size is missing: add the side in pixels of the images that the position embeddings are "
            "made for, such as 518 for the released trunks"
        )
    pre_norm, use_cls = settings.take("pre_norm", False), settings.take("use_cls", True)
    settings.drop("img_size", "freeze_vit", "memeff")  # speed and training only; positions have pretrain_size
    settings.put("embed_dim", width)
    settings.put("mlp_ratio", ratio)
    size = "vit_giant" if swiglu else DINOV2_NAMES.get(width, "vit_base")
    return pyramid_config(
        settings,
        ViTAdapterConfig,
        {},
        f"{size}_patch14_dinov2",
        depth,
        patch_size=patch,
        token_stride=patch,
        pretrain_image_size=settings.sides("pretrain_size"),
        qkv_bias=settings.take("qkv_bias", True),
        patch_bias=not pre_norm,
        pre_norm=pre_norm,
        layer_scale_init_value=1.0 if settings.take("layer_scale", True) else 0.0,
        layer_norm_eps=1e-6,
        use_prefix_tokens=use_cls,
        window_sizes=window_sizes(settings.take("window_attn", False), settings.take("window_size", 14), depth),
        injector_init_value=settings.take("init_values", 0.0),
        use_extra_extractors=settings.take("use_extra_extractor", True),
    )


BACKBONE = Backbone(RULES, read_config, without_unused_position)


def is_own(kind: str, settings: Settings) -> bool:
    """Return whether a backbone of mmseg's type `kind` is DINOv2's."""
    return kind == "ViTAdapter" and settings.has(*OWN_SETTINGS)
