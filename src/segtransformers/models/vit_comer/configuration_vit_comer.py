# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""ViT-CoMer configuration."""

from huggingface_hub.dataclasses import strict

from ..pyramid.configuration_pyramid import PyramidConfig

_FLAGS = ("use_to_trunk", "use_to_pyramid", "use_feature_interaction")


@strict
class ViTCoMerConfig(PyramidConfig):
    r"""
    Configuration of [`ViTCoMerBackbone`]. The defaults are those of ViT-CoMer-T; [`PyramidConfig`] and [`TrunkConfig`]
    describe the other fields.

    Args:
        receptive_field_ratio (`float`, defaults to 6.0):
            Hidden width of the multi-receptive-field feature pyramids over `hidden_size`: 6.0 in ViT-CoMer-T, 1.5 in S
            and 1.0 in B. The product must be even.
        use_to_trunk (`bool` or `list[bool]`, defaults to `True`):
            Whether an interaction changes the trunk's tokens, and the pyramid with them, before the blocks run: one
            flag for all interactions or one for each.
        use_to_pyramid (`bool` or `list[bool]`, defaults to `True`):
            Whether an interaction adds the trunk's tokens to the pyramid after the blocks.
        use_feature_interaction (`bool` or `list[bool]`, defaults to `True`):
            Whether the levels of the pyramid attend to one another after that.

    Raises:
        ValueError: as [`PyramidConfig`], or if the flags or the ratio do not fit.

    Example:

    ```python
    >>> from segtransformers import ViTCoMerBackbone, ViTCoMerConfig

    >>> config = ViTCoMerConfig(trunk="vit_tiny_patch16_224", out_indices=[1, 2, 3, 4])
    >>> backbone = ViTCoMerBackbone(config)
    >>> backbone.channels
    [192, 192, 192, 192]
    ```
    """

    model_type = "seg_vit_comer"

    receptive_field_ratio: float | int = 6.0
    use_to_trunk: bool | list[bool] | tuple[bool, ...] = True
    use_to_pyramid: bool | list[bool] | tuple[bool, ...] = True
    use_feature_interaction: bool | list[bool] | tuple[bool, ...] = True

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.token_stride != 16:  # the trunk's tokens are added to the pyramid's second level
            raise ValueError(
                f"token_stride must be 16, the stride of the pyramid's second level, got {self.token_stride}"
            )
        count = len(self.interaction_indexes)
        for name in _FLAGS:
            value = getattr(self, name)
            flags = [value] * count if isinstance(value, bool) else list(value)
            if len(flags) != count:
                raise ValueError(
                    f"{name} must be one flag or one for each of the {count} interactions, got {len(flags)} flags"
                )
            setattr(self, name, flags)
        width = int(self.hidden_size * self.receptive_field_ratio)
        if width < 2 or width % 2:
            raise ValueError(
                f"hidden_size * receptive_field_ratio must be an even number of channels, got {width} "
                f"({self.hidden_size} * {self.receptive_field_ratio})"
            )
        if int(self.hidden_size * self.conv_ffn_ratio) < 1:
            raise ValueError(f"conv_ffn_ratio ({self.conv_ffn_ratio}) leaves no channel of {self.hidden_size}")


__all__ = ["ViTCoMerConfig"]
