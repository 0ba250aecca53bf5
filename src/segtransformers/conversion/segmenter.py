# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Segmenter of MMSegmentation and of the official repository.

Sources: `VisionTransformer` with `SegmenterMaskTransformerHead` or `FCNHead` of MMSegmentation; `segm/model` of
rstrudel/segmenter, which writes a `variant.yml` beside every checkpoint.
"""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig

from ..escaping import one_line, printable
from ..image_processing import SegmentationImageProcessor
from ..models.segmenter import SegmenterConfig, SegmenterViTConfig
from .heads import IGNORE_INDEX, loss_fields, take_common
from .mapping import MOST_CLASSES, MOST_LAYERS, Backbone, ConversionError, Rule, Settings, prefixed

# The config overrides every number of these architectures, so the names only describe the model.
VIT_NAMES = {192: "vit_tiny_patch16_384", 384: "vit_small_patch16_384", 1024: "vit_large_patch16_384"}
DISTILLED_NAMES = {192: "deit_tiny_distilled_patch16_224", 384: "deit_small_distilled_patch16_224"}
# mean and standard deviation of red, green and blue, for images from 0 to 1
NORMALIZATIONS = {
    "vit": ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
    "deit": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
}
# largest ratio of the longer to the shorter side of an image in the official repository; variant.yml does not have it
MAX_RATIOS = {"ade20k": 4, "cityscapes": 2, "pascal_context": 8}


def _layer_rules(name: str) -> list[Rule]:
    """Return rules from mmseg's transformer layers to timm's blocks under `name`."""
    layer = r"layers\.(\d+)\."
    return [
        Rule(layer + r"ln([12])\.(.+)", name + r".\1.norm\2.\3"),
        Rule(layer + r"attn\.attn\.in_proj_(weight|bias)", name + r".\1.attn.qkv.\2"),
        Rule(layer + r"attn\.attn\.out_proj\.(.+)", name + r".\1.attn.proj.\2"),
        Rule(layer + r"ffn\.layers\.0\.0\.(.+)", name + r".\1.mlp.fc1.\2"),
        Rule(layer + r"ffn\.layers\.1\.(.+)", name + r".\1.mlp.fc2.\2"),
    ]


VIT_RULES = [
    Rule(r"(cls_token|pos_embed)", r"trunk.embeddings.\1"),
    Rule(r"patch_embed\.projection\.(.+)", r"trunk.embeddings.patch_embed.proj.\1"),
    *_layer_rules("trunk.blocks"),
    Rule(r"ln1\.(.+)", r"trunk.norm.\1"),
]
_MASK_HEAD_RULES = [
    Rule(r"cls_emb", r"class_embeddings"),
    Rule(r"dec_proj\.(.+)", r"input_proj.\1"),
    Rule(r"patch_proj\.(.+)", r"patch_proj.\1"),
    Rule(r"classes_proj\.(.+)", r"class_proj.\1"),
    Rule(r"decoder_norm\.(.+)", r"norm.\1"),
    Rule(r"mask_norm\.(.+)", r"mask_norm.\1"),
    *_layer_rules("layers"),
]
RULES = prefixed("decode_head.", [*_MASK_HEAD_RULES, Rule(r"conv_seg\.(.+)", r"classifier.\1")])


def _transposed(name: str, matrix: torch.Tensor) -> torch.Tensor:
    """Transpose a matrix that the official repository multiplies from the right."""
    if matrix.dim() != 2:
        raise ConversionError(f"{printable(name)} is {tuple(matrix.shape)}, expected a matrix")
    return matrix.t().contiguous()


def _as_convolution(name: str, matrix: torch.Tensor) -> torch.Tensor:
    if matrix.dim() != 2:
        raise ConversionError(f"{printable(name)} is {tuple(matrix.shape)}, expected a matrix")
    return matrix[:, :, None, None]


OFFICIAL_RULES = [
    Rule(r"encoder\.head(_dist)?\..+", None, why="part of the ImageNet classifier"),
    Rule(r"encoder\.(cls_token|dist_token|pos_embed|patch_embed\..+)", r"backbone.trunk.embeddings.\1"),
    Rule(r"encoder\.((?:blocks|norm)\..+)", r"backbone.trunk.\1"),
    Rule(r"decoder\.head\.weight", r"decode_head.classifier.weight", _as_convolution),
    Rule(r"decoder\.head\.bias", r"decode_head.classifier.bias"),
    Rule(r"decoder\.cls_emb", r"decode_head.class_embeddings"),
    Rule(r"decoder\.proj_dec\.(.+)", r"decode_head.input_proj.\1"),
    Rule(r"decoder\.blocks\.(.+)", r"decode_head.layers.\1"),
    Rule(r"decoder\.proj_patch", r"decode_head.patch_proj.weight", _transposed),
    Rule(r"decoder\.proj_classes", r"decode_head.class_proj.weight", _transposed),
    Rule(r"decoder\.decoder_norm\.(.+)", r"decode_head.norm.\1"),
    Rule(r"decoder\.mask_norm\.(.+)", r"decode_head.mask_norm.\1"),
]


def read_vit(settings: Settings) -> SegmenterViTConfig:
    """Convert the settings of mmseg's `VisionTransformer`; the defaults are the original's."""
    width, depth = settings.count("embed_dims", 768), settings.count("num_layers", 12, MOST_LAYERS)
    config = SegmenterViTConfig(
        trunk=VIT_NAMES.get(width, "vit_base_patch16_384"),
        patch_size=settings.count("patch_size", 16),
        pretrain_image_size=settings.sides("img_size", 224),
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=settings.count("num_heads", 12),
        mlp_ratio=settings.take("mlp_ratio", 4),
        drop_path_rate=settings.take("drop_path_rate", 0.0),
        qkv_bias=settings.expect("qkv_bias", True),
        patch_bias=settings.take("patch_bias", True),
        layer_scale_init_value=0.0,
        layer_norm_eps=_take_norm_eps(settings, "backbone"),
        final_norm=settings.take("final_norm", False),
        position_interpolation=settings.take("interpolate_mode", "bicubic"),
        keep_positions_of_same_count=True,
    )
    settings.expect("in_channels", 3)
    settings.expect("out_indices", -1, depth - 1, [depth - 1], (depth - 1,))
    settings.expect("with_cls_token", True)
    for name in ("output_cls_token", "patch_norm", "out_origin"):
        settings.expect(name, False)
    settings.expect("num_fcs", 2)
    settings.expect("act_cfg", {"type": "GELU"})
    for rate in ("drop_rate", "attn_drop_rate"):
        settings.expect(rate, 0.0, None)
    settings.drop("type", "pretrained", "init_cfg", "with_cp", "norm_eval", "frozen_exclude")
    settings.finish()
    return config


def _take_norm_eps(settings: Settings, where: str) -> float:
    norm = Settings(settings.take("norm_cfg", {"type": "LN"}), f"{where}.norm_cfg")
    norm.expect("type", "LN")
    norm.drop("requires_grad")
    eps = norm.take("eps", 1e-5)
    norm.finish()
    return eps


def with_patch_bias(config: Any, state_dict: Mapping[str, torch.Tensor]) -> Any:
    """Add to mmseg's config whether the patch embedding has a bias, as the checkpoint shows.

    MMSegmentation 0.x always has one, 1.x has none by default, and no config mentions it.
    """
    backbone = config.get("backbone") if isinstance(config, Mapping) else None
    if not isinstance(backbone, Mapping) or backbone.get("type") != "VisionTransformer":
        return config
    has_bias = any(str(name).endswith("patch_embed.projection.bias") for name in state_dict)
    return {**config, "backbone": {**backbone, "patch_bias": has_bias}}


def read_mask_head(
    decode_head: Settings, auxiliary_head: Settings | None, backbone_config: PreTrainedConfig, **protocol: Any
) -> SegmenterConfig:
    """Convert the settings of an `EncoderDecoder` with a `SegmenterMaskTransformerHead`.

    Args:
        protocol: fields of [`SegmentationConfig`].
    """
    dropout = decode_head.take("drop_rate", 0.0)
    fields = {
        "decoder_num_hidden_layers": decode_head.count("num_layers", most=MOST_LAYERS),
        "decoder_num_attention_heads": decode_head.count("num_heads"),
        "decoder_hidden_size": decode_head.count("embed_dims"),
        "decoder_mlp_ratio": decode_head.take("mlp_ratio", 4),
        "decoder_drop_path_rate": decode_head.take("drop_path_rate", 0.1),
        "decoder_dropout": dropout,
        "decoder_layer_norm_eps": _take_norm_eps(decode_head, "decode_head"),
    }
    decode_head.expect("attn_drop_rate", dropout, default=0.0)
    decode_head.expect("num_fcs", 2)
    decode_head.expect("qkv_bias", True)
    decode_head.expect("act_cfg", {"type": "GELU"})
    decode_head.drop("init_std", "dropout_ratio")  # this head does not use dropout_ratio
    return _read_head(decode_head, auxiliary_head, backbone_config, fields | protocol)


def read_linear_head(
    decode_head: Settings, auxiliary_head: Settings | None, backbone_config: PreTrainedConfig, **protocol: Any
) -> SegmenterConfig:
    """Convert the settings of an `EncoderDecoder` with an `FCNHead` that has no convolution except the classifier.

    Args:
        protocol: fields of [`SegmentationConfig`].
    """
    decode_head.expect("num_convs", 0, default=2)
    decode_head.expect("concat_input", False, default=True)
    decode_head.drop("kernel_size", "dilation", "norm_cfg", "act_cfg")  # settings of convolutions
    fields = {"decoder_type": "linear", "classifier_dropout": decode_head.take("dropout_ratio", 0.1)}
    return _read_head(decode_head, auxiliary_head, backbone_config, fields | protocol)


def _read_head(
    decode_head: Settings, auxiliary_head: Settings | None, backbone_config: PreTrainedConfig, fields: dict[str, Any]
) -> SegmenterConfig:
    if auxiliary_head is not None:
        raise ConversionError("the model config has an auxiliary_head; Segmenter is converted without one")
    decode_head.expect("in_index", -1)
    decode_head.drop("in_channels", "channels")  # follow from the tensors
    fields["num_labels"] = decode_head.count("num_classes", most=MOST_CLASSES)
    fields[IGNORE_INDEX] = decode_head.take("ignore_index", 255)
    fields |= loss_fields(fields["num_labels"], take_common(decode_head, "decode_head", has_convolutions=False))
    decode_head.finish()
    return SegmenterConfig(backbone_config=backbone_config, **fields)


def read_variant(variant: Mapping[str, Any]) -> SegmenterConfig:
    """Convert the content of an official checkpoint's `variant.yml` into a config."""
    net = Settings(variant, "the variant").part("net_kwargs")
    decoder = net.part("decoder")
    kind = decoder.require("name", "mask_transformer", "linear")
    width, patch = net.count("d_model"), net.count("patch_size")
    is_distilled = net.take("distilled", False)
    names = DISTILLED_NAMES if is_distilled else VIT_NAMES
    backbone_config = SegmenterViTConfig(
        trunk=names.get(width, "deit_base_distilled_patch16_384" if is_distilled else "vit_base_patch16_384"),
        patch_size=patch,
        pretrain_image_size=net.sides("image_size"),
        hidden_size=width,
        num_hidden_layers=net.count("n_layers", most=MOST_LAYERS),
        num_attention_heads=net.count("n_heads"),
        mlp_ratio=4,
        drop_path_rate=net.take("drop_path_rate", 0.0),
        qkv_bias=True,
        patch_bias=True,
        layer_scale_init_value=0.0,
        layer_norm_eps=1e-5,
        final_norm=True,
        position_interpolation="bilinear",
        keep_positions_of_same_count=True,
    )
    fields: dict[str, Any] = {"decoder_type": kind, "num_labels": net.count("n_cls", most=MOST_CLASSES)}
    if kind == "mask_transformer":
        fields |= {
            "decoder_num_hidden_layers": decoder.count("n_layers", most=MOST_LAYERS),
            "decoder_num_attention_heads": width // 64,
            "decoder_drop_path_rate": decoder.take("drop_path_rate"),
            "decoder_dropout": decoder.take("dropout"),
        }
    decoder.drop("n_cls")  # repeats that of net_kwargs
    decoder.finish()
    net.expect("dropout", 0.0)
    net.drop("backbone", "normalization")
    net.finish()
    inference = variant.get("inference_kwargs")
    if inference is not None:
        windows = Settings(inference, "the variant's inference_kwargs")
        fields |= {
            "inference_mode": "slide",
            "window_size": windows.take("window_size"),
            "window_stride": windows.take("window_stride"),
            "enlarge_to_window": True,
        }
    return SegmenterConfig(backbone_config=backbone_config, padding_divisor=patch, count_ignored_pixels=False, **fields)


def read_variant_processor(variant: Mapping[str, Any], reduce_labels: bool) -> SegmentationImageProcessor:
    """Convert the content of an official checkpoint's `variant.yml` into the image processor of its test protocol."""
    net = Settings(variant, "the variant").part("net_kwargs")
    mean, std = NORMALIZATIONS[net.require("normalization", *NORMALIZATIONS)]
    inference = Settings(variant.get("inference_kwargs") or {}, "the variant's inference_kwargs")
    side = inference.count("im_size", max(net.sides("image_size")))
    dataset = Settings(variant.get("dataset_kwargs") or {}, "the variant's dataset_kwargs").take("dataset", None)
    try:
        return SegmentationImageProcessor(
            size={"shortest_edge": side, "longest_edge": MAX_RATIOS.get(str(dataset), MAX_RATIOS["ade20k"]) * side},
            size_divisor=0,
            image_mean=mean,
            image_std=std,
            do_reduce_labels=reduce_labels,
        )
    except (ValueError, TypeError) as error:
        raise ConversionError(f"the variant's image processor is impossible: {one_line(error)}") from error


BACKBONES = {"VisionTransformer": Backbone(VIT_RULES, read_vit)}
