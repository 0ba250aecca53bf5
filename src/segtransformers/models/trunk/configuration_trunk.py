# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Config fields that describe a trunk, a plain ViT from timm."""

import math
from typing import TYPE_CHECKING, Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from ...remote_code import RemoteCodeConfigMixin
from ...whole_numbers import check_whole_fields
from ..layers.config_arguments import LARGEST_WIDTH, MOST_ITEMS, MOST_LAYERS, ChecksArguments

if TYPE_CHECKING:
    import torch

# Fields at None take their values from timm's definition of the named architecture.
RESOLVED_FIELDS = (
    "patch_size",
    "pretrain_image_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "mlp_ratio",
    "qkv_bias",
    "patch_bias",
    "pre_norm",
    "use_absolute_position_embeddings",
    "use_relative_position_bias",
    "layer_scale_init_value",
    "layer_norm_eps",
)


@strict
class TrunkConfig(ChecksArguments, RemoteCodeConfigMixin, PreTrainedConfig):
    r"""
    Fields shared by every config whose model contains a timm trunk. A field at None takes timm's value for the
    architecture, which is then saved. Properties without a field, such as the kind of MLP, follow from `trunk`.

    Args:
        trunk (`str`, defaults to `"vit_tiny_patch16_224"`):
            Name of a timm architecture, without a weight tag. It must be a plain ViT of timm's class
            `VisionTransformer`, `Beit` or `Eva` with square patches. `one_peace_giant_patch16` is ONE-PEACE's.
        num_channels (`int`, defaults to 3):
            Channels of the images.
        patch_size (`int`, *optional*):
            Side of the trunk's patches in pixels.
        token_stride (`int`, defaults to 16):
            Pixels of the image from one token to the next: the side of a patch for the trunk's native token grid. With
            16 and patches of 14 pixels, the trunk resizes its input by 14 / 16.
        pretrain_image_size (`int` or pair of `int`, *optional*):
            Image size (pixels; height, width) of the patch grid that position embeddings or tables are made for.
        hidden_size, num_hidden_layers, num_attention_heads (`int`, *optional*):
            Width, number of blocks and heads of the trunk.
        mlp_ratio (`float`, *optional*):
            Hidden width of a block's MLP over `hidden_size`.
        qkv_bias (`bool`, *optional*):
            Whether the query, key and value projections have a bias.
        patch_bias (`bool`, *optional*):
            Whether the projection of the patches has a bias.
        pre_norm (`bool`, *optional*):
            Whether a norm precedes the first block, as in CLIP. Trunks of timm's class `VisionTransformer` can have one
            or not, others have what timm defines.
        use_absolute_position_embeddings (`bool`, *optional*):
            Whether tokens have learned positions. Trunks of timm's classes `Beit` and `Eva` can have them or not,
            others have what timm defines.
        use_relative_position_bias (`bool`, *optional*):
            Whether every block has its own table of relative position biases. Trunks of timm's class `Beit` can have
            them, and those of `Eva` whose queries, keys and values come from one layer.
        rotary_reference_grid (`list[int]`, *optional*):
            Rows and columns of the token grid that rotary positions are made for: the positions on any other grid are
            scaled to its range. None takes timm's. Only for EVA-02.
        layer_scale_init_value (`float`, *optional*):
            Initial value of the layer scale; 0.0 means that the blocks have none.
        layer_norm_eps (`float`, *optional*):
            Epsilon of every layer norm, including those of the modules around the trunk.
        use_prefix_tokens (`bool`, defaults to `True`):
            Whether the architecture's class and register tokens run through the blocks. The original ViT-Adapter runs
            only patch tokens.
        use_prefix_positions (`bool`, defaults to `True`):
            Whether the class token has a learned position too. EVA-01's has none.
        final_norm (`bool`, defaults to `False`):
            Whether a norm follows the last block.
        position_interpolation (`str`, defaults to `"bicubic"`):
            Interpolation of learned positions to another token grid: `"bicubic"` or `"bilinear"`.
        position_interpolation_offset (`float`, defaults to 0.0):
            Resizes learned positions by the scale factors `(side + offset) / pretrained side` instead of to the size of
            the new grid. DINOv2 without registers: 0.1.
        position_interpolation_antialias (`bool`, defaults to `False`):
            Whether learned positions are resized with antialiasing. DINOv2 with registers: True.
        keep_positions_of_same_count (`bool`, defaults to `False`):
            Whether learned positions are used as they are, in the order of the tokens, on any grid with as many tokens
            as theirs. Both originals of Segmenter do so. By default every other grid gets resized positions.
        window_sizes (`list[int]`, *optional*):
            Side of the attention window (tokens) of each block; 0 is global attention. None makes all of them global.
            Only for trunks of timm's classes `VisionTransformer` and `Beit`.
        pad_before_projection (`bool`, defaults to `False`):
            Whether windows at the border are padded with zeros before queries, keys and values are computed, as in
            Uni-Perceiver, or after it.
        drop_path_rate (`float`, defaults to 0.0):
            Stochastic depth rate of the last block. The rate grows linearly from 0 at the first block.
        initializer_range (`float`, defaults to 0.02):
            Standard deviation of newly initialized linear weights and position embeddings.
        trunk_weights (`str`, *optional*):
            Name of the trunk's weights, where saved folders leave them out; see `separate_trunk` of the models. None
            means that they hold all weights.
        trunk_samples (`dict`, *optional*):
            Some numbers of these weights, by the names of their tensors.
        timm_version (`str`, *optional*):
            Version of timm that resolved the fields above. Nothing depends on it.

    Raises:
        ValueError: if timm does not know `trunk`, if it is no plain ViT, or if fields contradict each other.
    """

    # names of transformers' ViT and DINOv2 configs
    attribute_map = {"image_size": "pretrain_image_size", "layerscale_value": "layer_scale_init_value"}

    trunk: str = "vit_tiny_patch16_224"
    num_channels: int = 3
    patch_size: int | None = None
    token_stride: int = 16
    pretrain_image_size: int | list[int] | tuple[int, ...] | None = None
    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    mlp_ratio: float | int | None = None
    qkv_bias: bool | None = None
    patch_bias: bool | None = None
    pre_norm: bool | None = None
    use_absolute_position_embeddings: bool | None = None
    use_relative_position_bias: bool | None = None
    rotary_reference_grid: list[int] | tuple[int, ...] | None = None
    layer_scale_init_value: float | int | None = None
    layer_norm_eps: float | int | None = None
    use_prefix_tokens: bool = True
    use_prefix_positions: bool = True
    final_norm: bool = False
    position_interpolation: str = "bicubic"
    position_interpolation_offset: float | int = 0.0
    position_interpolation_antialias: bool = False
    keep_positions_of_same_count: bool = False
    window_sizes: list[int] | tuple[int, ...] | None = None
    pad_before_projection: bool = False
    drop_path_rate: float | int = 0.0
    initializer_range: float = 0.02
    trunk_weights: str | None = None
    trunk_samples: dict[str, float] | None = None
    timm_version: str | None = None

    def __post_init__(self, **kwargs):
        self._resolve_trunk(kwargs)
        super().__post_init__(**kwargs)

    def _resolve_trunk(self, arguments: dict[str, Any]) -> None:
        self.set_aliases(arguments)
        if any(getattr(self, name) is None for name in (*RESOLVED_FIELDS, "timm_version")):
            from . import describe_trunk  # imports timm, which is slow, and not needed for a complete config

            described = describe_trunk(self.trunk)
            for name in (*RESOLVED_FIELDS, "timm_version"):
                if getattr(self, name) is None:
                    setattr(self, name, described[name])
        if isinstance(self.pretrain_image_size, int):
            self.pretrain_image_size = [self.pretrain_image_size] * 2
        self.pretrain_image_size = list(self.pretrain_image_size)
        self._check_trunk()

    def fixed_fields(self) -> dict[str, Any]:
        return {
            "intermediate_size": int(self.hidden_size * self.mlp_ratio),
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        }

    @property
    def pretrain_grid(self) -> tuple[int, int]:
        """Rows and columns of patches of an image of `pretrain_image_size`."""
        height, width = list(self.pretrain_image_size)
        return height // self.patch_size, width // self.patch_size

    def trunk_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all weights of the trunk by their names in [`Trunk`]."""
        from .pretrained import expected_weights  # imports timm, which is slow

        return expected_weights(self)

    def trunk_weights_of_timm(self, name: str, cache_dir: str | None = None) -> "dict[str, torch.Tensor]":
        """Return pre-trained weights of timm by their names in [`Trunk`], resized to the grid of this config.

        Args:
            name: such as `vit_base_patch16_dinov3.lvd1689m`.

        Raises:
            LookupError: if timm has no such architecture.
            ValueError, OSError: as `from_trunk` of a backbone.
        """
        from .pretrained import is_architecture, weights_of_timm  # imports timm, which is slow

        if not is_architecture(name):
            raise LookupError(name)
        return weights_of_timm(name, self, cache_dir)

    def _check_trunk(self) -> None:
        check_whole_fields(self, ("num_channels", "hidden_size", "num_attention_heads", "patch_size"), LARGEST_WIDTH)
        check_whole_fields(self, ("num_hidden_layers",), MOST_LAYERS)
        check_whole_fields(self, ("pretrain_image_size", "rotary_reference_grid"), MOST_ITEMS)
        if self.rotary_reference_grid is not None:
            self.rotary_reference_grid = list(self.rotary_reference_grid)
            if len(self.rotary_reference_grid) != 2:
                raise ValueError(
                    f"rotary_reference_grid must be [rows, columns] of tokens, got {self.rotary_reference_grid}"
                )
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate must be a share in [0, 1), got {self.drop_path_rate}")
        if not 0 < self.mlp_ratio < math.inf or not 0 < self.layer_norm_eps < math.inf:
            raise ValueError(
                f"mlp_ratio and layer_norm_eps must be positive, got {self.mlp_ratio}, {self.layer_norm_eps}"
            )
        if not 0 <= self.layer_scale_init_value < math.inf:
            raise ValueError(f"layer_scale_init_value must be 0 or more, got {self.layer_scale_init_value}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads "
                f"({self.num_attention_heads})"
            )
        if self.patch_size != self.token_stride and (self.patch_size, self.token_stride) != (14, 16):
            raise ValueError(
                f"token_stride must equal patch_size, or be 16 for patches of 14 pixels, but token_stride is "
                f"{self.token_stride} and the trunk {self.trunk!r} has patches of {self.patch_size}x{self.patch_size} "
                "pixels"
            )
        if self.position_interpolation not in ("bicubic", "bilinear"):
            raise ValueError(
                f"position_interpolation must be 'bicubic' or 'bilinear', got {self.position_interpolation!r}"
            )
        if not 0 <= self.position_interpolation_offset < 1:
            raise ValueError(
                f"position_interpolation_offset must be in [0, 1) tokens, got {self.position_interpolation_offset}"
            )
        if self.position_interpolation_offset and (
            self.position_interpolation != "bicubic" or self.position_interpolation_antialias
        ):
            raise ValueError(
                "position_interpolation_offset needs position_interpolation='bicubic' and "
                "position_interpolation_antialias=False, as in DINOv2"
            )
        if len(self.pretrain_image_size) != 2 or min(self.pretrain_image_size) < self.patch_size:
            raise ValueError(
                f"pretrain_image_size must be one side or (height, width) in pixels, each at least one patch "
                f"({self.patch_size}), got {self.pretrain_image_size}"
            )
        if self.window_sizes is None:
            return
        self.window_sizes = list(self.window_sizes)
        if len(self.window_sizes) != self.num_hidden_layers or min(self.window_sizes) < 0:
            raise ValueError(
                f"window_sizes needs one side in tokens (0 for global attention) for each of the "
                f"{self.num_hidden_layers} blocks, got {self.window_sizes}"
            )
        if any(self.window_sizes) and self.use_prefix_tokens:
            raise ValueError("windowed attention cannot take prefix tokens: set use_prefix_tokens=False")
