# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Mask2Former: Masked-attention Mask Transformer for Universal Image Segmentation (https://arxiv.org/abs/2112.01527).

Behaviour follows `mmseg_custom/models/decode_heads/mask2former_head.py` and its pixel decoder in czczup/ViT-Adapter.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.backbone_utils import load_backbone
from transformers.modeling_outputs import BackboneOutput, SemanticSegmenterOutput
from transformers.utils import can_return_tuple
from typing_extensions import Unpack

from ..layers.deformable_attention import DeformableAttention
from ..layers.input_checks import check_labels, check_pixel_values
from ..layers.resize import STRIDES, Resize, crop_to_image, pad_to_multiple
from ..layers.sliding_windows import SlidingWindow, slide
from ..layers.token_grid import Grid, grid_of
from ..segmentation.modeling_segmentation import SegmentationPreTrainedModel
from .configuration_seg_mask2former import NUM_FEATURE_MAPS, SegMask2FormerConfig
from .loss_seg_mask2former import check_targets, count_masks, mask2former_losses, semantic_targets
from .modules_seg_mask2former import (
    SegMask2FormerCrossAttention,
    SegMask2FormerDecoderLayer,
    SegMask2FormerMaskPredictor,
    SegMask2FormerPixelDecoder,
    SegMask2FormerPixelDecoderLayer,
    SegMask2FormerTransformerModule,
    sine_encoding,
)
from .stock_mask2former import LOCATION_ARGUMENTS, is_stock, stock_weights

Targets = tuple[list[torch.Tensor], list[torch.Tensor]]


class MaskTargets(TypedDict, total=False):
    """Labels as masks, for [`SegMask2FormerForSemanticSegmentation`].

    They are not named parameters of `forward`, because Trainer computes an evaluation loss only if a batch has every
    parameter with "label" in its name. To use them with Trainer, pass
    `TrainingArguments(label_names=["mask_labels", "class_labels"], remove_unused_columns=False)`.

    Attributes:
        mask_labels: for each image masks `(n, H, W)`.
        class_labels: for each image the masks' classes `(n,)`.
    """

    mask_labels: list[torch.Tensor]
    class_labels: list[torch.Tensor]


@dataclass
class SegMask2FormerOutput(SemanticSegmenterOutput):
    """
    Attributes:
        loss: a scalar, with labels.
        logits: `(B, num_labels, H, W)`: for each class the sum over the queries of class probability times mask
            probability, not the logarithm of a probability. None in training with labels.
        hidden_states, attentions: of the backbone.
        class_queries_logits: `(B, queries, num_labels + 1)`; the last class is "no object".
        masks_queries_logits: `(B, queries, ceil(H / 4), ceil(W / 4))`.
        pixel_decoder_hidden_states: feature maps `(B, hidden_dim, h, w)` at strides 32, 16 and 8.
        transformer_decoder_hidden_states: the queries `(B, queries, hidden_dim)` before the first layer and after each.
    """

    class_queries_logits: torch.FloatTensor | None = None
    masks_queries_logits: torch.FloatTensor | None = None
    pixel_decoder_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    transformer_decoder_hidden_states: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class Prediction:
    """The network's predictions before masks are computed.

    Attributes:
        class_logits: `(layers, B, queries, num_labels + 1)` of the last decoder layer or of all.
        mask_embeddings: `(layers, B, queries, mask_feature_size)` of the same layers.
        mask_features: `(B, mask_feature_size, h, w)` at stride 4.
        queries: `(B, queries, hidden_dim)` before the first layer and after each.
        feature_maps: of the pixel decoder, at strides 32, 16 and 8.
        backbone: the backbone's output.
    """

    class_logits: torch.Tensor
    mask_embeddings: torch.Tensor
    mask_features: torch.Tensor
    queries: list[torch.Tensor]
    feature_maps: list[torch.Tensor]
    backbone: BackboneOutput

    def mask_logits(self) -> torch.Tensor:
        """Return the mask logits of the last layer, `(B, queries, h, w)`."""
        return torch.einsum("bqc,bchw->bqhw", self.mask_embeddings[-1], self.mask_features)

    def of_images(self, images: slice) -> "Prediction":
        """Return the predictions of some images, as far as a loss needs them."""
        return replace(
            self,
            class_logits=self.class_logits[:, images],
            mask_embeddings=self.mask_embeddings[:, images],
            mask_features=self.mask_features[images],
        )


