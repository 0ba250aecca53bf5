# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Base of the models with a backbone, a head that classifies pixels, and perhaps an auxiliary head.

It follows `mmseg/models/segmentors/encoder_decoder.py` of MMSegmentation 0.20: the auxiliary head serves only the
loss, large images can be run in sliding windows, and the loss is averaged over all pixels.
"""

import abc
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import load_backbone
from transformers.modeling_outputs import BackboneOutput, SemanticSegmenterOutput
from transformers.models.upernet.modeling_upernet import UperNetConvModule
from transformers.utils import can_return_tuple

from ..layers.initialization import SegmentationModelMixin
from ..layers.input_checks import check_labels, check_masks, check_pixel_values
from ..layers.resize import STRIDES, Resize
from ..layers.sliding_windows import SlidingWindow, slide
from ..losses import build_losses, check_losses, total_loss
from .configuration_segmentation import BackboneSegmentationConfig


class SegmentationPreTrainedModel(SegmentationModelMixin, PreTrainedModel):
    """Attributes and methods that transformers expects of every model with a `self.backbone`."""

    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # each loss is the mean over its own batch: Trainer has to divide it by the accumulation steps
    accepts_loss_kwargs = False

    backbone: PreTrainedModel

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def chosen_window(self, sliding_window: SlidingWindow | bool | None) -> SlidingWindow | None:
        """Return the windows that `forward` uses for its argument `sliding_window`; None runs the whole image."""
        if self.training or sliding_window is False:
            return None
        if isinstance(sliding_window, SlidingWindow):
            return sliding_window
        if sliding_window is None:
            return self.config.sliding_window()
        raise ValueError(f"sliding_window must be a SlidingWindow, False or None, got {sliding_window!r}")

    def run_backbone(self, pixel_values: torch.Tensor, **kwargs) -> BackboneOutput:
        """Run the backbone on images of any size, with the keywords that it knows.

        Backbones of others fail on images that are smaller than their largest stride. For these, such an image is
        padded with zeros at the right and the bottom, and the feature maps are cropped.
        """
        min_side = getattr(self.backbone, "min_image_side", STRIDES[-1])
        height, width = pixel_values.shape[2:]
        if height >= min_side and width >= min_side:
            return self.backbone.forward_with_filtered_kwargs(pixel_values, **kwargs)
        padded = max(height, min_side), max(width, min_side)
        outputs = self.backbone.forward_with_filtered_kwargs(
            F.pad(pixel_values, (0, padded[1] - width, 0, padded[0] - height)), **kwargs
        )
        outputs.feature_maps = tuple(
            feature_map[
                :, :, : -(-height * feature_map.shape[2] // padded[0]), : -(-width * feature_map.shape[3] // padded[1])
            ]
            for feature_map in outputs.feature_maps
        )
        return outputs


class BackboneForSemanticSegmentation(SegmentationPreTrainedModel, abc.ABC):
    """A backbone with heads. Subclasses build the heads.

    Args:
        config: a [`BackboneSegmentationConfig`].
    """

    config: BackboneSegmentationConfig
    decode_head: nn.Module
    auxiliary_head: nn.Module | None

    def __init__(self, config: BackboneSegmentationConfig):
        super().__init__(config)
        self.backbone = load_backbone(config)
        config.check_channels(self.backbone.channels)
        self.decode_head = self.build_decode_head(self.backbone.channels)
        self.auxiliary_head = self.build_auxiliary_head(self.backbone.channels)
        self.resize_logits = Resize(getattr(config, "align_corners", False))
        self.pixel_losses = config.pixel_losses()
        self.auxiliary_pixel_losses = config.auxiliary_pixel_losses()
        self.post_init()

    def set_losses(self, losses: Sequence[Any] | None, auxiliary_losses: Sequence[Any] | None = None) -> None:
        """Train with other losses, which are saved in the config.

        Args:
            losses, auxiliary_losses: as of [`BackboneSegmentationConfig`].

        Raises:
            ValueError: if a loss is not valid or does not fit the classes.
        """
        built = [None if value is None else build_losses(value) for value in (losses, auxiliary_losses)]
        for value in built:
            check_losses(value or [], self.config.num_labels, self.config.is_multi_label)
        self.config.losses, self.config.auxiliary_losses = (
            None if value is None else [loss.to_dict() for loss in value] for value in built
        )
        self.pixel_losses = self.config.pixel_losses()
        self.auxiliary_pixel_losses = self.config.auxiliary_pixel_losses()

    def count_classes(self, labels: torch.Tensor) -> torch.Tensor | None:
        """Count the pixels of each class, `(num_labels,)`, or return None if no loss divides by such counts.

        Of masks `(B, num_labels, H, W)`, the pixels that are valid for each class are counted.
        """
        losses = self.pixel_losses + (self.auxiliary_pixel_losses if self.auxiliary_head is not None else [])
        if not any(loss.divides_by_counts for loss in losses):
            return None
        if self.config.is_multi_label:
            return (labels != self.config.semantic_loss_ignore_index).sum((0, 2, 3))
        classes = max(self.config.num_labels or 0, 2)  # binary label maps hold 0 and 1
        valid = labels[labels != self.config.semantic_loss_ignore_index].long()
        return torch.bincount(valid, minlength=classes)[:classes]

    @abc.abstractmethod
    def build_decode_head(self, in_channels: list[int]) -> nn.Module:
        """Build the module that maps the backbone's feature maps, with these channels, to logits at the size of one."""

    def build_auxiliary_head(self, in_channels: list[int]) -> nn.Module | None:
        """Build a second such module for the loss; by default there is none."""
        return None

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # the classifiers, among others
        if isinstance(module, UperNetConvModule):
            init.kaiming_normal_(module.conv.weight, mode="fan_out", nonlinearity="relu")

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        sliding_window: SlidingWindow | bool | None = None,
        mean_class_counts: torch.Tensor | None = None,
        resize_logits: bool = True,
    ) -> SemanticSegmenterOutput:
        """
        In evaluation mode, images larger than the sliding window are run in windows. They have no hidden states, and
        their loss is that of the merged logits. With a sliding window, the loss of evaluation mode never includes the
        auxiliary head, so that images of all sizes have the same kind of loss.

        Args:
            pixel_values: `(B, C, H, W)`, normalized.
            labels: `(B, H, W)` class indices, or `config.semantic_loss_ignore_index`. For a binary model 0 and 1. For
                a multi-label model masks `(B, num_labels, H, W)` of 0 and 1, where the index excludes a pixel of a
                class.
            output_hidden_states, output_attentions: passed to the backbone; None takes the config's setting.
            sliding_window: the windows of evaluation mode. None takes the config's, False runs the whole image at once.
            mean_class_counts: `(num_labels,)`, for gradient accumulation and several processes: the mean of
                [`count_classes`] over the batches of an optimizer step. Losses that divide by the number of valid
                pixels use it, so that the mean over the batches is the loss of all of them joined.
            resize_logits: whether logits are resized to the image. False returns those of the head, at its resolution,
                with channels first or last in memory.

        Returns:
            `SemanticSegmenterOutput` with `logits` `(B, num_labels, H, W)` and, with labels, `loss`.

        Raises:
            ValueError: if `pixel_values` is not a batch of normalized images or the labels do not fit, or if an image
                is run in windows, whose logits are always resized, with `resize_logits=False`.

        Example, with a folder written by `convert_vit_adapter.py`:

        ```python
        >>> from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

        >>> folder = "upernet_deit_adapter_tiny_512_160k_ade20k"
        >>> model = AutoModelForSemanticSegmentation.from_pretrained(folder).eval()
        >>> inputs = AutoImageProcessor.from_pretrained(folder)(images=image, return_tensors="pt")
        >>> labels = model(**inputs).logits.argmax(dim=1)
        ```
        """
        config = self.config
        check_pixel_values(pixel_values, getattr(config.backbone_config, "num_channels", None))
        if labels is not None:
            check = check_masks if config.is_multi_label else check_labels
            check(labels, pixel_values, len(config.id2label), config.semantic_loss_ignore_index)
        size = pixel_values.shape[2:]
        window = self.chosen_window(sliding_window)
        if window is not None and self._needs_windows(size, window):
            if not resize_logits:
                raise ValueError(
                    f"resize_logits=False needs an image in one piece, but {size[0]}x{size[1]} pixels are run in "
                    "windows: pass sliding_window=False"
                )
            logits = head_logits = self._slide(pixel_values, window)
            outputs = BackboneOutput()
        else:
            outputs = self.run_backbone(
                pixel_values,
                output_hidden_states=config.output_hidden_states
                if output_hidden_states is None
                else output_hidden_states,
                output_attentions=config.output_attentions if output_attentions is None else output_attentions,
            )
            head_logits = self.decode_head(outputs.feature_maps)
            logits = self._enlarge(head_logits, size) if resize_logits or labels is not None else head_logits
        loss = None
        if labels is not None:
            ignored = config.semantic_loss_ignore_index
            # a loss that resizes logits itself needs less memory
            loss_resizes = self._is_enlarged_by_resize(size)
            loss_logits = head_logits if loss_resizes else logits
            loss = total_loss(self.pixel_losses, loss_logits, labels, ignored, mean_class_counts)
            if self.auxiliary_head is not None and window is None:
                auxiliary_logits = self.auxiliary_head(outputs.feature_maps)
                if not loss_resizes:
                    auxiliary_logits = self._enlarge(auxiliary_logits, size)
                auxiliary = total_loss(
                    self.auxiliary_pixel_losses, auxiliary_logits, labels, ignored, mean_class_counts
                )
                loss = loss + config.auxiliary_loss_weight * auxiliary
        return SemanticSegmenterOutput(
            loss=loss,
            logits=logits if resize_logits else head_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _segment(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return logits at the size of `pixel_values`."""
        return self._enlarge(self.decode_head(self.run_backbone(pixel_values).feature_maps), pixel_values.shape[2:])

    def _enlarge(self, logits: torch.Tensor, size: torch.Size) -> torch.Tensor:
        """Resize the head's logits to the size of the image."""
        # many channels are slow to resize where they come last in memory
        return self.resize_logits(logits.contiguous(), size)

    def _is_enlarged_by_resize(self, size: torch.Size) -> bool:
        """Return whether `_enlarge` to this (height, width) is the bilinear resize of `total_loss`."""
        return True

    def _needs_windows(self, size: torch.Size, window: SlidingWindow) -> bool:
        """Return whether an image of (height, width) `size` is run in windows."""
        return not window.covers(size)

    def _slide(self, pixel_values: torch.Tensor, window: SlidingWindow) -> torch.Tensor:
        """Merge the logits of windows, at the size of `pixel_values`."""
        return slide(self._segment, pixel_values, window)


__all__ = ["BackboneForSemanticSegmentation", "SegmentationPreTrainedModel"]
