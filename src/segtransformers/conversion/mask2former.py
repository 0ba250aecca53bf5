# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Mask2Former (`Mask2FormerHead`) of the ViT-Adapter, ViT-CoMer and InternImage repositories and MMSegmentation 1.x.

MMSegmentation 1.0.0rc3 has the names and settings of the former, later versions have others.
"""

import math
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import logging

from ..escaping import short_repr
from ..models.mask2former import SegMask2FormerConfig
from ..published import declared_classes
from .mapping import MOST_CLASSES, MOST_LAYERS, ConversionError, Rule, Settings, prefixed

logger = logging.get_logger(__name__)

# by the model type of their configs
ANY_SIZE_BACKBONES = (
    "convnext",
    "resnet",
    "seg_convnext",
    "seg_internimage",
    "seg_resnet",
    "seg_swin",
    "swin",
)
_PIXEL_DECODER = [
    *(
        Rule(rf"{theirs}\.{part}\.(.+)", rf"{ours}.{index}.\{group}")
        for theirs, ours, group in (
            (r"input_convs\.(\d)", r"input_projections.\1", 2),
            (r"lateral_convs\.0", r"adapter_1", 1),
            (r"output_convs\.0", r"layer_1", 1),
        )
        for index, part in enumerate(("conv", "gn"))
    ),
    Rule(r"level_encoding\.weight", r"level_embed"),
    Rule(r"encoder\.layers\.(\d+)\.(?:attentions\.0|self_attn)\.(.+)", r"encoder.layers.\1.self_attn.\2"),
    Rule(r"encoder\.layers\.(\d+)\.norms\.0\.(.+)", r"encoder.layers.\1.self_attn_layer_norm.\2"),
    Rule(r"encoder\.layers\.(\d+)\.norms\.1\.(.+)", r"encoder.layers.\1.final_layer_norm.\2"),
    Rule(r"encoder\.layers\.(\d+)\.(?:ffns\.0|ffn)\.layers\.0\.0\.(.+)", r"encoder.layers.\1.fc1.\2"),
    Rule(r"encoder\.layers\.(\d+)\.(?:ffns\.0|ffn)\.layers\.1\.(.+)", r"encoder.layers.\1.fc2.\2"),
    Rule(r"mask_feature\.(.+)", r"mask_projection.\1"),
]
_LAYER = r"transformer_decoder\.layers\.(\d+)\."
_SELF = r"(?:attentions\.1|self_attn)\.attn\."
_DECODER = [
    Rule(_LAYER + r"(?:attentions\.0|cross_attn)\.attn\.(.+)", r"decoder.layers.\1.cross_attn.\2"),
    Rule(_LAYER + _SELF + r"in_proj_(.+)", r"decoder.layers.\1.self_attn.{part}_proj.\2", parts="qkv"),
    Rule(_LAYER + _SELF + r"(.+)", r"decoder.layers.\1.self_attn.\2"),
    Rule(_LAYER + r"norms\.0\.(.+)", r"decoder.layers.\1.cross_attn_layer_norm.\2"),
    Rule(_LAYER + r"norms\.1\.(.+)", r"decoder.layers.\1.self_attn_layer_norm.\2"),
    Rule(_LAYER + r"norms\.2\.(.+)", r"decoder.layers.\1.final_layer_norm.\2"),
    Rule(_LAYER + r"(?:ffns\.0|ffn)\.layers\.0\.0\.(.+)", r"decoder.layers.\1.fc1.\2"),
    Rule(_LAYER + r"(?:ffns\.0|ffn)\.layers\.1\.(.+)", r"decoder.layers.\1.fc2.\2"),
    Rule(r"transformer_decoder\.post_norm\.(.+)", r"decoder.layernorm.\1"),
    *(
        Rule(rf"mask_embed\.{2 * index}\.(.+)", rf"decoder.mask_predictor.mask_embedder.{index}.0.\1")
        for index in range(3)
    ),
    Rule(r"query_embed\.(.+)", r"queries_embedder.\1"),
    Rule(r"query_feat\.(.+)", r"queries_features.\1"),
    Rule(r"level_embed\.(.+)", r"level_embed.\1"),
]


RULES = [
    *prefixed("decode_head.pixel_decoder.", _PIXEL_DECODER, "pixel_decoder."),
    Rule(r"decode_head\.cls_embed\.(.+)", r"class_predictor.\1"),
    Rule(r"decode_head\.conv_seg\..+", None, why="the first version of the head builds it but does not use it"),
    *prefixed("decode_head.", _DECODER, "transformer_module."),
]


def read_config(
    decode_head: Settings, auxiliary_head: Settings | None, backbone_config: PreTrainedConfig, **protocol: Any
) -> SegMask2FormerConfig:
    """Convert the settings of a `Mask2FormerHead` in an `EncoderDecoderMask2Former`, or an `EncoderDecoder` of 1.x.

    Args:
        protocol: further fields of [`SegMask2FormerConfig`].
    """
    if auxiliary_head is not None:
        raise ConversionError("the model config has an auxiliary_head; Mask2Former is converted without one")
    width = decode_head.take("feat_channels")
    channels = decode_head.take("in_channels")
    if not isinstance(channels, list | tuple) or len(channels) != 4:
        raise ConversionError(f"decode_head.in_channels is {short_repr(channels)}; expected one for each feature map")
    decode_head.expect("in_index", [0, 1, 2, 3], (0, 1, 2, 3))
    defaults = {"num_classes": None, "num_things_classes": 80, "num_stuff_classes": 53}
    num_labels = declared_classes({name: decode_head.take(name, default) for name, default in defaults.items()})
    if type(num_labels) is not int or not 1 <= num_labels <= MOST_CLASSES:
        raise ConversionError(f"decode_head has {short_repr(num_labels)} classes; expected 1 to {MOST_CLASSES}")
    losses = _read_losses(decode_head, num_labels)
    fields = {
        "num_labels": num_labels,
        "hidden_dim": width,
        "mask_feature_size": decode_head.take("out_channels"),
        "num_queries": decode_head.take("num_queries", 100),
        # InternImage and the backbones of transformers take any image size, the others need multiples of their stride
        "pad_to_stride": backbone_config.model_type not in ANY_SIZE_BACKBONES,
        **_read_pixel_decoder(decode_head.part("pixel_decoder"), width),
        **_read_decoder(decode_head.part("transformer_decoder"), width),
        **losses,
        **_read_train_cfg(decode_head.take("train_cfg", None), losses),
    }
    decode_head.expect("num_transformer_feat_level", 3)
    decode_head.expect("enforce_decoder_input_project", False)
    _expect_encoding(decode_head.part("positional_encoding"), width)
    decode_head.drop("test_cfg", "init_cfg", "ignore_index", "align_corners", "strides")
    decode_head.finish()
    return SegMask2FormerConfig(backbone_config=backbone_config, **fields, **protocol)


def _read_pixel_decoder(settings: Settings, width: Any) -> dict[str, Any]:
    settings.expect("type", "MSDeformAttnPixelDecoder")
    settings.expect("num_outs", 3)
    settings.expect("act_cfg", {"type": "ReLU"}, {"type": "ReLU", "inplace": True})
    settings.drop("init_cfg", "in_channels", "strides", "feat_channels", "out_channels")
    norm = settings.part("norm_cfg")
    norm.expect("type", "GN")
    groups = norm.take("num_groups", 32)
    norm.expect("eps", 1e-5)
    norm.drop("requires_grad")
    norm.finish()
    _expect_encoding(settings.part("positional_encoding"), width)
    encoder = settings.part("encoder")
    settings.finish()

    encoder.expect("type", "DetrTransformerEncoder")
    fields = {"norm_groups": groups, "encoder_layers": encoder.count("num_layers", most=MOST_LAYERS)}
    layers, is_newer = _take_layers(encoder)
    if is_newer:
        attention = layers.part("self_attn_cfg")
    else:
        layers.expect("type", "BaseTransformerLayer")
        _expect_order(layers, ["self_attn", "norm", "ffn", "norm"])
        attention = layers.part("attn_cfgs")
    fields["encoder_feedforward_dim"] = _take_feed_forward(layers, width, is_newer)
    layers.finish()

    attention.expect("type", "MultiScaleDeformableAttention")
    attention.expect("embed_dims", width)
    attention.expect("num_levels", 3, default=4)
    attention.expect("num_points", 4)
    attention.expect("dropout", 0.0, default=0.1)
    attention.drop("im2col_step", "batch_first", "norm_cfg", "init_cfg")
    fields["encoder_attention_heads"] = attention.take("num_heads", 8)
    attention.finish()
    return fields


def _take_layers(settings: Settings) -> tuple[Settings, bool]:
    """Take the settings of the layers of an encoder or decoder, with the number of layers taken before.

    Returns:
        the settings, and whether they have the names of MMSegmentation 1.1 and later.
    """
    newer = settings.take("layer_cfg", None)
    layers = settings.part("transformerlayers") if newer is None else Settings(newer, f"{settings.where}.layer_cfg")
    settings.drop("init_cfg")
    settings.finish()
    return layers, newer is not None


def _read_decoder(settings: Settings, width: Any) -> dict[str, Any]:
    settings.expect("type", "DetrTransformerDecoder")
    settings.expect("return_intermediate", True, default=False)
    depth = settings.count("num_layers", most=MOST_LAYERS)
    layers, is_newer = _take_layers(settings)
    if is_newer:
        attentions = [layers.part("self_attn_cfg"), layers.part("cross_attn_cfg")]
        layers.expect("norm_cfg", {"type": "LN"})
        layers.drop("init_cfg")
        feed_forward = _take_feed_forward(layers, width, is_newer)
    else:
        layers.expect("type", "DetrTransformerDecoderLayer")
        _expect_order(layers, ["cross_attn", "norm", "self_attn", "norm", "ffn", "norm"])
        attentions = [layers.part("attn_cfgs")]
        feed_forward = _take_feed_forward(layers, width, is_newer)
        layers.expect("feedforward_channels", feed_forward)
    layers.finish()

    heads = [_take_heads(attention, width) for attention in attentions]
    if len(set(heads)) > 1:
        raise ConversionError(f"{settings.where} has {heads[0]} heads of self-attention and {heads[1]} of the other")
    # transformers counts predictions, one more than layers
    return {"decoder_layers": depth + 1, "dim_feedforward": feed_forward, "num_attention_heads": heads[0]}


def _take_heads(attention: Settings, width: Any) -> int:
    """Take the settings of a decoder layer's attention and return its number of heads."""
    attention.expect("type", "MultiheadAttention")
    attention.expect("embed_dims", width)
    for name in ("attn_drop", "proj_drop", "dropout_layer"):
        attention.expect(name, 0.0, None)
    attention.drop("batch_first", "init_cfg")
    heads = attention.count("num_heads")
    attention.finish()
    return heads


