# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Small models and drawn data for the tests of training and for the processes that they start."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel, TrainingArguments

from segtransformers import (
    SegMask2FormerConfig,
    SegMask2FormerForSemanticSegmentation,
    SegmentationImageProcessor,
    SegmenterConfig,
    SegmenterForSemanticSegmentation,
    SegmenterViTConfig,
    SegUperNetConfig,
    SegUperNetForSemanticSegmentation,
    ViTAdapterConfig,
)
from segtransformers.datasets.scenes import PALETTE, SCENE_CLASSES, draw_scene, normalized
from segtransformers.training import EvaluationDataset, SegmentationTrainer, TrainingDataset

KINDS = ("upernet", "mask2former", "segmenter")
STAGES = ["stage1", "stage2", "stage3", "stage4"]
SIDE = 64


def adapter(**changes: Any) -> ViTAdapterConfig:
    settings = {
        "trunk": "vit_tiny_patch16_224",
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "use_prefix_tokens": False,
        "pretrain_image_size": SIDE,
        "spatial_prior_channels": 16,
        "deformable_value_ratio": 0.5,
        "out_features": STAGES,
        **changes,
    }
    return ViTAdapterConfig(**settings)


def small_model(kind: str, seed: int = 0, backbone: Any = None, **changes: Any) -> PreTrainedModel:
    """Return a model with the classes of the drawn scenes and sliding windows of 64 pixels."""
    torch.manual_seed(seed)
    common = {
        "id2label": dict(enumerate(SCENE_CLASSES)),
        "label2id": {name: index for index, name in enumerate(SCENE_CLASSES)},
        "palette": PALETTE,
        "inference_mode": "slide",
        "window_size": [SIDE, SIDE],
        "window_stride": [42, 42],
        **changes,
    }
    if kind == "upernet":
        settings = {"hidden_size": 32, "auxiliary_channels": 16, **common}
        config = SegUperNetConfig(backbone_config=backbone or adapter(), **settings)
        return SegUperNetForSemanticSegmentation(config)
    if kind == "mask2former":
        settings = {
            "hidden_dim": 32,
            "encoder_layers": 2,
            "encoder_feedforward_dim": 64,
            "norm_groups": 8,
            "decoder_layers": 4,
            "dim_feedforward": 64,
            "num_attention_heads": 4,
            "num_queries": 20,
            "train_num_points": 256,
            **common,
        }
        config = SegMask2FormerConfig(backbone_config=backbone or adapter(), **settings)
        return SegMask2FormerForSemanticSegmentation(config)
    vit = {
        "trunk": "vit_tiny_patch16_224",
        "patch_size": 8,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "pretrain_image_size": SIDE,
    }
    config = SegmenterConfig(backbone_config=backbone or SegmenterViTConfig(**vit), **common)
    return SegmenterForSemanticSegmentation(config)


def processor(**changes: Any) -> SegmentationImageProcessor:
    return SegmentationImageProcessor(**{"do_resize": False, **changes})


@dataclass
class Sample:
    name: str
    image: Image.Image
    labels: np.ndarray


drawn = functools.lru_cache(draw_scene)


class Scenes:
    """A data set of drawn scenes that take the sizes in turn."""

    def __init__(self, count: int, sizes=((SIDE, 96),), first: int = 0):
        self.count, self.sizes, self.first = count, sizes, first
        self.names = [f"scene-{first + index}" for index in range(count)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(index)
        image, labels = drawn(self.first + index, self.sizes[index % len(self.sizes)])
        return Sample(self.names[index], Image.fromarray(image), labels.copy())


def crop(image: Image.Image, labels: np.ndarray, seed: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Augment an image by a random crop only."""
    random = np.random.default_rng(seed)
    top, left = (int(random.integers(side - SIDE + 1)) for side in labels.shape)
    where = np.s_[top : top + SIDE, left : left + SIDE]
    labels = torch.from_numpy(np.ascontiguousarray(labels[where]).astype(np.int64))
    return {"pixel_values": normalized(np.asarray(image)[where]), "labels": labels}


def arguments(folder: Any, **changes: Any) -> TrainingArguments:
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "learning_rate": 1e-3,
        "max_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        **changes,
    }
    return TrainingArguments(**settings)


def trainer(model: PreTrainedModel, folder: Any, **changes: Any) -> SegmentationTrainer:
    """Return a trainer on eight scenes. `changes` are arguments of the trainer or of [`TrainingArguments`]."""
    own = {
        name: changes.pop(name)
        for name in ("train_dataset", "eval_dataset", "recipe", "callbacks", "optimizers", "distillation")
        if name in changes
    }
    settings = {
        "train_dataset": TrainingDataset(Scenes(8), crop),
        "eval_dataset": EvaluationDataset(Scenes(3, sizes=((SIDE, 96), (80, 80))), processor()),
        "processing_class": processor(),
        **own,
    }
    return SegmentationTrainer(model, arguments(folder, **changes), **settings)


def losses(trained: Any) -> list[float]:
    return [entry["loss"] for entry in trained.state.log_history if "loss" in entry]
