# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Configuration of a plain ViT as a backbone."""

from huggingface_hub.dataclasses import strict
from transformers.backbone_utils import BackboneConfigMixin

from ..trunk.configuration_trunk import TrunkConfig

PADDINGS = ("bottom_right", "center", "none")


@strict
class PlainViTConfig(BackboneConfigMixin, TrunkConfig):
    r"""
    Configuration of [`PlainViTBackbone`]; the fields of [`TrunkConfig`] describe the ViT.

    Args:
        token_stride (`int`, *optional*):
            Pixels of the image from one token to the next. None takes the side of a patch.
        final_norm (`bool`, defaults to `True`):
            Whether a norm follows the last block.
        normalize_feature_maps (`bool`, defaults to `True`):
            Whether the final norm applies to every returned feature map, as in DINOv2 and DINOv3, or only to that of
            the last block.
        padding (`str`, defaults to `"bottom_right"`):
            Zeros around an image whose sides are not multiples of the stride: `"bottom_right"`; `"center"` pads on all
            sides, as DINOv2 does; `"none"` ignores the pixels that fill no patch, as DINOv3 does.
        out_features, out_indices:
            The feature maps to return, of `stem` (the embedded patches) and `stage1`, `stage2`, ... (after each block),
            by name or by index. None returns the last one. Blocks behind the last returned feature map get no gradient.

    Example:

    ```python
    >>> from segtransformers import PlainViTBackbone, PlainViTConfig

    >>> backbone = PlainViTBackbone(PlainViTConfig(trunk="vit_small_patch14_dinov2", out_indices=[9, 10, 11, 12]))
    >>> backbone.channels
    [384, 384, 384, 384]
    ```
    """

    model_type = "seg_plain_vit"
    base_config_key = "backbone_config"
    attribute_map = {**TrunkConfig.attribute_map, "apply_layernorm": "normalize_feature_maps"}

    token_stride: int | None = None  # type: ignore[assignment]  # an int from __post_init__ on
    final_norm: bool = True
    normalize_feature_maps: bool = True
    padding: str = "bottom_right"
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        self._resolve_trunk(kwargs)
        self.stage_names = ["stem", *(f"stage{index + 1}" for index in range(self.num_hidden_layers))]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)

    def _check_trunk(self) -> None:
        if self.token_stride is None:
            self.token_stride = self.patch_size
        super()._check_trunk()
        if self.padding not in PADDINGS:
            raise ValueError(f"padding must be one of {', '.join(map(repr, PADDINGS))}, got {self.padding!r}")


__all__ = ["PlainViTConfig"]
