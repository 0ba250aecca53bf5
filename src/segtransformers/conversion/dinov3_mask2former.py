# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""DINOv3's adapter and Mask2Former over its trunks (`FeatureDecoder` with `decoder_type="m2f"`).

Names and shapes: the head file `dinov3_vit7b16_ade20k_m2f_head` and the recorded behaviour of facebookresearch/dinov3.
"""

from collections.abc import Mapping
from typing import Any

import torch

from ..models.mask2former import SegMask2FormerConfig
from ..models.vit_adapter import ViTAdapterConfig
from .dino_trunks import DINOV3_RULES, read_dinov3_trunk
from .mapping import MOST_CLASSES, ConversionError, Rule, Settings, prefixed
from .protocol import read_test_cfg
from .vit_adapter import ADAPTER_RULES

ADAPTER = "segmentation_model.0."
TRUNK = f"{ADAPTER}backbone."
HEAD = "segmentation_model.1."
# numbers that the original's code fixes
_NUM_HEADS, _FEED_FORWARD = 16, 4096

_ENCODER_LAYER = r"encoder\.encoder\.layers\.(\d+)\."
_PIXEL_DECODER = [
    Rule(r"input_convs\.(.+)", r"input_projections.\1"),
    Rule(r"lateral_convs\.0\.weight", r"adapter_1.0.weight"),
    Rule(r"lateral_convs\.0\.norm\.(.+)", r"adapter_1.1.\1"),
    Rule(r"output_convs\.0\.weight", r"layer_1.0.weight"),
    Rule(r"output_convs\.0\.norm\.(.+)", r"layer_1.1.\1"),
    Rule(r"mask_feature\.(.+)", r"mask_projection.\1"),
    Rule(r"encoder\.level_encoding", r"level_embed"),
    Rule(_ENCODER_LAYER + r"self_attn\.(.+)", r"encoder.layers.\1.self_attn.\2"),
    Rule(_ENCODER_LAYER + r"norm1\.(.+)", r"encoder.layers.\1.self_attn_layer_norm.\2"),
    Rule(_ENCODER_LAYER + r"norm2\.(.+)", r"encoder.layers.\1.final_layer_norm.\2"),
    Rule(_ENCODER_LAYER + r"linear([12])\.(.+)", r"encoder.layers.\1.fc\2.\3"),
]
_CROSS, _SELF, _FFN = (rf"transformer_{kind}_layers\.(\d+)\." for kind in ("cross_attention", "self_attention", "ffn"))
_PREDICTOR = [
    Rule(_CROSS + r"multihead_attn\.(.+)", r"decoder.layers.\1.cross_attn.\2"),
    Rule(_CROSS + r"norm\.(.+)", r"decoder.layers.\1.cross_attn_layer_norm.\2"),
    Rule(_SELF + r"self_attn\.in_proj_(.+)", r"decoder.layers.\1.self_attn.{part}_proj.\2", parts="qkv"),
    Rule(_SELF + r"self_attn\.(.+)", r"decoder.layers.\1.self_attn.\2"),
    Rule(_SELF + r"norm\.(.+)", r"decoder.layers.\1.self_attn_layer_norm.\2"),
    Rule(_FFN + r"linear([12])\.(.+)", r"decoder.layers.\1.fc\2.\3"),
    Rule(_FFN + r"norm\.(.+)", r"decoder.layers.\1.final_layer_norm.\2"),
    Rule(r"post_norm\.(.+)", r"decoder.layernorm.\1"),
    Rule(r"mask_embed\.layers\.(\d)\.(.+)", r"decoder.mask_predictor.mask_embedder.\1.0.\2"),
    Rule(r"query_feat\.(.+)", r"queries_features.\1"),
    Rule(r"query_embed\.(.+)", r"queries_embedder.\1"),
    Rule(r"level_embed\.(.+)", r"level_embed.\1"),
]
RULES = [
    *prefixed(TRUNK, DINOV3_RULES, "backbone."),
    *prefixed(ADAPTER, ADAPTER_RULES, "backbone."),
    *prefixed(f"{HEAD}pixel_decoder.", _PIXEL_DECODER, "pixel_decoder."),
    Rule(r"segmentation_model\.1\.predictor\.class_embed\.(.+)", r"class_predictor.\1"),
    *prefixed(f"{HEAD}predictor.", _PREDICTOR, "transformer_module."),
]


def described(state_dict: Mapping[str, torch.Tensor]) -> dict[str, Any] | None:
    """Return the config of a Mask2Former from the tensors of its file; None for the tensors of another model.

    The sliding windows are those of the released model.
    """
    classes, queries = (state_dict.get(f"{HEAD}predictor.{name}.weight") for name in ("class_embed", "query_feat"))
    if classes is None or queries is None or classes.dim() != 2 or queries.dim() != 2:
        return None
    return {
        "type": "FeatureDecoder",
        "decoder_type": "m2f",
        "backbone_out_layers": "FOUR_EVEN_INTERVALS",
        "num_classes": classes.shape[0] - 1,
        "hidden_dim": queries.shape[1],
        "test_cfg": {"mode": "slide", "crop_size": [896, 896], "stride": [596, 596]},
    }


def check_width(state_dict: Mapping[str, torch.Tensor], trunk: Mapping[str, torch.Tensor]) -> None:
    """Refuse a trunk of another width than that of the adapter, before a model is built from its numbers.

    Raises:
        ConversionError: with both widths.
    """
    adapter, token = state_dict.get(f"{ADAPTER}level_embed"), trunk.get("cls_token")
    if adapter is None or token is None or not adapter.dim() or not token.dim():
        return
    if adapter.shape[-1] != token.shape[-1]:
        raise ConversionError(
            f"the adapter has {adapter.shape[-1]} channels, but the backbone has {token.shape[-1]}: pass the "
            "backbone's file that the adapter was trained on"
        )


def read_config(config: Mapping[str, Any], indices: list[int]) -> SegMask2FormerConfig:
    """Convert the settings of a `FeatureDecoder` with Mask2Former.

    Args:
        config: the settings.
        indices: the blocks that the extractors read.
    """
    settings = Settings(config, "the model config")
    trunk = settings.part("backbone")
    fields = read_dinov3_trunk(trunk)
    trunk.finish()
    width = settings.count("hidden_dim", 2048)
    starts = [0, *(index + 1 for index in indices[:-1])]
    fields |= {
        "use_injectors": False,
        "adapter_layer_norm_eps": 1e-6,
        "adapter_drop_path_rate": 0.3,
        "interaction_indexes": [list(pair) for pair in zip(starts, indices, strict=True)],
        "deformable_num_heads": _NUM_HEADS,
        "deformable_value_ratio": 0.5,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }
    head = {
        "num_labels": settings.count("num_classes", most=MOST_CLASSES),
        "hidden_dim": width,
        "encoder_feedforward_dim": _FEED_FORWARD,
        "dim_feedforward": _FEED_FORWARD,
        "num_attention_heads": _NUM_HEADS,
        "resize_mask_logits": True,
        "square_window_if_smaller": True,
        **read_test_cfg(settings.take("test_cfg", None)),
    }
    settings.drop("type", "hub", "decoder_type", "backbone_out_layers")
    settings.finish()
    return SegMask2FormerConfig(backbone_config=ViTAdapterConfig(**fields), **head)
