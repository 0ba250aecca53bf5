# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""MMSegmentation's Swin, ConvNeXt and ResNet, converted to transformers' backbones.

Sources: `mmseg/models/backbones/{swin,resnet}.py` of MMSegmentation 0.30 and 1.2,
`mmcls/models/backbones/convnext.py` of MMClassification 0.25 and `mmpretrain/models/backbones/convnext.py` of
MMPretrain 1.2.
"""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from transformers import ConvNextConfig, PreTrainedConfig, ResNetConfig, SwinConfig

from ..escaping import printable, short_repr
from ..models.mask2former import SegMask2FormerConfig
from ..models.variants import SegConvNextConfig, SegResNetConfig, SegSwinConfig
from .mapping import MOST_LAYERS, Backbone, ConversionError, Rule, Settings, shape_of

_GELU = {"type": "GELU"}
_SWIN_BLOCK = r"stages\.(\d)\.blocks\.(\d+)\."
_SWIN_LAYER = r"swin.encoder.layers.\1.blocks.\2."
# depths and channels of the architectures that have a name
_CONVNEXT_ARCHITECTURES = {
    "atto": ([2, 2, 6, 2], [40, 80, 160, 320]),
    "femto": ([2, 2, 6, 2], [48, 96, 192, 384]),
    "pico": ([2, 2, 6, 2], [64, 128, 256, 512]),
    "nano": ([2, 2, 8, 2], [80, 160, 320, 640]),
    "tiny": ([3, 3, 9, 3], [96, 192, 384, 768]),
    "small": ([3, 3, 27, 3], [96, 192, 384, 768]),
    "base": ([3, 3, 27, 3], [128, 256, 512, 1024]),
    "large": ([3, 3, 27, 3], [192, 384, 768, 1536]),
    "xlarge": ([3, 3, 27, 3], [256, 512, 1024, 2048]),
    "huge": ([3, 3, 27, 3], [352, 704, 1408, 2816]),
}
_RESNET_DEPTHS = {
    18: ("basic", [2, 2, 2, 2]),
    34: ("basic", [3, 4, 6, 3]),
    50: ("bottleneck", [3, 4, 6, 3]),
    101: ("bottleneck", [3, 4, 23, 3]),
    152: ("bottleneck", [3, 8, 36, 3]),
}


def reordered_patches(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Reorder the inputs of a patch merging, the last dimension of a tensor `(..., 4 * channels)`.

    The original's input `4c + 2r + k` is channel c of the pixel in row r and column k of a 2x2 patch. transformers has
    it at `(2k + r) * channels + c`.
    """
    if tensor.dim() == 0 or tensor.shape[-1] % 4:
        raise ConversionError(f"{printable(name)} is {shape_of(tensor)}, expected a multiple of 4 as its last side")
    return tensor.unflatten(-1, (-1, 2, 2)).transpose(-3, -1).flatten(-3)


def as_linear_weight(name: str, weight: torch.Tensor) -> torch.Tensor:
    """Return the weight of a 1x1 convolution or linear layer as that of a linear layer."""
    return weight[:, :, 0, 0] if weight.dim() == 4 and weight.shape[2:] == (1, 1) else weight


