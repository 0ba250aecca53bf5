# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Models learn: from random weights, on drawn scenes, in a stated number of steps."""

import pytest
from training_cases import SIDE, Scenes, adapter, crop, small_model, trainer

from segtransformers import SegmenterViTConfig
from segtransformers.datasets.scenes import FIRST_TRAINING_SEED
from segtransformers.training import TrainingDataset

pytestmark = pytest.mark.slow
SETTINGS = {
    "learning_rate": 2e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 20,
    "max_grad_norm": 1.0,
    "logging_steps": 50,
}


def learner(kind: str):
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
        return small_model(kind, backbone=backbone, decoder_drop_path_rate=0.0)
    backbone = adapter(hidden_size=64, num_attention_heads=4)
    changes = {"hidden_size": 64, "classifier_dropout": 0.0} if kind == "upernet" else {"hidden_dim": 64}
    return small_model(kind, backbone=backbone, **changes)


def same_crop(image, labels, seed):
    return crop(image, labels, (0,))


class FourScenes(Scenes):
    """Four in which no class is just a few pixels."""

    def __init__(self):
        super().__init__(4)
        self.chosen = [Scenes(1, first=FIRST_TRAINING_SEED + index)[0] for index in (0, 1, 4, 5)]

    def __getitem__(self, index: int):
        return self.chosen[index]


@pytest.mark.parametrize(("kind", "steps"), [("upernet", 400)])
def test_overfits_four_images(tmp_path, kind, steps):
    data = TrainingDataset(FourScenes(), same_crop)
    settings = {"per_device_train_batch_size": 4, "max_steps": steps, **SETTINGS}
    run = trainer(learner(kind), tmp_path, train_dataset=data, eval_dataset=data, **settings)
    run.train()
    assert run.evaluate()["eval_mean_iou"] >= 0.95
