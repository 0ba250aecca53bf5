# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""EVA-02's backbone `EVA2` and unilm's `BEiT`, plain ViTs with a simple feature pyramid.

Sources: `EVA-02/seg/backbone/eva2.py` of baaivision/EVA; `beit/semantic_segmentation/backbone/beit.py` of
microsoft/unilm, whose names and settings the first one extends. The options of `EVA2` select one of three kinds of
trunk: queries, keys and values from three layers with a norm in the MLP (base and large EVA-02), from one layer without
it (tiny and small), and without rotary positions, which is BEiT.
"""

from collections.abc import Mapping, Sequence

import torch

from ..escaping import short_repr
from ..models.vit_simple_pyramid import ViTSimplePyramidConfig
from .mapping import MOST_LAYERS, Backbone, ConversionError, Rule, Settings

# the config overrides every number of these architectures
SEPARATE, FUSED, BEIT = "eva02_base_patch14_224", "eva02_tiny_patch14_224", "beit_base_patch16_224"
SEPARATE_NAMES = {768: SEPARATE, 1024: "eva02_large_patch14_224"}
_SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"
_BLOCK = r"blocks\.(\d+)\."

# rules of a trunk's blocks by its kind; the new names are timm's
_SEPARATE_RULES = [
    Rule(_BLOCK + r"attn\.([qv])_bias", r"blocks.\1.attn.\2_proj.bias"),
    Rule(_BLOCK + r"mlp\.w1\.(.+)", r"blocks.\1.mlp.fc1_g.\2"),
    Rule(_BLOCK + r"mlp\.w2\.(.+)", r"blocks.\1.mlp.fc1_x.\2"),
    Rule(_BLOCK + r"mlp\.ffn_ln\.(.+)", r"blocks.\1.mlp.norm.\2"),
    Rule(_BLOCK + r"mlp\.w3\.(.+)", r"blocks.\1.mlp.fc2.\2"),
]
_FUSED_RULES = [
    Rule(_BLOCK + r"mlp\.w1\.(.+)", r"blocks.\1.mlp.fc1.\2", piece=(0, 2)),
    Rule(_BLOCK + r"mlp\.w2\.(.+)", r"blocks.\1.mlp.fc1.\2", piece=(1, 2)),
    Rule(_BLOCK + r"mlp\.w3\.(.+)", r"blocks.\1.mlp.fc2.\2"),
]
_BEIT_RULES = [
    Rule(_BLOCK + rf"attn\.{part}_proj\.weight", r"blocks.\1.attn.qkv.weight", piece=(index, 3))
    for index, part in enumerate("qkv")
]


def block_rules(trunk: str) -> Sequence[Rule]:
    """Return the rules for the blocks of a trunk, from the original's names to timm's."""
    if trunk.startswith("beit"):
        return _BEIT_RULES
    return _FUSED_RULES if trunk in (FUSED, "eva02_small_patch14_224") else _SEPARATE_RULES


def rules_of(config: ViTSimplePyramidConfig) -> list[Rule]:
    """Return the rules for a backbone."""
    table = r"trunk.blocks.\1.relative_position_bias_table"
    return [
        Rule(r"(?:blocks\.\d+\.attn\.)?rope\.freqs_(?:cos|sin)", None, why="follows from the grid"),
        Rule(r".+\.relative_position_index", None, why="follows from the grid"),
        Rule(r"(cls_token|pos_embed|patch_embed\..+)", r"trunk.embeddings.\1"),
        Rule(
            _BLOCK + r"attn\.relative_position_bias_table",
            table,
            optional=True,
            why="the original's attention by xformers never reads it",
        ),
        *(Rule(rule.pattern, f"trunk.{rule.name}", piece=rule.piece) for rule in block_rules(config.trunk)),
        Rule(r"(blocks\..+)", r"trunk.\1"),
        *(Rule(rf"fpn{index + 1}\.(.+)", rf"pyramid.{index}.\1") for index in range(4)),
    ]


def read_config(settings: Settings) -> ViTSimplePyramidConfig:
    """Convert the settings of `EVA2` or `BEiT`; the defaults are the original's.

    Raises:
        ConversionError: naming a setting that cannot be converted.
    """
    width, size = settings.take("embed_dim", 768), settings.sides("img_size", 224)
    depth, patch = settings.count("depth", 12, MOST_LAYERS), settings.count("patch_size", 16)
    is_swiglu, is_subln = settings.take("naiveswiglu", False), settings.take("subln", False)
    is_rotary, uses_xformers = settings.take("rope", False), settings.take("xattn", False)
    if is_rotary != is_swiglu:
        raise ConversionError(
            f"backbone.rope is {is_rotary!r} and naiveswiglu {is_swiglu!r}; only both or none can be converted"
        )
    is_shared, own = settings.take("use_shared_rel_pos_bias", False), settings.take("use_rel_pos_bias", False)
    if is_shared and own:
        raise ConversionError("backbone has use_shared_rel_pos_bias and use_rel_pos_bias; only one can be converted")
    has_tables = bool((is_shared or own) and not uses_xformers)  # xformers' attention ignores them
    if has_tables and is_rotary and is_subln:
        raise ConversionError(
            "backbone has subln, rope and relative position biases, which cannot be converted together"
        )
    trunk = BEIT
    if is_rotary:
        trunk = SEPARATE_NAMES.get(width, SEPARATE) if is_subln else FUSED
    table_side = settings.count("pt_hw_seq_len", 16)
    is_scaled = settings.take("intp_freq", False)
    if is_rotary and not is_scaled and size[0] // patch != table_side:
        raise ConversionError(
            f"backbone.pt_hw_seq_len is {table_side} and img_size {size[0]}; without intp_freq the token grid must "
            "have this side"
        )
    settings.expect("in_chans", 3)
    settings.expect("qk_scale", None)
    for rate in ("drop_rate", "attn_drop_rate"):
        settings.expect(rate, 0.0, None)
    scale = settings.take("init_values", None)
    taps = settings.counts("out_indices", [3, 5, 7, 11], most=4 * MOST_LAYERS)
    config = ViTSimplePyramidConfig(
        trunk=trunk,
        patch_size=patch,
        pretrain_image_size=list(size),
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=settings.take("num_heads", 12),
        mlp_ratio=settings.take("mlp_ratio", 4.0),
        qkv_bias=settings.take("qkv_bias", False),
        use_absolute_position_embeddings=settings.take("use_abs_pos_emb", True),
        use_relative_position_bias=has_tables,
        rotary_reference_grid=[table_side, table_side] if is_rotary else None,
        layer_scale_init_value=0.0 if scale is None else scale,
        layer_norm_eps=1e-6,
        drop_path_rate=settings.take("drop_path_rate", 0.0),
        tapped_blocks=list(taps),
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    if len(config.tapped_blocks or ()) not in (1, 4):
        raise ConversionError(f"backbone.out_indices is {short_repr(taps)}; expected one block or four")
    settings.drop("type", "pretrained", "init_cfg", "use_checkpoint", "num_classes")
    settings.expect("hybrid_backbone", None)
    settings.finish()
    return config


def with_own_tables(state_dict: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Give each block a copy of the table of relative position biases that all blocks share, if there is one."""
    shared = next((name for name in state_dict if name.endswith(_SHARED_TABLE)), None)
    if shared is None:
        return state_dict
    prefix = shared.removesuffix(_SHARED_TABLE)
    blocks = {name.removeprefix(f"{prefix}blocks.").partition(".")[0] for name in state_dict if ".norm1." in name}
    tables = {f"{prefix}blocks.{block}.attn.relative_position_bias_table": state_dict[shared] for block in blocks}
    return {name: tensor for name, tensor in state_dict.items() if name != shared} | tables


BACKBONES = dict.fromkeys(("EVA2", "BEiT"), Backbone(rules_of, read_config, with_own_tables))
