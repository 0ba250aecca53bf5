# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Base classes of the configs of all our `...ForSemanticSegmentation` models."""

import math
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging

from ...escaping import short_repr
from ...remote_code import RemoteCodeConfigMixin
from ...whole_numbers import check_whole, check_whole_fields, pair_of_sides
from ..layers.config_arguments import MOST_ITEMS, ChecksArguments
from ..layers.sliding_windows import SlidingWindow
from ..losses import PixelLoss, build_losses, check_losses, without_class_settings

logger = logging.get_logger(__name__)

BACKGROUND = "background"  # name and colour of the value 0 in label maps of binary models
BACKGROUND_COLOUR = [128, 128, 128]
MULTI_LABEL = "multi_label_classification"  # transformers' name for independent classes


@strict
class SegmentationConfig(ChecksArguments, RemoteCodeConfigMixin, PreTrainedConfig):
    r"""
    The test-time protocol of a checkpoint and the colours of its classes.

    Args:
        inference_mode (`str`, defaults to `"whole"`):
            `"whole"` runs the network on the whole image. `"slide"` runs it, in evaluation mode and on images larger
            than the window, on overlapping windows and averages their logits.
        window_size (pair of `int`, *optional*):
            Height and width of the window in pixels.
        window_stride (pair of `int`, *optional*):
            Vertical and horizontal step between windows in pixels, at most `window_size`.
        window_batch_size (`int`, defaults to 1):
            Number of windows of each image that the network runs on at once.
        square_window_if_smaller (`bool`, defaults to `False`):
            Whether an image that is smaller than the window on both sides is run in squares of its shorter side, as
            DINOv3's segmentors are, or whole.
        semantic_loss_ignore_index (`int`, defaults to 255):
            The label value of pixels that have no class.
        palette (`list` of `[red, green, blue]`, *optional*):
            The colour of each class, 0 to 255, for drawing. A palette whose length is not `num_labels` is dropped, for
            example after `from_pretrained(..., num_labels=N)`.
        input_inflation (`dict`, *optional*):
            The rule by which weights for RGB images became those for other channels, as `with_input_channels` saves it.
            Nothing depends on it.
        calibration_temperature (`float`, defaults to 1.0):
            Temperature of the class probabilities, which `segtransformers evaluate --calibrate` measures: above 1, they
            become less certain. Logits, labels and losses do not depend on it. Other classes set it to 1.

    Raises:
        ValueError: if fields contradict each other.
    """

    # names of transformers' UperNet and Mask2Former configs
    attribute_map = {
        "loss_ignore_index": "semantic_loss_ignore_index",
        "ignore_value": "semantic_loss_ignore_index",
    }
    # whether the one logit of a model with one class is that of a sigmoid
    is_binary: ClassVar[Any] = False
    # whether each class has a sigmoid of its own, so that a pixel may belong to several classes or to none
    is_multi_label: ClassVar[Any] = False
    # whether logits are sums over queries of class probability times mask probability
    logits_are_query_sums: ClassVar[bool] = False
    # model_type of the config of transformers whose fields ours has
    stock_model_type: ClassVar[str | None] = None

    inference_mode: str = "whole"
    window_size: int | list[int] | tuple[int, ...] | None = None
    window_stride: int | list[int] | tuple[int, ...] | None = None
    window_batch_size: int = 1
    square_window_if_smaller: bool = False
    semantic_loss_ignore_index: int = 255
    palette: list[list[int]] | None = None
    input_inflation: dict | None = None
    calibration_temperature: float | int = 1.0

    def __post_init__(self, **kwargs):
        count = kwargs.get("num_labels")
        if count is not None:
            check_whole("num_labels", count, 1, MOST_ITEMS)  # transformers makes a name for each
        super().__post_init__(**kwargs)
        if self.num_labels < 1:
            raise ValueError(f"num_labels must be at least 1, got {self.num_labels}")
        for name in ("window_size", "window_stride"):
            if getattr(self, name) is not None:
                setattr(self, name, _pair(name, getattr(self, name)))
        self.sliding_window()
        if not 0 < self.calibration_temperature < math.inf:
            raise ValueError(f"calibration_temperature must be a positive number, got {self.calibration_temperature}")
        if self.problem_type == MULTI_LABEL and not self.is_multi_label:
            raise ValueError(f"{self.model_type} cannot be multi-label: choose a head that classifies pixels")
        if self.palette is not None:
            if self.is_binary and len(self.palette) == 1:
                self.palette = [BACKGROUND_COLOUR, *self.palette]
            if any(len(colour) != 3 or not 0 <= min(colour) <= max(colour) <= 255 for colour in self.palette):
                raise ValueError("palette must hold [red, green, blue] from 0 to 255 for each class")
            if len(self.palette) != len(self.id2label or ()):
                self.palette = None

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs: Any):
        """Read a saved config's fields. transformers would warn of the other model type in its own configs."""
        fields, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        is_stock = cls.stock_model_type is not None and fields.get("model_type") == cls.stock_model_type
        return cls.from_stock_fields(fields) if is_stock else fields, kwargs

    @classmethod
    def from_stock_fields(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of our config for those of transformers' config with the same head."""
        return {name: value for name, value in fields.items() if name not in ("model_type", "architectures")}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any):
        """Read a saved config.

        The config of a backbone becomes a whole config around it, so that `from_pretrained` of a model takes the folder
        of a backbone and makes a new head. The config of transformers' model with the same head is read field by field.
        With other classes, the temperature is 1.
        """
        if any(kwargs.get(name) is not None for name in ("num_labels", "id2label", "label2id")):
            config_dict = {name: value for name, value in config_dict.items() if name != "calibration_temperature"}
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type == cls.stock_model_type:
            config_dict = cls.from_stock_fields(config_dict)
        elif "backbone_config" in cls.sub_configs_defaults and model_type != cls.model_type:
            config_dict = {"backbone_config": config_dict}
        return super().from_dict(config_dict, **kwargs)

    def sliding_window(self) -> SlidingWindow | None:
        """Return the window of the test protocol, or None where `inference_mode` is "whole".

        It is checked at each call, because the fields may have been changed after construction.

        Raises:
            ValueError: if the fields contradict each other.
        """
        if self.inference_mode not in ("whole", "slide"):
            raise ValueError(f"inference_mode must be 'whole' or 'slide', got {self.inference_mode!r}")
        check_whole_fields(self, ("window_batch_size",), MOST_ITEMS)
        if self.inference_mode == "whole":
            return None
        if self.window_size is None or self.window_stride is None:
            raise ValueError("inference_mode='slide' needs window_size and window_stride")
        size, stride = _pair("window_size", self.window_size), _pair("window_stride", self.window_stride)
        return SlidingWindow(
            (size[0], size[1]), (stride[0], stride[1]), self.window_batch_size, self.square_window_if_smaller
        )


