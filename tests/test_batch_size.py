# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Automatic batch sizes, precision flags, and the progress of a run."""

import dataclasses

import pytest
import torch
from training_cases import small_model
from transformers import TrainerControl, TrainerState, TrainingArguments

from segtransformers.training import batch_size as module
from segtransformers.training import get_recipe, progress, training_arguments
from segtransformers.training.batch_size import batch_sizes, first_that_fits, fit_batch, step_memory
from segtransformers.training.progress import Pace, advice_on_losses

RECIPE = dataclasses.replace(get_recipe("small-vit-adapter"), batch_size=16)


def batch(count: int) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(count, 3, 64, 64), "labels": torch.randint(3, (count, 64, 64))}


def test_batch_sizes_are_divisors_and_at_least_halved():
    assert batch_sizes(16) == [16, 8, 4, 2, 1]
    assert batch_sizes(16, 2) == [16, 8, 4, 2]
    assert batch_sizes(12, 2) == [12, 6, 3]
    assert batch_sizes(7) == [7, 1]
    assert batch_sizes(1) == [1]


def test_checkpointing_is_the_last_resort():
    tried = []

    def fits(size: int, checkpointing: bool) -> bool:
        tried.append((size, checkpointing))
        return size * (0.4 if checkpointing else 1.0) < 1.7

    candidates = [(size, flag) for flag in (False, True) for size in (8, 4, 2)]
    assert candidates[first_that_fits(candidates, fits)] == (4, True)
    assert tried == [(8, False), (4, False), (2, False), (8, True), (4, True)]
    assert first_that_fits(candidates, lambda *_: False) is None


def test_memory_of_a_step_grows_with_images_and_leaves_the_model_alone():
    torch.manual_seed(0)
    network = small_model("upernet")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    images = batch(2)
    seed = torch.random.get_rng_state()
    fixed, per_image = step_memory(network, images)
    assert torch.equal(torch.random.get_rng_state(), seed)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert step_memory(network, batch(4)) == pytest.approx((fixed, per_image), rel=0.05)
    assert fixed == 3 * sum(parameter.nbytes for parameter in network.parameters())
    assert per_image > 3 * 64 * 64 * 4  # more than the image itself
    network.requires_grad_(False)
    network.decode_head.classifier.requires_grad_(True)
    frozen, fewer = step_memory(network, batch(2))
    assert frozen < fixed / 10 and fewer < per_image / 2


@pytest.mark.parametrize(("images", "expected"), [(100, (16, 1, False)), (5, (4, 4, False)), (0.5, (16, 1, True))])
def test_the_recipes_batch_stays(monkeypatch, tmp_path, images, expected):
    """The free memory is that of a model with so many images."""
    network = small_model("upernet")
    fixed, per_image = step_memory(network, batch(2))
    free = (fixed + images * per_image) / module.CPU_SHARE
    monkeypatch.setattr(module, "free_memory", lambda: free)
    arguments = training_arguments(RECIPE, tmp_path, use_cpu=True)
    fitted = fit_batch(network, RECIPE, arguments, batch)
    assert (fitted.per_device, fitted.accumulation, fitted.checkpointing) == expected
    assert fitted.per_device * fitted.accumulation == 16
    assert "\n" not in fitted.line() and ("do not fit" in fitted.line()) == (images != 100)


@pytest.mark.gpu
def test_a_batch_that_fits_the_gpu_is_found(tmp_path):
    network = small_model("upernet")
    fitted = fit_batch(network, RECIPE, training_arguments(RECIPE, tmp_path), batch)
    assert fitted.per_device == 16 and next(network.parameters()).device.type == "cpu"

    def large(count: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.randn(count, 3, 4096, 4096), "labels": torch.zeros(count, 4096, 4096).long()}

    with pytest.raises(torch.OutOfMemoryError):
        fit_batch(network, dataclasses.replace(RECIPE, batch_size=1024), training_arguments(RECIPE, tmp_path), large)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_pace_leaves_evaluations_out_of_images_per_second_but_not_of_the_time_left():
    clock = Clock()
    pace = Pace(clock)
    with pace.loading():
        clock.now = 2.0
    clock.now = 10.0
    first = {"images_per_second": 4.0, "waiting_for_data": 0.2, "minutes_left": round(40 / 60, 1)}
    assert pace.figures(5, 25, 8) == first
    pace.pause(6.0)
    clock.now = 26.0
    second = {"images_per_second": 4.0, "waiting_for_data": 0.0, "minutes_left": round(2.6 * 15 / 60, 1)}
    assert pace.figures(10, 25, 8) == second
    pace.start(100)  # a resumed run
    assert pace.figures(100, 200, 8) == {}


@pytest.mark.parametrize(("loading", "is_named"), [(4.0, False), (8.0, True)])
def test_slow_data_loading_is_named_once(tmp_path, monkeypatch, loading, is_named):
    """20 steps of 20 seconds each, with an evaluation of 100 seconds."""
    clock = Clock()
    pace = Pace(clock)
    found: list[str] = []
    monkeypatch.setattr(progress.logger, "warning", found.append)
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, dataloader_num_workers=3)
    for step in range(1, 21):
        with pace.loading():
            clock.now += loading
        clock.now += 20 - loading
        if step == 10:
            clock.now += 100
            pace.pause(100)
        pace.on_log(arguments, TrainerState(global_step=step), TrainerControl())
    assert len(found) == is_named
    if is_named:
        assert "40% of the time" in found[0] and "--dataloader_num_workers (now 3" in found[0]


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([1.0] * 7, None),  # too early to say
        ([2.0, 1.8, 1.5, 1.3, 1.1, 1.0, 0.9, 0.9, 0.8], None),
        ([1.0, 1.1, 0.9, 1.0, 1.05, 0.98, 1.0, 1.02, 1.0], "does not fall"),
        ([2.0, 1.0, 0.4, 0.3, 0.3, 0.4, 1.5, 3.0, 6.0], "has risen from"),
    ],
)
def test_losses_that_do_not_fall_are_named(losses, expected):
    advice = advice_on_losses(losses, 0.003)
    assert advice is None if expected is None else expected in advice and "now 0.003" in advice


def test_a_flat_loss_is_no_fault_while_the_evaluations_improve():
    assert advice_on_losses([1.0] * 9, 0.003, [0.5, 0.6]) is None
    assert "does not fall" in advice_on_losses([1.0] * 9, 0.003, [0.6, 0.6])
