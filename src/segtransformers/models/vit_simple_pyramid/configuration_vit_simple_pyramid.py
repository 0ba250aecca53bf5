# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Configuration of a plain ViT with a simple feature pyramid."""

from huggingface_hub.dataclasses import strict
from transformers.backbone_utils import BackboneConfigMixin

from ...whole_numbers import check_whole_fields
from ..layers.config_arguments import MOST_LAYERS
from ..layers.resize import STRIDES
from ..trunk.configuration_trunk import TrunkConfig

TOKEN_STRIDES = (8, 16)


@strict
class ViTSimplePyramidConfig(BackboneConfigMixin, TrunkConfig):
    r"""
    Configuration of [`ViTSimplePyramidBackbone`]; the fields of [`TrunkConfig`] describe the ViT.

    Args:
        tapped_blocks (`list[int]`, *optional*):
            Blocks, counted from 0, whose tokens become the four feature maps, from the finest to the coarsest; a single
            block gives all four. None takes the last block of each quarter of the trunk.
        token_stride (`int`, *optional*):
            Pixels of the image from one token to the next: 8 or 16. None takes the side of a patch, and 16 for patches
            of 14 pixels.
        out_features, out_indices:
            The feature maps to return, of `stage1` to `stage4`, by name or by index. None returns the last one. Layers
            behind the last block that they need get no gradient.

    Raises:
        ValueError: if a number is out of range or does not fit the others.

    Example:

    ```python
    >>> from segtransformers import ViTSimplePyramidBackbone, ViTSimplePyramidConfig

    >>> stages = ["stage1", "stage2", "stage3", "stage4"]
    >>> config = ViTSimplePyramidConfig(trunk="vit_small_patch16_224", out_features=stages)
    >>> config.tapped_blocks
    [2, 5, 8, 11]
    >>> ViTSimplePyramidBackbone(config).channels
    [384, 384, 384, 384]
    ```
    """

    model_type = "seg_vit_simple_pyramid"
    base_config_key = "backbone_config"

    token_stride: int | None = None  # type: ignore[assignment]  # an int from __post_init__ on
    tapped_blocks: list[int] | tuple[int, ...] | None = None
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        self._resolve_trunk(kwargs)
        self.stage_names = [f"stage{index + 1}" for index in range(len(STRIDES))]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)

    def _check_trunk(self) -> None:
        if self.token_stride is None:
            self.token_stride = 16 if self.patch_size == 14 else self.patch_size
        super()._check_trunk()
        if self.token_stride not in TOKEN_STRIDES:
            raise ValueError(
                f"a simple feature pyramid needs tokens every 8 or 16 pixels, but the trunk {self.trunk!r} has them "
                f"every {self.token_stride}: choose another trunk, or another patch_size"
            )
        depth = self.num_hidden_layers
        if self.tapped_blocks is None:
            self.tapped_blocks = [max(quarter * depth // 4 - 1, 0) for quarter in range(1, 5)]
        self.tapped_blocks = list(self.tapped_blocks)
        if len(self.tapped_blocks) not in (1, len(STRIDES)):
            raise ValueError(f"tapped_blocks must be one block or four, got {self.tapped_blocks}")
        check_whole_fields(self, ("tapped_blocks",), min(depth - 1, MOST_LAYERS), 0)

    @property
    def tap_of_stage(self) -> dict[str, int]:
        """The block that each feature map is made of, by the name of the feature map."""
        taps = list(self.tapped_blocks or ())
        taps = taps * len(STRIDES) if len(taps) == 1 else taps
        return dict(zip(self.stage_names, taps, strict=True))


__all__ = ["ViTSimplePyramidConfig"]
