# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""InternImage and FlashInternImage configuration."""

import math

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from ...remote_code import RemoteCodeConfigMixin
from ...whole_numbers import check_whole_fields
from ..layers.config_arguments import LARGEST_WIDTH, MOST_LAYERS, ChecksArguments

CORE_OPERATORS = ("dcnv3", "dcnv4")
KERNEL_SIZE = 3  # of every deformable convolution
NUM_STAGES = 4
LARGEST_KERNEL = 1001


@strict
class InternImageConfig(BackboneConfigMixin, ChecksArguments, RemoteCodeConfigMixin, PreTrainedConfig):
    r"""
    Configuration of [`InternImageBackbone`]. The defaults are those of InternImage-T for segmentation. FlashInternImage
    is InternImage with `core_operator="dcnv4"`.

    Args:
        num_channels (`int`, defaults to 3):
            Channels of the images.
        embed_dim (`int`, defaults to 64):
            Channels of the stem and of the first stage. Each stage doubles the channels of the one before.
        depths (four `int`, defaults to `(4, 4, 18, 4)`):
            Blocks of each stage.
        num_groups (four `int`, defaults to `(4, 8, 16, 32)`):
            Groups of each stage's deformable convolutions. Each group has its own sampling points and weights.
        core_operator (`str`, defaults to `"dcnv3"`):
            The deformable convolution: `"dcnv3"`, or `"dcnv4"`, which predicts offsets and weights by one linear layer
            and has no softmax over the weights.
        mlp_ratio (`float`, defaults to 4.0):
            Hidden width of a block's feed-forward network over its channels.
        post_norm (`bool`, defaults to `False`):
            Whether a block normalizes the outputs of its two branches instead of their inputs.
        res_post_norm (`bool`, defaults to `False`):
            Whether a block normalizes both inputs and outputs of its branches. Has no effect with `post_norm` or a
            layer scale.
        layer_scale_init_value (`float`, *optional*, defaults to 1.0):
            Initial value of the layer scale of both branches. None leaves the layer scales out.
        offset_scale (`float`, defaults to 1.0):
            Distance in pixels between neighbouring sampling points at zero offsets; also a factor on the offsets.
        depthwise_kernel_size (`int`, *optional*, defaults to 3):
            Side of the depthwise convolution that precedes the prediction of offsets and weights; odd. None, with DCNv4
            only, predicts them from the features directly.
        center_feature_scale (`bool`, defaults to `False`):
            Whether a gate of each group mixes the sampled value with the value at the output pixel. With `post_norm` it
            also adds a norm at the end of each stage. DCNv4 has no gates, so this norm is all that it adds there.
        output_bias (`bool`, defaults to `True`):
            Whether the output projections of the deformable convolutions have a bias.
        mlp_output_bias (`bool`, defaults to `True`):
            Whether the second linear layer of the feed-forward networks has a bias.
        remove_center (`bool`, defaults to `False`):
            Whether the deformable convolutions leave out the center of their nine points.
        stage3_norm_block_ids (`list[int]`, *optional*):
            Indices of the third stage's blocks whose output gets a norm of its own.
        drop_path_rate (`float`, defaults to 0.0):
            Highest rate of stochastic depth; it grows linearly from 0 over all blocks.
        layer_norm_eps (`float`, defaults to 1e-6):
            Epsilon of all layer norms.
        initializer_range (`float`, defaults to 0.02):
            Standard deviation of newly initialized linear layers.
        out_features, out_indices:
            The feature maps to return, of `stem`, `stage1`, ..., `stage4`, by name or by index. None returns the last
            one, as in transformers. Layers behind the last returned feature map get no gradient.

    Raises:
        ValueError: if a number is out of range or does not fit the others.

    Example:

    ```python
    >>> from segtransformers import InternImageBackbone, InternImageConfig

    >>> backbone = InternImageBackbone(InternImageConfig(out_indices=[1, 2, 3, 4]))
    >>> backbone.channels
    [64, 128, 256, 512]
    ```
    """

    # not "internimage": that is the type of OpenGVLab's own checkpoints, which come with their own code
    model_type = "seg_internimage"
    base_config_key = "backbone_config"

    num_channels: int = 3
    embed_dim: int = 64
    depths: list[int] | tuple[int, ...] = (4, 4, 18, 4)
    num_groups: list[int] | tuple[int, ...] = (4, 8, 16, 32)
    core_operator: str = "dcnv3"
    mlp_ratio: float | int = 4.0
    post_norm: bool = False
    res_post_norm: bool = False
    layer_scale_init_value: float | int | None = 1.0
    offset_scale: float | int = 1.0
    depthwise_kernel_size: int | None = 3
    center_feature_scale: bool = False
    output_bias: bool = True
    mlp_output_bias: bool = True
    remove_center: bool = False
    stage3_norm_block_ids: list[int] | tuple[int, ...] | None = None
    drop_path_rate: float | int = 0.0
    layer_norm_eps: float | int = 1e-6
    initializer_range: float | int = 0.02
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        self.depths, self.num_groups = list(self.depths), list(self.num_groups)
        if self.stage3_norm_block_ids is not None:
            self.stage3_norm_block_ids = list(self.stage3_norm_block_ids)
        self._check()
        self.stage_names = ["stem", *(f"stage{index + 1}" for index in range(NUM_STAGES))]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)

    @property
    def hidden_sizes(self) -> list[int]:
        """Channels of each stage."""
        return [self.embed_dim * 2**index for index in range(NUM_STAGES)]

    def _check(self) -> None:
        check_whole_fields(self, ("num_channels", "embed_dim", "num_groups"), LARGEST_WIDTH)
        check_whole_fields(self, ("depths",), MOST_LAYERS)
        if self.core_operator not in CORE_OPERATORS:
            raise ValueError(f"core_operator must be one of {', '.join(CORE_OPERATORS)}, got {self.core_operator!r}")
        if self.depthwise_kernel_size is None and self.core_operator == "dcnv3":
            raise ValueError('depthwise_kernel_size must be an odd number with core_operator "dcnv3", got None')
        check_whole_fields(self, ("depthwise_kernel_size",), LARGEST_KERNEL)
        if self.embed_dim < 2 or self.embed_dim % 2:
            raise ValueError(f"embed_dim must be an even number of channels, got {self.embed_dim}")
        for name in ("depths", "num_groups"):
            values = getattr(self, name)
            if len(values) != NUM_STAGES:
                raise ValueError(f"{name} must be {NUM_STAGES} numbers of at least 1, got {values}")
        for channels, groups in zip(self.hidden_sizes, self.num_groups, strict=True):
            if channels % groups:
                raise ValueError(f"num_groups {self.num_groups} must divide the stages' channels {self.hidden_sizes}")
        for name in ("mlp_ratio", "offset_scale", "layer_norm_eps", "initializer_range"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be more than 0, got {getattr(self, name)}")
        if int(self.embed_dim * self.mlp_ratio) < 1:
            raise ValueError(f"mlp_ratio ({self.mlp_ratio}) leaves no channel of {self.embed_dim}")
        if self.depthwise_kernel_size is not None and self.depthwise_kernel_size % 2 == 0:
            raise ValueError(f"depthwise_kernel_size must be odd, got {self.depthwise_kernel_size}")
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate must be a rate in [0, 1), got {self.drop_path_rate}")
        ids = self.stage3_norm_block_ids or []
        if len(set(ids)) != len(ids) or any(not 0 <= index < self.depths[2] for index in ids):
            raise ValueError(
                f"stage3_norm_block_ids must be different blocks of the {self.depths[2]} of the third stage, counted "
                f"from 0, got {ids}"
            )


__all__ = ["InternImageConfig"]
