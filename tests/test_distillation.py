# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Learning the predictions of a trained model."""

import pytest
import torch
from torch.nn import functional as F
from training_cases import SIDE, losses, processor, small_model, trainer

from segtransformers.training.distillation import Distillation

SIZE = (SIDE // 4, SIDE // 4)


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, SIDE, SIDE)


def stride_4(logits: torch.Tensor) -> torch.Tensor:
    return F.interpolate(logits, size=SIZE, mode="bilinear")


def test_loss_is_the_divergence_of_the_predictions():
    teacher, student, inputs = small_model("upernet").eval(), small_model("segmenter").eval(), images()
    own, other = stride_4(student(inputs).logits), stride_4(teacher(inputs).logits)
    distillation = Distillation(teacher, student, processor(), processor(), weight=3.0, temperature=2.0)
    loss = distillation.loss(student(inputs).logits, inputs)
    targets = (other / 2).softmax(1)
    expected = (targets * (targets.log() - (own / 2).log_softmax(1))).sum(1).mean() * 3 * 4
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-7)
    assert loss > 1e-3
    torch.testing.assert_close(distillation.loss(teacher(inputs).logits, inputs), torch.zeros(()), rtol=0, atol=1e-6)
    loss.backward()
    assert any(p.grad is not None for p in student.parameters()) and all(p.grad is None for p in teacher.parameters())


def test_images_are_normalized_as_the_teacher_expects():
    teacher, student = small_model("upernet").eval(), small_model("segmenter")
    other = processor(image_mean=[0.5] * 3, image_std=[0.25] * 3, do_rescale=True)
    pixels = torch.randint(256, (1, 3, SIDE, SIDE), dtype=torch.uint8)
    own_inputs, other_inputs = (p(pixels, return_tensors="pt")["pixel_values"] for p in (processor(), other))
    assert (own_inputs - other_inputs).abs().max() > 0.1
    distillation = Distillation(teacher, student, other, processor())
    targets = distillation._targets(own_inputs, list(SIZE))
    torch.testing.assert_close(targets, stride_4(teacher(other_inputs).logits).softmax(1), rtol=1e-4, atol=1e-6)


def test_sums_over_queries_become_probabilities():
    teacher, student = small_model("mask2former").eval(), small_model("upernet")
    targets = Distillation(teacher, student, processor(), processor())._targets(images(), list(SIZE))
    torch.testing.assert_close(targets.sum(1), torch.ones(2, *SIZE))
    with pytest.raises(ValueError, match="SegMask2FormerForSemanticSegmentation predicts masks of queries"):
        Distillation(student, teacher, processor(), processor())


def test_other_classes_are_named():
    teacher, student = small_model("upernet"), small_model("segmenter")
    teacher.config.id2label = {**teacher.config.id2label, 3: "lake\n"}
    with pytest.raises(ValueError, match=r"class 3 is 'lake\\n' for the teacher"):
        Distillation(teacher, student, processor(), processor())
    with pytest.raises(ValueError, match="must be positive"):
        Distillation(teacher, student, processor(), processor(), temperature=0)


def test_trainer_adds_the_loss_in_training_only(tmp_path):
    student, teacher = small_model("upernet"), small_model("segmenter")
    plain = trainer(small_model("upernet"), tmp_path / "plain", max_steps=1)
    distillation = Distillation(teacher, student, processor(), processor(), weight=5.0)
    run = trainer(student, tmp_path / "distilled", max_steps=1, distillation=distillation)
    plain.train(), run.train()
    assert losses(run)[0] > losses(plain)[0] + 0.01
    assert not any("teacher" in name for name in run.model.state_dict())
    evaluated = run.evaluate()["eval_loss"]
    run._distillation = None
    assert run.evaluate()["eval_loss"] == evaluated
