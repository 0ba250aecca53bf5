# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Our models' weights in transformers' own models, and models of others that one may take instead."""

import abc
import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    EomtConfig,
    EomtForUniversalSegmentation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    PreTrainedModel,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)
from transformers.models.mask2former import modeling_mask2former

from segtransformers import SegMask2FormerForSemanticSegmentation, SegUperNetForSemanticSegmentation
from segtransformers.models.losses import CrossEntropy, total_loss
from segtransformers.models.mask2former.loss_seg_mask2former import semantic_targets
from segtransformers.operators import dcnv3_reference, dispatcher

SHARED_FIELDS = (
    "hidden_dim",
    "mask_feature_size",
    "encoder_layers",
    "encoder_feedforward_dim",
    "decoder_layers",
    "dim_feedforward",
    "num_attention_heads",
    "num_queries",
    "class_weight",
    "mask_weight",
    "dice_weight",
    "no_object_weight",
    "train_num_points",
    "oversample_ratio",
    "importance_sample_ratio",
)


@contextlib.contextmanager
def public_operators() -> Iterator[None]:
    """Within the block our backbones use the operators that are public without a compiler, based on `grid_sample`.

    Deformable attention is transformers' own function, DCNv3 the counterpart of the original's fallback.
    """
    functions = {
        "ms_deform_attn": modeling_mask2former.multi_scale_deformable_attention,
        "dcnv3": dcnv3_reference,
    }
    with (
        mock.patch.object(dispatcher, "compiled", lambda operator, value: None),
        mock.patch.object(dispatcher, "choose", lambda operator, value, **_: functions[operator]),
    ):
        yield


class Runner(nn.Module, abc.ABC):
    """A model that gives logits at the size of its image, and with labels a loss."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    @abc.abstractmethod
    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Return logits `(B, classes, H, W)` of images, or with labels `(B, H, W)` a loss."""


class Ours(Runner):
    def forward(self, pixel_values, labels=None):
        outputs = self.model(pixel_values, labels=labels)
        return outputs.logits if labels is None else outputs.loss


class OursBfloat16(Ours):
    def forward(self, pixel_values, labels=None):
        return super().forward(pixel_values.bfloat16(), labels)


class OursChannelsLast(Ours):
    def forward(self, pixel_values, labels=None):
        return super().forward(pixel_values.contiguous(memory_format=torch.channels_last), labels)


class TwinUperNet(Runner):
    """transformers' UperNet around the same backbone."""

    def forward(self, pixel_values, labels=None):
        with public_operators():
            outputs = self.model(pixel_values, labels=labels)
        return outputs.logits if labels is None else outputs.loss


class Universal(Runner):
    """Models of transformers whose queries have classes and masks: the semantic map is that of the paper.

    With `resize_masks`, the mask logits are resized to the image, and not the sums over the queries.
    """

    resize_masks = False

    def forward(self, pixel_values, labels=None):
        if labels is not None:
            masks, classes = semantic_targets(labels, self.model.config.num_labels, 255)
            masks = [mask.to(pixel_values.dtype) for mask in masks]
            return self.model(pixel_values, mask_labels=masks, class_labels=classes).loss.sum()
        outputs = self.model(pixel_values)
        probabilities = outputs.class_queries_logits.softmax(-1)[..., :-1]
        size, masks = pixel_values.shape[2:], outputs.masks_queries_logits
        if self.resize_masks:
            masks = F.interpolate(masks, size=size, mode="bilinear", align_corners=False)
        semantic = torch.einsum("bqk,bqhw->bkhw", probabilities, masks.sigmoid())
        return semantic if self.resize_masks else F.interpolate(semantic, size=size, mode="bilinear")


class TwinMask2Former(Universal):
    """transformers' Mask2Former around the same backbone."""

    def forward(self, pixel_values, labels=None):
        with public_operators():
            return super().forward(pixel_values, labels)


class Logits(Runner):
    """A model that gives logits, as segmentation_models.pytorch's do."""

    def forward(self, pixel_values, labels=None):
        logits = self.model(pixel_values)
        return logits if labels is None else total_loss([CrossEntropy(average_over="all_pixels")], logits, labels, 255)


