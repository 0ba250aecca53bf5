# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""InternImage and FlashInternImage backbones, from segmentors and from image classifiers.

Sources: `segmentation/mmseg_custom/models/backbones` of OpenGVLab/InternImage and OpenGVLab/DCNv4 for segmentors;
`classification/huggingface` of the first for the layout of classifiers on the Hub. Classifiers also exist as `.pth`
files.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedConfig

from ..escaping import short_repr
from ..models.internimage import InternImageConfig
from .mapping import Backbone, ConversionError, Rule, Settings

_DCN_PARTS = (
    (r"dw_conv\.0", "depthwise"),
    (r"dw_conv\.1\.1", "depthwise_norm"),
    ("offset", "offset"),
    ("mask", "mask"),
    ("input_proj", "input_proj"),
    ("output_proj", "output_proj"),
    # FlashInternImage
    ("offset_mask_dw", "depthwise"),
    ("offset_mask", "offset_mask"),
    ("value_proj", "input_proj"),
)
_BLOCK = r"levels\.(\d)\.blocks\.(\d+)\."
RULES = [
    Rule(r"patch_embed\.conv([12])\.(.+)", r"embeddings.conv\1.\2"),
    Rule(r"patch_embed\.norm([12])\.1\.(.+)", r"embeddings.norm\1.\2"),
    *(
        Rule(rf"{_BLOCK}dcn\.{theirs}\.(.+)", rf"stages.\1.blocks.\2.spatial.layer.{ours}.\3")
        for theirs, ours in _DCN_PARTS
    ),
    Rule(_BLOCK + r"dcn\.center_feature_scale_proj_(weight|bias)", r"stages.\1.blocks.\2.spatial.layer.center_gate.\3"),
    Rule(_BLOCK + r"mlp\.(.+)", r"stages.\1.blocks.\2.channel.layer.\3"),
    *(
        rule
        for number, branch in ((1, "spatial"), (2, "channel"))
        for rule in (
            Rule(rf"{_BLOCK}norm{number}\.0\.(.+)", rf"stages.\1.blocks.\2.{branch}.norm.\3"),
            # the original builds these norms but does not use them with post-norm or a layer scale
            Rule(
                rf"{_BLOCK}res_post_norm{number}\.0\.(.+)",
                rf"stages.\1.blocks.\2.{branch}.result_norm.\3",
                optional=True,
            ),
            Rule(rf"{_BLOCK}(?:gamma|layer_scale){number}", rf"stages.\1.blocks.\2.{branch}.gamma"),
        )
    ),
    Rule(r"levels\.(\d)\.norm\.0\.(.+)", r"stages.\1.norm.\2"),
    Rule(r"levels\.(\d)\.post_norms\.(\d+)\.0\.(.+)", r"stages.\1.block_norms.\2.\3"),
    Rule(r"levels\.(\d)\.downsample\.conv\.(.+)", r"downsamples.\1.conv.\2"),
    Rule(r"levels\.(\d)\.downsample\.norm\.1\.(.+)", r"downsamples.\1.norm.\2"),
]
# fields of a config.json that do not describe the network: those of every config, `torch_dtype` of older versions,
# `auto_map` of remote code, and `initializer_range` for new weights
_HUB_FIELDS = {*PreTrainedConfig().to_dict(), "model_type", "torch_dtype", "auto_map", "initializer_range"}
_CLASSIFIER = r"(?:model\.)?"  # prefix in the Hub's layout
CLASSIFIER_RULES = [
    Rule(
        _CLASSIFIER + r"(?:conv_head|head|dcnv3_head_x[34]|clip_projector|fc_norm)\..+",
        None,
        why="part of the image classifier",
    ),
    *(replace(rule, pattern=_CLASSIFIER + rule.pattern) for rule in RULES),
]