_OUTPUT_NORMS = [Rule(rf"norm{stage}\.(.+)", rf"hidden_states_norms.stage{stage + 1}.\1") for stage in range(4)]
SWIN_RULES = [
    Rule(_SWIN_BLOCK + r"attn\.w_msa\.relative_position_index", None, why="follows from the window"),
    Rule(r"patch_embed\.projection\.(.+)", r"swin.embeddings.patch_embeddings.projection.\1"),
    Rule(r"patch_embed\.norm\.(.+)", r"swin.embeddings.norm.\1"),
    Rule(r"absolute_pos_embed", r"swin.embeddings.position_embeddings"),
    Rule(_SWIN_BLOCK + r"norm1\.(.+)", _SWIN_LAYER + r"layernorm_before.\3"),
    Rule(_SWIN_BLOCK + r"norm2\.(.+)", _SWIN_LAYER + r"layernorm_after.\3"),
    Rule(_SWIN_BLOCK + r"attn\.w_msa\.qkv\.(.+)", _SWIN_LAYER + r"attention.{part}_proj.\3", parts="qkv"),
    Rule(_SWIN_BLOCK + r"attn\.w_msa\.proj\.(.+)", _SWIN_LAYER + r"attention.o_proj.\3"),
    Rule(
        _SWIN_BLOCK + r"attn\.w_msa\.(relative_position_bias_table)",
        _SWIN_LAYER + r"attention.relative_position_bias.\3",
    ),
    Rule(_SWIN_BLOCK + r"ffn\.layers\.0\.0\.(.+)", _SWIN_LAYER + r"mlp.fc1.\3"),
    Rule(_SWIN_BLOCK + r"ffn\.layers\.1\.(.+)", _SWIN_LAYER + r"mlp.fc2.\3"),
    Rule(r"stages\.(\d)\.downsample\.(.+)", r"swin.encoder.layers.\1.downsample.\2", reordered_patches),
    Rule(r"layernorm\.(.+)", r"swin.layernorm.\1"),  # created by `with_final_norm`
    *_OUTPUT_NORMS,
]
_CONVNEXT_BLOCK = r"stages\.(\d)\.(\d+)\."
_CONVNEXT_LAYER = r"encoder.stages.\1.layers.\2."
CONVNEXT_RULES = [
    Rule(r"downsample_layers\.0\.0\.(.+)", r"embeddings.patch_embeddings.\1"),
    Rule(r"downsample_layers\.0\.1\.(.+)", r"embeddings.layernorm.\1"),
    Rule(r"downsample_layers\.(\d)\.([01])\.(.+)", r"encoder.stages.\1.downsampling_layer.\2.\3"),
    Rule(_CONVNEXT_BLOCK + r"depthwise_conv\.(.+)", _CONVNEXT_LAYER + r"dwconv.\3"),
    Rule(_CONVNEXT_BLOCK + r"norm\.(.+)", _CONVNEXT_LAYER + r"layernorm.\3"),
    Rule(_CONVNEXT_BLOCK + r"pointwise_conv([12])\.(.+)", _CONVNEXT_LAYER + r"pwconv\3.\4", as_linear_weight),
    Rule(_CONVNEXT_BLOCK + r"gamma", _CONVNEXT_LAYER + r"layer_scale_parameter"),
    *_OUTPUT_NORMS,
]


def _resnet_rules() -> list[Rule]:
    """Return the rules for a ResNet. Indices of layers and stages start at 1 in the original and at 0 in ours."""
    kinds = (("conv", "convolution"), ("bn", "normalization"))
    rules = [Rule(rf"{theirs}1\.(.+)", rf"embedder.embedder.{ours}.\1") for theirs, ours in kinds]
    for index in range(3):  # the stem of ResNetV1c, with activations between
        rules += [
            Rule(rf"stem\.{3 * index + place}\.(.+)", rf"embedder.embedder.{index}.{ours}.\1")
            for place, (_, ours) in enumerate(kinds)
        ]
    for stage in range(4):
        block = rf"encoder.stages.{stage}.layers.\1."
        rules += [
            Rule(rf"layer{stage + 1}\.(\d+)\.{theirs}{layer + 1}\.(.+)", rf"{block}layer.{layer}.{ours}.\2")
            for layer in range(3)
            for theirs, ours in kinds
        ]
        rules += [
            Rule(rf"layer{stage + 1}\.(\d+)\.downsample\.{place}\.(.+)", rf"{block}shortcut.{ours}.\2")
            for place, (_, ours) in enumerate(kinds)
        ]
    return rules


RESNET_RULES = _resnet_rules()


