# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""UperNet configuration."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ..configuration_segmentation import SegmentationConfig


@strict
class SegUperNetConfig(SegmentationConfig):
    r"""
    Configuration of [`SegUperNetForSemanticSegmentation`]. Field names are those of transformers' `UperNetConfig` where
    the two heads share them; the fields of [`SegmentationConfig`] say how large images are handled.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Any backbone that `AutoBackbone` knows, with the feature maps that the head reads in `out_features`, from
            the finest to the coarsest. None: ViT-Adapter-T.
        hidden_size (`int`, defaults to 512):
            Channels of the head.
        pool_scales (`list[int]`, defaults to `(1, 2, 3, 6)`):
            Sides of the grids that the coarsest map is pooled to.
        classifier_dropout (`float`, defaults to 0.1):
            Share of channels dropped in front of both classifiers in training.
        use_auxiliary_head (`bool`, defaults to `True`):
            Whether there is a second, convolutional head for the loss.
        auxiliary_loss_weight (`float`, defaults to 0.4), auxiliary_in_index (`int`, defaults to 2),
        auxiliary_channels (`int`, defaults to 256), auxiliary_num_convs (`int`, defaults to 1),
        auxiliary_concat_input (`bool`, defaults to `False`):
            Its weight in the loss, the feature map it reads, its width, its number of 3x3 convolutions, and whether
            its input joins their output.
        initializer_range (`float`, defaults to 0.01):
            Standard deviation of newly initialised classifiers.

    Raises:
        ValueError: if the backbone gives too few feature maps or a number is out of range.

    Example:

    ```python
    >>> from transformers import ConvNextConfig
    >>> from segtransformers import SegUperNetConfig, SegUperNetForSemanticSegmentation

    >>> backbone_config = ConvNextConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
    >>> model = SegUperNetForSemanticSegmentation(SegUperNetConfig(backbone_config=backbone_config, num_labels=7))
    ```
    """

    model_type = "seg_upernet"
    sub_configs_defaults = {
        "backbone_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="seg_vit_adapter",
            init_kwargs={"out_features": ["stage1", "stage2", "stage3", "stage4"]},
        ),
    }

    backbone_config: dict | PreTrainedConfig | None = None
    hidden_size: int = 512
    pool_scales: list[int] | tuple[int, ...] = (1, 2, 3, 6)
    classifier_dropout: float | int = 0.1
    use_auxiliary_head: bool = True
    auxiliary_loss_weight: float | int = 0.4
    auxiliary_in_index: int = 2
    auxiliary_channels: int = 256
    auxiliary_num_convs: int = 1
    auxiliary_concat_input: bool = False
    initializer_range: float = 0.01

    def __post_init__(self, **kwargs):
        if isinstance(self.backbone_config, dict):
            model_type = self.backbone_config.get("model_type")
            if model_type not in CONFIG_MAPPING:
                raise ValueError(f"backbone_config has the model_type {model_type!r}, which transformers does not know")
        super().__post_init__(**kwargs)
        self.pool_scales = list(self.pool_scales)
        for name in ("hidden_size", "auxiliary_channels", "auxiliary_num_convs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.pool_scales or min(self.pool_scales) < 1:
            raise ValueError(f"pool_scales must be sides of at least 1, got {self.pool_scales}")
        if not 0 <= self.classifier_dropout < 1:
            raise ValueError(f"classifier_dropout must be a share in [0, 1), got {self.classifier_dropout}")
        maps = getattr(self.backbone_config, "out_features", None)
        if maps is not None:
            self.check_maps(len(maps))

    def check_maps(self, count: int) -> None:
        """Refuse a backbone that gives `count` feature maps where the heads need more."""
        needed = max(2, self.auxiliary_in_index + 1 if self.use_auxiliary_head else 0)
        if count < needed:
            raise ValueError(
                f"UperNet needs at least {needed} feature maps, but the backbone gives {count}: set the out_features "
                "of backbone_config, for example to ['stage1', 'stage2', 'stage3', 'stage4']"
            )
        if self.use_auxiliary_head and self.auxiliary_in_index < 0:
            raise ValueError(f"auxiliary_in_index must be 0 or more, got {self.auxiliary_in_index}")

    @property
    def auxiliary_in_channels(self) -> None:
        """transformers' auxiliary head reads this; None lets it take the width of the map that it reads."""
        return None


__all__ = ["SegUperNetConfig"]