def _take_feed_forward(layers: Settings, width: Any, is_newer: bool) -> Any:
    """Take the settings of a layer's feed-forward network and return its hidden width."""
    settings = layers.part("ffn_cfg" if is_newer else "ffn_cfgs")
    settings.expect("type", "FFN")
    settings.expect("embed_dims", width)
    settings.expect("num_fcs", 2)
    settings.expect("act_cfg", {"type": "ReLU", "inplace": True}, {"type": "ReLU"})
    settings.expect("add_identity", True)
    for name in ("ffn_drop", "dropout_layer"):
        settings.expect(name, 0.0, None)
    settings.drop("with_cp", "init_cfg")
    hidden = settings.take("feedforward_channels")
    settings.finish()
    return hidden


def _expect_order(layers: Settings, order: list[str]) -> None:
    layers.expect("operation_order", order, tuple(order))
    layers.expect("norm_cfg", {"type": "LN"})
    layers.drop("init_cfg", "batch_first")


def _expect_encoding(settings: Settings, width: Any) -> None:
    settings.expect("type", "SinePositionalEncoding")
    settings.expect("num_feats", width // 2 if isinstance(width, int) else width)
    settings.expect("normalize", True, default=False)
    settings.expect("temperature", 10000)
    settings.expect("offset", 0.0)
    settings.expect("eps", 1e-6)
    settings.expect("scale", 2 * math.pi)
    settings.drop("init_cfg")
    settings.finish()


def _read_losses(head: Settings, num_labels: int) -> dict[str, Any]:
    """Return the weights of the losses. Warn about other kinds of losses, which matter for training only."""
    fields: dict[str, Any] = {}
    for name, field, plain in (
        ("loss_cls", "class_weight", {"type": "CrossEntropyLoss", "use_sigmoid": False, "reduction": "mean"}),
        ("loss_mask", "mask_weight", {"type": "CrossEntropyLoss", "use_sigmoid": True, "reduction": "mean"}),
        (
            "loss_dice",
            "dice_weight",
            {
                "type": "DiceLoss",
                "use_sigmoid": True,
                "activate": True,
                "reduction": "mean",
                "naive_dice": True,
                "eps": 1.0,
            },
        ),
    ):
        loss = head.take(name, None)
        if loss is None:
            continue
        loss = dict(loss) if isinstance(loss, Mapping) else {"type": loss}
        fields[field] = loss.pop("loss_weight", 1.0)
        if name == "loss_cls":
            weights = loss.pop("class_weight", None) or [1.0]
            fields["no_object_weight"] = weights[-1]
            if any(weight != 1.0 for weight in weights[:-1]):
                if len(weights) == num_labels + 1:
                    fields["label_weights"] = weights[:-1]
                else:
                    _warn(name, f"has {len(weights)} weights for {num_labels} classes and no object")
        if loss != plain:
            _warn(name, f"is {short_repr(loss, 200)}")
    return fields


# by their names in 0.x: the field of our config, and the type in MMSegmentation 1.x
_COSTS = {
    "cls_cost": ("class_weight", "ClassificationCost"),
    "mask_cost": ("mask_weight", "CrossEntropyLossCost"),
    "dice_cost": ("dice_weight", "DiceCost"),
}


def _read_train_cfg(train_cfg: Any, losses: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sampling of points in the training losses.

    Warn if the weights of the assigner differ from those of the losses, because our model uses the latter for both.
    """
    settings = dict(train_cfg) if isinstance(train_cfg, Mapping) else {}
    assigner = settings.get("assigner")
    assigner = assigner if isinstance(assigner, Mapping) else {}
    costs = {name: assigner[name] for name in _COSTS if name in assigner}
    newer = assigner.get("match_costs")  # MMSegmentation 1.x
    for cost in newer if isinstance(newer, list | tuple) else []:
        kind = cost.get("type") if isinstance(cost, Mapping) else None
        costs |= {name: cost for name, (_, newer_kind) in _COSTS.items() if newer_kind == kind}
    for name, (field, _) in _COSTS.items():
        weight = costs[name].get("weight", 1.0) if isinstance(costs.get(name), Mapping) else None
        if weight is not None and weight != losses.get(field, weight):
            _warn(f"train_cfg.assigner.{name}", f"has the weight {short_repr(weight)}")
    names = {"train_num_points": "num_points"} | {
        name: name for name in ("oversample_ratio", "importance_sample_ratio")
    }
    return {field: settings[name] for field, name in names.items() if name in settings}


def _warn(name: str, reason: str) -> None:
    logger.warning(f"decode_head.{name} {reason}: the converted model predicts the same but trains with another loss")