def with_final_norm(state_dict: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Add the norm behind the last stage, which transformers' Swin has. It does not enter the feature maps."""
    norms = {
        int(match[1]): tensor
        for name, tensor in state_dict.items()
        if (match := re.fullmatch(r"backbone\.stages\.(\d)\.blocks\.0\.norm1\.weight", name))
    }
    if not norms:  # the conversion names missing tensors
        return state_dict
    last = norms[max(norms)]
    return {
        **state_dict,
        "backbone.layernorm.weight": torch.ones_like(last),
        "backbone.layernorm.bias": torch.zeros_like(last),
    }


def read_swin(settings: Settings) -> SwinConfig:
    """Convert the settings of mmseg's `SwinTransformer`; the defaults are the original's."""
    depths = settings.counts("depths", (2, 2, 6, 2))
    patch_size = settings.expect("patch_size", 4)
    settings.expect("strides", [4, 2, 2, 2], (4, 2, 2, 2))
    settings.expect("in_channels", 3)
    for rate in ("drop_rate", "attn_drop_rate"):
        settings.expect(rate, 0.0, None)
    settings.expect("act_cfg", _GELU)
    _expect_norm(settings, "LN", eps=1e-5)
    if len(depths) != 4:
        raise ConversionError(f"backbone.depths is {short_repr(depths)}; expected a number for each of 4 stages")
    patch_norm, scale = settings.take("patch_norm", True), settings.take("qk_scale", None)
    options = {} if patch_norm and scale is None else {"patch_norm": bool(patch_norm), "qk_scale": scale}
    fields: dict[str, Any] = {**options, "out_features": _stages(settings)}
    config = (SegSwinConfig if options else SwinConfig)(
        image_size=settings.sides("pretrain_img_size", 224),  # determines the number of position embeddings
        patch_size=patch_size,
        embed_dim=settings.take("embed_dims", 96),
        depths=list(depths),
        num_heads=list(settings.counts("num_heads", (3, 6, 12, 24))),
        window_size=settings.count("window_size", 7, MOST_LAYERS),
        mlp_ratio=settings.take("mlp_ratio", 4),
        qkv_bias=settings.take("qkv_bias", True),
        use_absolute_embeddings=settings.take("use_abs_pos_embed", False),
        drop_path_rate=settings.take("drop_path_rate", 0.1),
        **fields,
    )
    settings.drop("type", "init_cfg", "pretrained", "with_cp", "frozen_stages", "pretrain_style")
    settings.finish()
    return config


def read_convnext(settings: Settings, downsampling_norm_eps: float) -> ConvNextConfig:
    """Convert the settings of `ConvNeXt` of MMClassification or MMPretrain; the defaults are the original's.

    Args:
        downsampling_norm_eps: epsilon of the norms before the downsampling, 1e-5 in MMClassification 0.x, which builds
            them without its norm settings, and 1e-6 in MMPretrain.
    """
    architecture = settings.take("arch", "tiny")
    if isinstance(architecture, str) and architecture in _CONVNEXT_ARCHITECTURES:
        depths, channels = _CONVNEXT_ARCHITECTURES[architecture]
    elif isinstance(architecture, Mapping):
        part = Settings(architecture, "backbone.arch")
        depths, channels = part.counts("depths"), part.take("channels")
        part.finish()
    else:
        names = ", ".join(_CONVNEXT_ARCHITECTURES)
        raise ConversionError(
            f"backbone.arch is {short_repr(architecture)}; expected {names}, or a dict with depths and channels"
        )
    if len(depths) != 4 or not isinstance(channels, list | tuple) or len(channels) != 4:
        raise ConversionError("backbone.arch must have depths and channels of 4 stages")
    settings.expect("in_channels", 3)
    settings.expect("stem_patch_size", 4)
    settings.expect("act_cfg", _GELU)
    settings.expect("use_grn", False)
    settings.expect("gap_before_final_norm", False, default=True)
    settings.drop("linear_pw_conv")  # 1x1 convolutions compute the same
    _expect_norm(settings, "LN2d", eps=1e-6)
    options = {} if downsampling_norm_eps == 1e-6 else {"downsampling_norm_eps": downsampling_norm_eps}
    fields: dict[str, Any] = {**options, "out_features": _stages(settings)}
    config = (SegConvNextConfig if options else ConvNextConfig)(
        hidden_sizes=list(channels),
        depths=list(depths),
        layer_scale_init_value=settings.take("layer_scale_init_value", 1e-6),
        drop_path_rate=settings.take("drop_path_rate", 0.0),
        **fields,
    )
    settings.drop("type", "init_cfg", "pretrained", "with_cp", "frozen_stages")
    settings.finish()
    return config


def read_resnet(settings: Settings, deep_stem: bool) -> ResNetConfig:
    """Convert the settings of mmseg's `ResNet` or `ResNetV1c`; the defaults are the original's.

    Args:
        deep_stem: whether the stem is that of `ResNetV1c`.
    """
    depth = settings.take("depth")
    if not isinstance(depth, int) or depth not in _RESNET_DEPTHS:
        raise ConversionError(
            f"backbone.depth is {short_repr(depth)}; expected one of {', '.join(map(str, _RESNET_DEPTHS))}"
        )
    kind, depths = _RESNET_DEPTHS[depth]
    settings.expect("deep_stem", deep_stem)
    settings.expect("in_channels", 3)
    settings.expect("num_stages", 4)
    settings.expect("strides", [1, 2, 2, 2], (1, 2, 2, 2))
    settings.expect("dilations", [1, 1, 1, 1], (1, 1, 1, 1))
    settings.expect("avg_down", False)
    settings.expect("conv_cfg", None)
    settings.expect("dcn", None)
    settings.expect("stage_with_dcn", [False] * 4, (False,) * 4)
    settings.expect("plugins", None)
    settings.expect("multi_grid", None)
    style = settings.expect("style", "pytorch", "caffe")
    norm = Settings(settings.take("norm_cfg", {"type": "BN"}), "backbone.norm_cfg")
    norm.expect("type", "BN", "SyncBN", "MMSyncBN")
    norm.expect("eps", 1e-5)
    norm.expect("momentum", 0.1)
    norm.drop("requires_grad")
    norm.finish()
    width = settings.count("base_channels", 64)
    fields: dict[str, Any] = {"out_features": _stages(settings)}
    config = (SegResNetConfig if deep_stem else ResNetConfig)(
        embedding_size=settings.count("stem_channels", 64),
        hidden_sizes=[width * (4 if kind == "bottleneck" else 1) * 2**stage for stage in range(4)],
        depths=list(depths),
        layer_type=kind,
        downsample_in_bottleneck=style == "caffe",
        **fields,
    )
    # settings of the training, and one of dilated stages
    settings.drop("type", "init_cfg", "pretrained", "with_cp", "frozen_stages", "norm_eval", "zero_init_residual")
    settings.drop("contract_dilation")
    settings.finish()
    return config


def _stages(settings: Settings) -> list[str]:
    """Take the indices of the stages whose feature maps the backbone returns, as names of transformers."""
    indices = settings.take("out_indices", (0, 1, 2, 3))
    if (
        not isinstance(indices, list | tuple)
        or not indices
        or any(type(index) is not int or not 0 <= index <= 3 for index in indices)
        or list(indices) != sorted(set(indices))
    ):
        raise ConversionError(f"backbone.out_indices is {short_repr(indices)}; expected ascending stages from 0 to 3")
    return [f"stage{index + 1}" for index in indices]


def _expect_norm(settings: Settings, kind: str, eps: float) -> None:
    norm = Settings(settings.take("norm_cfg", {"type": kind}), "backbone.norm_cfg")
    norm.expect("type", kind)
    norm.expect("eps", eps)
    norm.drop("requires_grad")
    norm.finish()


BACKBONES: dict[str, Backbone] = {
    "SwinTransformer": Backbone(SWIN_RULES, read_swin, with_final_norm),
    "mmcls.ConvNeXt": Backbone(CONVNEXT_RULES, partial(read_convnext, downsampling_norm_eps=1e-5)),
    "mmpretrain.ConvNeXt": Backbone(CONVNEXT_RULES, partial(read_convnext, downsampling_norm_eps=1e-6)),
    "ResNet": Backbone(RESNET_RULES, partial(read_resnet, deep_stem=False)),
    "ResNetV1c": Backbone(RESNET_RULES, partial(read_resnet, deep_stem=True)),
}


def set_padding(config: PreTrainedConfig, model_config: Mapping[str, Any]) -> None:
    """Set the padding of test images to multiples of 32, which MMSegmentation 1.x has in its `data_preprocessor`.

    It belongs to the test protocol of a folder, so [`convert_checkpoint`] leaves the model without it.

    Args:
        config: of the converted model.
        model_config: the original's model dict.

    Raises:
        ConversionError: if the padding is another one, or the model cannot pad.
    """
    preprocessor = model_config.get("data_preprocessor")
    test_cfg = preprocessor.get("test_cfg") if isinstance(preprocessor, Mapping) else None
    if not test_cfg:
        return
    settings = Settings(test_cfg, "data_preprocessor.test_cfg")
    settings.require("size_divisor", 32)
    settings.finish()
    if not isinstance(config, SegMask2FormerConfig):
        raise ConversionError("data_preprocessor.test_cfg pads images, which only Mask2Former can be converted with")
    config.pad_to_stride = True


__all__ = ["BACKBONES", "set_padding"]