def read_config(settings: Settings) -> InternImageConfig:
    """Convert the settings of mmseg's `InternImage`, or of the Hub's `internimage`; the defaults are the original's."""
    own = {
        "layer_scale_init_value": settings.take("layer_scale", None),
        "depthwise_kernel_size": settings.take("dw_kernel_size", None) or 3,
    }
    # DCNv3_pytorch computes the same as DCNv3
    settings.expect("core_op", "DCNv3", "DCNv3_pytorch")
    settings.expect("use_dcn_v4_op", False)  # DCNv4's kernel on DCNv3's layer rounds differently; no model uses it
    return _read_common(settings, own)


def read_flash_config(settings: Settings) -> InternImageConfig:
    """Convert the settings of mmseg's `FlashInternImage`; the defaults are the original's."""
    own = {
        "core_operator": "dcnv4",
        "layer_scale_init_value": settings.take("layer_scale", None),
        "depthwise_kernel_size": settings.take("dw_kernel_size", None),
        "output_bias": settings.take("dcn_output_bias", False),
        "mlp_output_bias": settings.take("mlp_fc2_bias", False),
    }
    settings.expect("core_op", "DCNv4")
    return _read_common(settings, own)


def _read_common(settings: Settings, own: Mapping[str, Any]) -> InternImageConfig:
    """Convert the settings that both backbones have, and add those that differ."""
    block_ids = settings.take("level2_post_norm_block_ids", None)
    if not settings.take("level2_post_norm", False):
        block_ids = None
    stages = settings.take("out_indices", (0, 1, 2, 3))
    if (
        not isinstance(stages, list | tuple)
        or not 1 <= len(stages) <= 4
        or not all(type(stage) is int and 0 <= stage <= 3 for stage in stages)
    ):
        raise ConversionError(f"backbone.out_indices is {short_repr(stages)}; expected a list of stages from 0 to 3")
    config = InternImageConfig(
        embed_dim=settings.take("channels", 64),
        depths=settings.counts("depths", [3, 4, 18, 5]),
        num_groups=settings.take("groups", [3, 6, 12, 24]),
        mlp_ratio=settings.take("mlp_ratio", 4.0),
        post_norm=settings.take("post_norm", False),
        res_post_norm=settings.take("res_post_norm", False),
        offset_scale=settings.take("offset_scale", 1.0),
        center_feature_scale=settings.take("center_feature_scale", False),
        remove_center=settings.take("remove_center", False),
        stage3_norm_block_ids=block_ids,
        drop_path_rate=settings.take("drop_path_rate", 0.2),
        out_features=[f"stage{index + 1}" for index in stages],
        **own,
    )
    settings.expect("act_layer", "GELU")
    settings.expect("norm_layer", "LN")
    settings.expect("drop_rate", 0.0)
    settings.expect("drop_path_type", "linear")
    settings.drop("type", "init_cfg", "pretrained", "with_cp")
    settings.drop("num_classes", "cls_scale", "use_clip_projector")  # settings of the classifier
    settings.drop(*_HUB_FIELDS)
    settings.finish()
    return config


def with_layer_scale(config: InternImageConfig, state_dict: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Add layer scales at their initial value to a classifier's tensors without any, if the backbone has layer scales.

    InternImage-T was pre-trained without layer scale. The original does the same when it loads such a file.
    """
    scale = config.layer_scale_init_value
    names = [name for name in state_dict if isinstance(name, str)]
    block = _CLASSIFIER + _BLOCK
    if scale is None or any(re.fullmatch(block + "(?:gamma|layer_scale)[12]", name) for name in names):
        return state_dict
    norms = {name: match for name in names if (match := re.fullmatch(rf"({block})norm([12])\.0\.weight", name))}
    return {**state_dict} | {
        f"{match[1]}gamma{match[4]}": torch.full_like(state_dict[name], float(scale)) for name, match in norms.items()
    }


BACKBONES = {"InternImage": Backbone(RULES, read_config), "FlashInternImage": Backbone(RULES, read_flash_config)}
# readers of image classifiers' configs, by type name of mmseg or model type on the Hub
CLASSIFIERS = {"InternImage": read_config, "internimage": read_config, "FlashInternImage": read_flash_config}
