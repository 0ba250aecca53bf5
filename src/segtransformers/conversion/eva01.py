# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""EVA-01's ViT-Adapters: a BEiT with absolute positions at the size of the crop.

Source: `EVA-01/seg/mmseg_custom/models/backbones/{beit_adapter,beit_win_adapter}.py` of baaivision/EVA. The first has
the type of czczup/ViT-Adapter's `BEiTAdapter`, which has no absolute positions.
"""

from typing import Any

from ..escaping import short_repr
from ..models.vit_adapter import ViTAdapterConfig
from .mapping import Backbone, ConversionError, Rule, Settings
from .vit_adapter import BEIT_NAMES, BEIT_RULES, depth_of, pyramid_config, window_sizes, without_first_position

RULES = [Rule(r"pos_embed", r"trunk.embeddings.pos_embed", without_first_position), *BEIT_RULES]


def read_config(settings: Settings, **fields: Any) -> ViTAdapterConfig:
    """Convert the settings of EVA-01's `BEiTAdapter`; the defaults are the original's."""
    settings.require("use_abs_pos_emb", True)
    settings.take("use_shared_rel_pos_bias", False)
    settings.take("pretrain_size", 224)  # img_size determines the number of positions
    defaults = {
        "use_relative_position_bias": settings.take("use_rel_pos_bias", False),
        "use_prefix_tokens": True,
        "use_prefix_positions": False,
    }
    return pyramid_config(
        settings,
        ViTAdapterConfig,
        BEIT_NAMES,
        "beit_base_patch16_224",
        depth_of(settings),
        patch_size=settings.expect("patch_size", 16),
        pretrain_image_size=settings.sides("img_size", 512),
        qkv_bias=settings.take("qkv_bias", False),
        use_absolute_position_embeddings=True,
        layer_scale_init_value=settings.take("init_values", None) or 0.0,
        layer_norm_eps=1e-6,
        injector_init_value=settings.take("inj_init_values", 0.0),
        use_extra_extractors=settings.take("use_extra_extractor", True),
        **{**defaults, **fields},
    )


def read_windowed_config(settings: Settings) -> ViTAdapterConfig:
    """Convert the settings of EVA-01's `BEiTWINAdapter`: windows, a table in every block, and no class token."""
    depth = depth_of(settings)
    settings.put("depth", depth)
    sides = settings.sides("img_size", 512)
    settings.put("img_size", list(sides))
    use_window, window = settings.take("window_attn", False), settings.take("window_size", 14)
    windows = window_sizes(use_window, window, depth)
    tables = window if isinstance(window, list | tuple) else [window] * depth
    if any(
        not side and (table * 16, table * 16) != sides
        for side, table in zip(windows or [0] * depth, tables, strict=True)
    ):
        raise ConversionError(
            f"backbone.window_size is {short_repr(window)}; expected the side of the whole token grid for every block "
            f"without windows, img_size / 16 = {sides[0] / 16:g}"
        )
    return read_config(
        settings,
        use_relative_position_bias=True,  # whatever use_rel_pos_bias says
        use_prefix_tokens=False,
        window_sizes=windows,
        add_last_trunk_features=settings.expect("version", "old", "new") == "new",
    )


BACKBONE = Backbone(RULES, read_config)
BACKBONES = {"BEiTWINAdapter": Backbone(RULES, read_windowed_config)}


def is_own(kind: str, settings: Settings) -> bool:
    """Return whether a backbone of mmseg's type `kind` is EVA-01's."""
    return kind == "BEiTAdapter" and settings.peek("use_abs_pos_emb") is True