@strict
class SegmentationConfigWithBackbone(SegmentationConfig):
    r"""
    A backbone of any kind and heads that read its feature maps.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Any backbone that `AutoBackbone` knows, with the feature maps that the head reads in `out_features`, from
            the finest to the coarsest. None takes ViT-Adapter-T.

    Raises:
        ValueError: if the backbone is unknown or gives too few feature maps.
    """

    sub_configs_defaults = {
        "backbone_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="seg_vit_adapter",
            init_kwargs={"out_features": ["stage1", "stage2", "stage3", "stage4"]},
        ),
    }

    backbone_config: dict | PreTrainedConfig | None = None

    def __post_init__(self, **kwargs):
        if isinstance(self.backbone_config, dict):
            model_type = self.backbone_config.get("model_type")
            if model_type not in CONFIG_MAPPING:
                raise ValueError(f"backbone_config has the model_type {model_type!r}, which transformers does not know")
        super().__post_init__(**kwargs)
        out_features = getattr(self.backbone_config, "out_features", None)
        if out_features is not None:
            self._check_count(len(out_features))

    def fixed_fields(self) -> dict[str, Any]:
        return {**super().fixed_fields(), "use_pretrained_backbone": False}

    @property
    def num_feature_maps(self) -> int:
        """Number of feature maps that the heads read."""
        return 1

    def check_channels(self, channels: list[int]) -> None:
        """Check that the heads can read feature maps with these channels.

        Raises:
            ValueError: if the backbone gives too few feature maps, or one whose channels are not the configured ones.
        """
        self._check_count(len(channels))

    def _check_count(self, count: int) -> None:
        if count < self.num_feature_maps:
            raise ValueError(
                f"{type(self).__name__} needs at least {self.num_feature_maps} feature maps, but the backbone gives "
                f"{count}: set the out_features of backbone_config, for example to ['stage1', 'stage2', 'stage3', "
                "'stage4']"
            )


def _pair(name: str, value: Any) -> list[int]:
    """Return (vertical, horizontal) pixels from one side or two."""
    return list(pair_of_sides(name, [value, value] if isinstance(value, int) else value))


