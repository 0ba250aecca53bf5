# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Training with channels last on a CPU."""

import copy

import pytest
import torch
from torch import nn
from training_cases import KINDS, SIDE, small_model, trainer
from transformers import TrainerCallback

from segtransformers.training.memory_format import channels_last_convolutions


def has_channels_last(model) -> bool:
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]
    full = [weight for weight in weights if weight.shape[1] > 1 and weight.shape[2] > 1]  # else both formats are equal
    return all(
        weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous() for weight in full
    )


@pytest.mark.parametrize("align_corners", [False, True])
def test_gradients_are_those_of_channels_first(align_corners):
    model = small_model("upernet").double().train()
    model.config.align_corners = model.decode_head.align_corners = align_corners
    model.apply(lambda module: setattr(module, "p", 0.0) if isinstance(module, nn.Dropout2d) else None)
    other = copy.deepcopy(model)
    images, labels = torch.randn(2, 3, SIDE, SIDE).double(), torch.randint(10, (2, SIDE, SIDE))
    torch.manual_seed(0)
    outputs = model(images, labels=labels)
    outputs.loss.backward()
    torch.manual_seed(0)
    with channels_last_convolutions(other, torch.device("cpu")) as chosen:
        assert chosen and has_channels_last(other)
        last = other(images.contiguous(memory_format=torch.channels_last), labels=labels)
        last.loss.backward()
    assert not has_channels_last(other)
    torch.testing.assert_close(last.logits, outputs.logits, rtol=1e-9, atol=1e-9)
    assert last.logits.is_contiguous()
    for (name, parameter), twin in zip(model.named_parameters(), other.parameters(), strict=True):
        if parameter.grad is not None:
            torch.testing.assert_close(twin.grad, parameter.grad, rtol=1e-7, atol=1e-10, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_trainer_uses_it_in_training(tmp_path, kind):
    formats = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            formats.append(has_channels_last(model))

    run = trainer(small_model(kind), tmp_path, max_steps=1, callbacks=[Watch()])
    run.train()
    assert formats == [kind != "mask2former"]
    assert all(parameter.is_contiguous() for parameter in run.model.parameters())