class ResizedLogits(Runner):
    """A model of transformers whose logits have a quarter of the image's sides."""

    def forward(self, pixel_values, labels=None):
        outputs = self.model(pixel_values, labels=labels)
        if labels is not None:
            return outputs.loss
        return F.interpolate(outputs.logits, size=pixel_values.shape[2:], mode="bilinear", align_corners=False)


def has_twin(model: PreTrainedModel) -> bool:
    """Return whether transformers has a model with the parameters of `model`."""
    return isinstance(model, (SegMask2FormerForSemanticSegmentation, SegUperNetForSemanticSegmentation))


def twin_of(model: PreTrainedModel) -> Runner:
    """transformers' own model with the parameters of `model`, which are shared and not copied."""
    config = model.config
    labels = {"id2label": config.id2label, "label2id": config.label2id}
    if isinstance(model, SegMask2FormerForSemanticSegmentation):
        theirs = Mask2FormerConfig(
            backbone_config=config.backbone_config,
            feature_size=config.hidden_dim,
            dropout=0.0,
            **{name: getattr(config, name) for name in SHARED_FIELDS},
            **labels,
        )
        with torch.device("meta"):
            twin = Mask2FormerForUniversalSegmentation(theirs)
        places = {
            "backbone.": "model.pixel_level_module.encoder.",
            "pixel_decoder.": "model.pixel_level_module.decoder.",
            "transformer_module.": "model.transformer_module.",
            "class_predictor.": "class_predictor.",
        }
        runner: type[Runner] = TwinMask2Former
    else:
        theirs = UperNetConfig(
            backbone_config=config.backbone_config,
            hidden_size=config.hidden_size,
            pool_scales=config.pool_scales,
            use_auxiliary_head=config.use_auxiliary_head,
            auxiliary_loss_weight=config.auxiliary_loss_weight,
            auxiliary_channels=config.auxiliary_channels,
            auxiliary_num_convs=config.auxiliary_num_convs,
            auxiliary_concat_input=config.auxiliary_concat_input,
            **labels,
        )
        with torch.device("meta"):
            twin = UperNetForSemanticSegmentation(theirs)
        places = {"": ""}
        runner = TwinUperNet
    tensors = {}
    for name, tensor in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
        prefix = next(prefix for prefix in places if name.startswith(prefix))
        tensors[places[prefix] + name.removeprefix(prefix)] = tensor
    if isinstance(twin, Mask2FormerForUniversalSegmentation):  # a buffer of the loss, which is ours by configuration
        weight = torch.ones(config.num_labels + 1, device=model.device)
        weight[-1] = config.no_object_weight
        tensors["criterion.empty_weight"] = weight
    expected = twin.state_dict()
    twin.load_state_dict({name: tensor for name, tensor in tensors.items() if name in expected}, assign=True)
    for name, buffer in twin.named_buffers():
        if buffer.device.type == "meta":  # those that are not saved
            owner, _, last = name.rpartition(".")
            setattr(twin.get_submodule(owner), last, tensors[name])
    twin.train(model.training)
    built = runner(twin)
    if isinstance(built, Universal):
        built.resize_masks = config.resize_mask_logits
    return built


def eomt(hidden_size: int, depth: int, heads: int, size: int, num_labels: int) -> Runner:
    """EoMT (https://arxiv.org/abs/2503.19108) around a plain ViT, for images of one size."""
    config = EomtConfig(
        hidden_size=hidden_size,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        image_size=size,
        num_queries=100,
        num_blocks=3 if depth <= 12 else 4,
        num_labels=num_labels,
    )
    return Universal(EomtForUniversalSegmentation(config))


def segformer(num_labels: int) -> Runner:
    """Segformer-B5 (https://arxiv.org/abs/2105.15203)."""
    config = SegformerConfig(
        depths=[3, 6, 40, 3], hidden_sizes=[64, 128, 320, 512], decoder_hidden_size=768, num_labels=num_labels
    )
    return ResizedLogits(SegformerForSemanticSegmentation(config))


def smp_upernet(encoder: str, num_labels: int) -> Runner:
    """UPerNet of segmentation_models.pytorch."""
    try:
        import segmentation_models_pytorch
    except ImportError as error:
        raise SystemExit("this peer needs: pip install 'segtransformers[benchmark]' (or --no-peers)") from error
    return Logits(segmentation_models_pytorch.UPerNet(encoder, encoder_weights=None, classes=num_labels))