class SegMask2FormerPreTrainedModel(SegmentationPreTrainedModel):
    """Weight initialisation."""

    config: SegMask2FormerConfig
    _no_split_modules = [SegMask2FormerPixelDecoderLayer.__name__, SegMask2FormerDecoderLayer.__name__]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, DeformableAttention):
            module.init_weights()
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, SegMask2FormerCrossAttention):
            init.xavier_uniform_(module.in_proj_weight)
            init.zeros_(module.in_proj_bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, SegMask2FormerPixelDecoder):
            init.normal_(module.level_embed)
            for convolution in (module.adapter_1[0], module.layer_1[0], module.mask_projection):
                init.kaiming_uniform_(convolution.weight, a=1)
        elif isinstance(module, SegMask2FormerMaskPredictor):
            for layer in module.modules():
                if isinstance(layer, nn.Linear):
                    _init_as_torch_does(layer)
        elif isinstance(module, SegMask2FormerForSemanticSegmentation):
            _init_as_torch_does(module.class_predictor)


def _init_as_torch_does(linear: nn.Linear) -> None:
    init.kaiming_uniform_(linear.weight, a=math.sqrt(5))
    bound = 1 / math.sqrt(linear.in_features)
    init.uniform_(linear.bias, -bound, bound)


class SegMask2FormerForSemanticSegmentation(SegMask2FormerPreTrainedModel):
    """Mask2Former over any backbone.

    Args:
        config: a [`SegMask2FormerConfig`].
    """

    def __init__(self, config: SegMask2FormerConfig):
        super().__init__(config)
        self.backbone = load_backbone(config)
        config.check_channels(self.backbone.channels)
        self.pixel_decoder = SegMask2FormerPixelDecoder(config, self.backbone.channels[-NUM_FEATURE_MAPS:])
        self.transformer_module = SegMask2FormerTransformerModule(config)
        self.class_predictor = nn.Linear(config.hidden_dim, config.num_labels + 1)
        self.resize_logits = Resize()
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args: Any, **kwargs: Any):
        """Load as transformers does, also the folder or Hub repository of transformers' own Mask2Former.

        Its logits of classes and masks are the same. Its label maps differ, because transformers resizes mask logits to
        384 x 384 pixels before the scores of the classes are summed. Ours are resized to the image at once.
        """
        name = pretrained_model_name_or_path
        location = {key: kwargs[key] for key in LOCATION_ARGUMENTS if key in kwargs}
        if name is None or not is_stock(name, **location):
            return super().from_pretrained(name, *model_args, **kwargs)
        config = kwargs.pop("config", None)
        if not isinstance(config, PreTrainedConfig):
            config, kwargs = cls.config_class.from_pretrained(config or name, return_unused_kwargs=True, **kwargs)
        kwargs = {key: value for key, value in kwargs.items() if key not in LOCATION_ARGUMENTS}
        weights = stock_weights(name, **location)
        return super().from_pretrained(None, *model_args, config=config, state_dict=weights, **kwargs)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        mean_masks: torch.Tensor | None = None,
        sliding_window: SlidingWindow | bool | None = None,
        **targets: Unpack[MaskTargets],
    ) -> SegMask2FormerOutput:
        """
        In evaluation mode, images larger than the sliding window are run in windows: the output then has only `logits`
        and `loss`, the mean of the windows' losses.

        Args:
            pixel_values: `(B, C, H, W)`, normalized.
            labels: `(B, H, W)` class indices, or `config.semantic_loss_ignore_index`.
            output_hidden_states, output_attentions: passed to the backbone; hidden states of the head come with the
                backbone's. None takes the config's setting.
            mean_masks: for gradient accumulation: the mean of [`count_masks`] over batches of equal size, so that the
                mean of their losses is the loss of all of them joined. None normalizes by this batch alone.
            sliding_window: the windows of evaluation mode. None takes the config's, False runs the whole image at once.
            targets: [`MaskTargets`], instead of `labels`.

        Returns:
            [`SegMask2FormerOutput`]. In training with labels, `logits` is None.

        Raises:
            TypeError: for an unknown keyword.
            ValueError: if `pixel_values` is not a batch of normalized images or the labels do not fit.

        Example, with a folder written by `convert_vit_adapter.py`:

        ```python
        >>> from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

        >>> folder = "mask2former_beitv2_adapter_large_896_80k_ade20k_ss"
        >>> model = AutoModelForSemanticSegmentation.from_pretrained(folder).eval()
        >>> inputs = AutoImageProcessor.from_pretrained(folder)(images=image, return_tensors="pt")
        >>> labels = model(**inputs).logits.argmax(dim=1)
        ```
        """
        config = self.config
        check_pixel_values(pixel_values, getattr(config.backbone_config, "num_channels", None))
        masks_and_classes = self._targets(pixel_values, labels, **targets)
        window = self.chosen_window(sliding_window)
        if window is not None and not window.covers(pixel_values.shape[2:]):
            return self._slide(pixel_values, masks_and_classes, window)
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        if output_attentions is None:
            output_attentions = config.output_attentions
        prediction = self._predict(
            pixel_values,
            all_layers=masks_and_classes is not None,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        height, width = pixel_values.shape[2:]
        masks = prediction.mask_logits()
        loss = logits = None
        if masks_and_classes is not None:
            loss = self._loss(prediction, masks_and_classes, over_processes=self.training, mean_masks=mean_masks)
        if masks_and_classes is None or not self.training:
            logits = self._logits(prediction, masks, (height, width))
        return SegMask2FormerOutput(
            loss=loss,
            logits=logits,
            hidden_states=prediction.backbone.hidden_states,
            attentions=prediction.backbone.attentions,
            class_queries_logits=prediction.class_logits[-1],
            masks_queries_logits=crop_to_image(masks, STRIDES[0], height, width),
            pixel_decoder_hidden_states=tuple(prediction.feature_maps) if output_hidden_states else None,
            transformer_decoder_hidden_states=tuple(prediction.queries) if output_hidden_states else None,
        )

    def _targets(self, pixel_values, labels, mask_labels=None, class_labels=None) -> Targets | None:
        """Return the checked masks and classes of each image, or None without labels."""
        config = self.config
        if labels is not None and (mask_labels is not None or class_labels is not None):
            raise ValueError("pass either labels, or mask_labels with class_labels, not both")
        if labels is not None:
            check_labels(labels, pixel_values, config.num_labels, config.semantic_loss_ignore_index)
            return semantic_targets(labels, config.num_labels, config.semantic_loss_ignore_index)
        if mask_labels is None and class_labels is None:
            return None
        if mask_labels is None or class_labels is None:
            raise ValueError("pass mask_labels and class_labels together: one of them is missing")
        check_targets(mask_labels, class_labels, pixel_values, config.num_labels)
        return list(mask_labels), list(class_labels)

    def _predict(self, pixel_values: torch.Tensor, all_layers: bool, **kwargs) -> Prediction:
        """Run the network; keywords go to the backbone."""
        if self.config.pad_to_stride:
            pixel_values = pad_to_multiple(pixel_values)
        outputs = self.run_backbone(pixel_values, **kwargs)
        feature_maps = outputs.feature_maps[-NUM_FEATURE_MAPS:]
        encodings = [
            sine_encoding(grid_of(feature_map), self.config.hidden_dim, feature_map.device)
            for feature_map in feature_maps[:0:-1]
        ]
        mask_features, levels = self.pixel_decoder(feature_maps, encodings)
        queries, normalised, embeddings = self.transformer_module(levels, mask_features, encodings)
        first = 0 if all_layers else -1
        return Prediction(
            class_logits=torch.stack(
                [self.class_predictor(queries_of_layer) for queries_of_layer in normalised[first:]]
            ),
            mask_embeddings=torch.stack(embeddings[first:]),
            mask_features=mask_features,
            queries=queries,
            feature_maps=levels,
            backbone=outputs,
        )

    def _logits(self, prediction: Prediction, masks: torch.Tensor, size: Grid) -> torch.Tensor:
        """Return `(B, num_labels, *size)`: class times mask probability, summed over the queries.

        DINOv3 rounds both factors to bfloat16 in its sliding mode, and so its sums (1.4e-3 in relative L2 of a recorded
        case). Here they keep the precision of the model.
        """
        probabilities = prediction.class_logits[-1].softmax(-1)[..., :-1].to(masks.dtype)
        if self.config.resize_mask_logits:
            masks = self.resize_logits(masks, self._padded(size))[:, :, : size[0], : size[1]]
        # bmm rather than einsum, whose result has a memory layout that interpolate is slow with
        semantic = torch.bmm(probabilities.transpose(1, 2), masks.sigmoid().flatten(2)).unflatten(2, masks.shape[2:])
        if self.config.resize_mask_logits:
            return semantic
        return self.resize_logits(semantic, self._padded(size))[:, :, : size[0], : size[1]]

    def _loss(
        self,
        prediction: Prediction,
        targets: Targets,
        over_processes: bool,
        mean_masks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        mask_labels, class_labels = targets
        size = mask_labels[0].shape[1:]
        below, right = (padded - side for padded, side in zip(self._padded(size), size, strict=True))
        return mask2former_losses(
            self.config,
            prediction.class_logits,
            prediction.mask_embeddings,
            prediction.mask_features,
            [F.pad(masks, (0, right, 0, below)) for masks in mask_labels],
            class_labels,
            over_processes=over_processes,
            mean_masks=mean_masks,
        ).total()

    def count_masks(self, labels: torch.Tensor) -> torch.Tensor:
        """Count the masks of label maps `(B, H, W)` that the loss is averaged over, and sum their weights."""
        return count_masks(self.config, labels)

    def _padded(self, size: Grid) -> Grid:
        """Return the size of the images that the backbone receives."""
        if not self.config.pad_to_stride:
            return size
        height, width = ((side + STRIDES[-1] - 1) // STRIDES[-1] * STRIDES[-1] for side in size)
        return height, width

    def _slide(
        self, pixel_values: torch.Tensor, targets: Targets | None, window: SlidingWindow
    ) -> SegMask2FormerOutput:
        """Merge the logits of windows and, with targets, average the windows' losses."""
        batch = pixel_values.shape[0]
        windows = iter(window.indices(pixel_values.shape[2:]))
        losses = []

        def segment(parts: torch.Tensor) -> torch.Tensor:
            prediction = self._predict(parts, all_layers=targets is not None)
            if targets is not None:
                for start in range(0, parts.shape[0], batch):  # `slide` passes the windows in order
                    part = prediction.of_images(slice(start, start + batch))
                    losses.append(self._loss(part, _in_window(targets, next(windows)), over_processes=False))
            return self._logits(prediction, prediction.mask_logits(), parts.shape[2:])

        logits = slide(segment, pixel_values, window)
        return SegMask2FormerOutput(loss=torch.stack(losses).mean() if losses else None, logits=logits)


def _in_window(targets: Targets, window: tuple) -> Targets:
    """Return the masks that have pixels in a window, and their classes."""
    mask_labels, class_labels = [], []
    for masks, classes in zip(*targets, strict=True):
        masks = masks[window]
        seen = masks.flatten(1).any(1)
        mask_labels.append(masks[seen])
        class_labels.append(classes[seen])
    return mask_labels, class_labels


__all__ = ["SegMask2FormerForSemanticSegmentation", "SegMask2FormerOutput", "SegMask2FormerPreTrainedModel"]
