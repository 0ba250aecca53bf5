# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Models learn: from random weights, on drawn scenes, in a stated number of steps."""

import numpy as np
import pytest
import torch
from test_flash_internimage import small_flash
from training_cases import SIDE, Sample, Scenes, adapter, crop, processor, small_model, trainer

from segtransformers import (
    PlainViTConfig,
    SegLinearConfig,
    SegLinearForSemanticSegmentation,
    SegmenterViTConfig,
)
from segtransformers.datasets.scenes import FIRST_TRAINING_SEED, normalized
from segtransformers.training import EvaluationDataset, TrainingDataset, freeze_trunk

pytestmark = pytest.mark.slow
SETTINGS = {
    "learning_rate": 2e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 20,
    "max_grad_norm": 1.0,
    "logging_steps": 50,
}


def learner(kind: str, **changes):
    """Twice as wide as the models of other tests; Segmenter with patches small enough for small things."""
    if kind == "segmenter":
        backbone = SegmenterViTConfig(
            trunk="vit_tiny_patch16_224",
            patch_size=4,
            hidden_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            pretrain_image_size=SIDE,
        )
        return small_model(kind, backbone=backbone, decoder_drop_path_rate=0.0, **changes)
    if kind == "flash_internimage":
        backbone, kind = small_flash(embed_dim=32, num_groups=[2, 4, 8, 16], drop_path_rate=0.0), "upernet"
    else:
        backbone = adapter(hidden_size=64, num_attention_heads=4)
    if kind == "upernet":
        return small_model(kind, backbone=backbone, hidden_size=64, classifier_dropout=0.0, **changes)
    return small_model(kind, backbone=backbone, hidden_dim=64, train_num_points=1024, **changes)


class FourScenes(Scenes):
    """Four square parts of scenes that together hold all classes, and none of them with just a few pixels."""

    def __init__(self, side: int):
        super().__init__(4)
        scale = side // SIDE
        self.chosen = []
        for seed, top, left in ((19, 48, 80), (11, 192, 144), (13, 96, 160), (24, 176, 256)):
            scene = Scenes(1, sizes=((256 * scale, 384 * scale),), first=FIRST_TRAINING_SEED + seed)[0]
            top, left = top * scale, left * scale
            image = scene.image.crop((left, top, left + side, top + side))
            self.chosen.append(Sample(scene.name, image, scene.labels[top : top + side, left : left + side]))

    def __getitem__(self, index: int):
        return self.chosen[index]


def whole(image, labels, seed):
    return {"pixel_values": normalized(np.asarray(image)), "labels": torch.from_numpy(labels.astype(np.int64))}


@pytest.mark.parametrize(
    ("kind", "side"),
    [("upernet", SIDE), ("mask2former", 2 * SIDE), ("segmenter", SIDE), ("flash_internimage", SIDE)],
)
def test_overfits_four_images(tmp_path, kind, side):
    """Reached 0.985 (UperNet), 0.964 (Mask2Former), 0.982 (Segmenter) and 0.984 (FlashInternImage with UperNet).

    For Mask2Former the scenes are drawn twice as large: it resizes probabilities, which follow edges less closely.
    """
    data = TrainingDataset(FourScenes(side), whole)
    settings = {"per_device_train_batch_size": 4, "max_steps": 200, **SETTINGS}
    model = learner(kind, window_size=[side, side])
    run = trainer(model, tmp_path, train_dataset=data, eval_dataset=data, **settings)
    run.train()
    assert run.evaluate()["eval_mean_iou"] >= 0.95


@pytest.mark.parametrize(
    ("kind", "steps", "bound"), [("upernet", 400, 0.4), ("mask2former", 400, 0.4), ("segmenter", 800, 0.3)]
)
def test_learns_scenes_that_it_has_not_seen(tmp_path, kind, steps, bound):
    """Reached 0.507 (UperNet), 0.534 (Mask2Former) and 0.371 (Segmenter).

    The best lookup table from a pixel's colour to a class in `scripts/train_scene_model.py`, fitted on 3000 scenes of
    this size, has 0.161 on these 32.
    """
    data = TrainingDataset(Scenes(512, first=FIRST_TRAINING_SEED), crop)
    unseen = EvaluationDataset(Scenes(32), processor())
    settings = {"per_device_train_batch_size": 8, "max_steps": steps, **SETTINGS}
    run = trainer(learner(kind), tmp_path, train_dataset=data, eval_dataset=unseen, **settings)
    run.train()
    assert run.evaluate()["eval_mean_iou"] >= bound


def on_a_frozen_trunk(kind: str):
    """A linear classifier on the tokens after each of four random blocks, or DINOv3's adapter with UperNet."""
    if kind == "adapter":
        backbone = adapter(hidden_size=64, num_attention_heads=4, use_injectors=False, final_norm=True)
        return small_model("upernet", backbone=backbone, hidden_size=64, classifier_dropout=0.0)
    torch.manual_seed(0)
    backbone = PlainViTConfig(
        trunk="vit_tiny_patch16_224",
        patch_size=4,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        pretrain_image_size=SIDE,
        out_indices=[0, 1, 2, 3, 4],
        initializer_range=0.1,
    )
    config = SegLinearConfig(backbone_config=backbone, num_labels=10, classifier_dropout=0.0)
    return SegLinearForSemanticSegmentation(config)


@pytest.mark.parametrize(("kind", "steps", "rate", "bound"), [("linear", 300, 1e-2, 0.17), ("adapter", 400, 2e-3, 0.4)])
def test_learns_on_a_frozen_random_trunk(tmp_path, kind, steps, rate, bound):
    """Reached 0.187 (linear) and 0.503 (adapter); 0.161 is the colour of each pixel alone, see above."""
    model = on_a_frozen_trunk(kind)
    freeze_trunk(model)
    before = [parameter.clone() for parameter in model.backbone.trunk.parameters()]
    data = TrainingDataset(Scenes(512, first=FIRST_TRAINING_SEED), crop)
    unseen = EvaluationDataset(Scenes(32), processor())
    settings = {**SETTINGS, "per_device_train_batch_size": 8, "max_steps": steps, "learning_rate": rate}
    run = trainer(model, tmp_path, train_dataset=data, eval_dataset=unseen, **settings)
    run.train()
    assert run.evaluate()["eval_mean_iou"] >= bound
    assert all(torch.equal(*pair) for pair in zip(before, model.backbone.trunk.parameters(), strict=True))