@strict
class BackboneSegmentationConfig(SegmentationConfigWithBackbone):
    r"""
    A backbone and a head that classifies pixels. [`SegmentationConfig`] describes the fields of the test protocol.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            See [`SegmentationConfigWithBackbone`].
        classifier_dropout (`float`, defaults to 0.1):
            Share of channels dropped in front of the classifiers in training.
        initializer_range (`float`, defaults to 0.01):
            Standard deviation of newly initialized classifiers.
        losses (`list` of `dict`, *optional*):
            The losses whose weighted sum trains the head, such as
            `[{"name": "cross_entropy"}, {"name": "dice", "weight": 3.0}]`; [`segtransformers.models.losses`] has them
            all. None is cross entropy averaged over all pixels, as in MMSegmentation.
        auxiliary_losses (`list` of `dict`, *optional*):
            The losses of the auxiliary head. None takes `losses`.
        binary (`bool`, defaults to `False`):
            Whether the model has one logit, that of a sigmoid, for two classes: the background 0 and the object 1. Then
            `num_labels` is 1, `id2label` names both values of the label maps, and the default loss is binary cross
            entropy. `num_labels=1`, or an `id2label` with the object alone, sets it.
        problem_type (`str`, *optional*):
            `"multi_label_classification"`, transformers' name for independent classes, gives each class a sigmoid of
            its own: a pixel may belong to several classes or to none. Labels are masks `(batch, num_labels, height,
            width)` of 0 and 1 then, and the default loss is binary cross entropy. Other values change nothing.
        threshold (`float`, defaults to 0.5):
            The probability above which a pixel belongs to the object of a binary model, or to a class of a multi-label
            model.

    Raises:
        ValueError: if the backbone is unknown or gives too few feature maps, a number or a loss is not valid, or the
            model would be binary and multi-label at once.
    """

    attribute_map = {
        **SegmentationConfigWithBackbone.attribute_map,
        "classifier_dropout_prob": "classifier_dropout",  # as in transformers' Segformer
    }

    classifier_dropout: float | int = 0.1
    initializer_range: float = 0.01
    losses: list | tuple | None = None
    auxiliary_losses: list | tuple | None = None
    binary: bool = False
    threshold: float | int = 0.5

    def __post_init__(self, **kwargs):
        count, names = kwargs.get("num_labels"), self.id2label
        if self.binary and self.is_multi_label:
            raise ValueError(
                f"a model is not both binary and multi-label: leave out binary, or problem_type={MULTI_LABEL}"
            )
        if (len(names) if names is not None else count) == 1 and not self.is_multi_label:
            self._make_binary("LABEL_1" if names is None else next(iter(names.values())))
        if self.binary:
            kwargs.pop("num_labels", None)
            if len(self.id2label or ()) != 2:
                raise ValueError(
                    f"a binary model has two classes, background and object, got id2label={short_repr(self.id2label)}"
                )
        super().__post_init__(**kwargs)
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold must be a probability between 0 and 1, got {self.threshold}")
        for name in ("losses", "auxiliary_losses"):
            if getattr(self, name) is not None:
                losses = build_losses(getattr(self, name))
                check_losses(losses, self.num_labels, self.is_multi_label)
                setattr(self, name, [loss.to_dict() for loss in losses])
        if not 0 <= self.classifier_dropout < 1:
            raise ValueError(f"classifier_dropout must be a share in [0, 1), got {self.classifier_dropout}")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any):
        """Read a saved config.

        Settings of losses that belong to single classes are dropped when `num_labels`, `id2label` or `label2id` of the
        arguments describe other classes.
        """
        if any(kwargs.get(name) is not None for name in ("num_labels", "id2label", "label2id")):
            is_multi_label = kwargs.get("problem_type", config_dict.get("problem_type")) == MULTI_LABEL
            sigmoids = is_multi_label or kwargs.get("num_labels") == 1 or bool(kwargs.get("binary"))
            for name in ("losses", "auxiliary_losses"):
                saved = config_dict.get(name)
                if saved is None or name in kwargs:
                    continue
                kept = without_class_settings(saved, sigmoids)
                if kept != saved:
                    logger.warning(
                        f"{name} of the config has settings that do not fit the new classes and are left out"
                    )
                    config_dict = {**config_dict, name: kept}
        return super().from_dict(config_dict, **kwargs)

    @property
    def is_binary(self) -> bool:
        return self.num_labels == 1 and not self.is_multi_label

    @property
    def is_multi_label(self) -> bool:
        return self.problem_type == MULTI_LABEL

    @property
    def num_labels(self) -> int | None:
        """Number of logits of a pixel: the number of classes, or 1 for a binary model."""
        return 1 if getattr(self, "binary", False) else PreTrainedConfig.num_labels.fget(self)

    @num_labels.setter
    def num_labels(self, num_labels: int) -> None:
        if num_labels == 1 and not self.is_multi_label:
            if not self.binary:
                self._make_binary("LABEL_1")
        else:
            self.binary = False
            PreTrainedConfig.num_labels.fset(self, num_labels)

    def _make_binary(self, name: str) -> None:
        self.binary = True
        self.id2label, self.label2id = {0: BACKGROUND, 1: name}, {BACKGROUND: 0, name: 1}

    def pixel_losses(self) -> list[PixelLoss]:
        """Return the losses of the head."""
        name = "binary_cross_entropy" if self.is_binary or self.is_multi_label else "cross_entropy"
        return build_losses(self.losses or [{"name": name, "average_over": "all_pixels"}])

    def auxiliary_pixel_losses(self) -> list[PixelLoss]:
        """Return the losses of the auxiliary head."""
        return build_losses(self.auxiliary_losses) if self.auxiliary_losses else self.pixel_losses()


__all__ = ["MULTI_LABEL", "BackboneSegmentationConfig", "SegmentationConfig", "SegmentationConfigWithBackbone"]
