# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Mask2Former under Trainer, in two processes, and in little memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_seg_mask2former import coarse_labels, fixed_points, small_head, small_model
from torch import nn
from transformers import Trainer, TrainingArguments

import segtransformers
from segtransformers import SegMask2FormerForSemanticSegmentation
from segtransformers.models.mask2former.loss_seg_mask2former import mask2former_losses, semantic_targets


class _Samples(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        labels = torch.arange(5).repeat(13)[:64].expand(64, 64)  # every image has every class
        return {"pixel_values": torch.randn(3, 64, 64, generator=generator), "labels": labels.contiguous()}


def test_gradient_accumulation_changes_nothing(tmp_path, monkeypatch):
    """The loss is a mean over masks: with transformers' Trainer this holds where every part of a batch has as many."""
    fixed_points(monkeypatch)
    weights = []
    for accumulation in (1, 2, 4):
        torch.manual_seed(0)
        model = SegMask2FormerForSemanticSegmentation(small_head())
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=str(tmp_path),
                per_device_train_batch_size=4 // accumulation,
                gradient_accumulation_steps=accumulation,
                max_steps=1,
                learning_rate=1.0,
                optim="sgd",
                max_grad_norm=0.0,
                report_to="none",
                save_strategy="no",
                use_cpu=True,
                disable_tqdm=True,
            ),
            train_dataset=_Samples(),
            eval_dataset=_Samples(),
        )
        trainer.train()
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
        assert trainer.evaluate()["eval_loss"] > 0
        assert trainer.predict(_Samples()).predictions.shape == (4, 5, 64, 64)  # the logits alone
    for other in (1, 2):
        torch.testing.assert_close(weights[other], weights[0], rtol=1e-4, atol=1e-4)


def extreme_labels(kind: str) -> torch.Tensor:
    labels = coarse_labels(2, (64, 64))
    if kind == "a class everywhere":
        labels[:] = 1
    elif kind != "several classes":
        labels[:] = 255
    if kind == "a pixel of a class":
        labels[0, 5, 5] = 2
    return labels


@pytest.mark.parametrize("kind", ["several classes", "a class everywhere", "a pixel of a class", "no class"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_at_extremes(monkeypatch, dtype, kind):
    """Class logits of 1000, and mask logits that are infinite in float16: matching and losses are in float32."""
    fixed_points(monkeypatch)
    labels, images = extreme_labels(kind), torch.randn(2, 3, 64, 64)
    losses, gradients = [], []
    for enabled in (False, True):
        torch.manual_seed(0)
        model = SegMask2FormerForSemanticSegmentation(small_head()).train()
        with torch.no_grad():
            model.class_predictor.weight.mul_(1000)
            embedder = model.transformer_module.decoder.mask_predictor.modules()
            [layer for layer in embedder if isinstance(layer, nn.Linear)][-1].weight.mul_(1e5)
        with torch.autocast("cpu", dtype, enabled=enabled):
            outputs = model(images, labels=labels)
        assert outputs.loss.dtype == torch.float32
        assert outputs.class_queries_logits.abs().max() > 500
        assert outputs.masks_queries_logits.abs().max() > torch.finfo(torch.float16).max
        (outputs.loss * 2**-12).backward()  # a scale that gradients fit float16 with
        losses.append(outputs.loss.detach())
        gradients.append(torch.cat([part.grad.flatten() for part in model.parameters() if part.grad is not None]))
    torch.testing.assert_close(losses[1], losses[0], rtol=4 * torch.finfo(dtype).eps, atol=0)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert nn.functional.cosine_similarity(*gradients, dim=0) > 0.9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_of_half_precision_are_in_float32(monkeypatch, dtype):
    """To the last digits those of the same numbers in float64, though products of masks overflow float16."""
    fixed_points(monkeypatch)
    config = small_head()
    labels = coarse_labels(2, (64, 64))
    scales = ((30, (3, 2, 7, 6)), (1000, (3, 2, 7, 20)), (1000, (2, 20, 16, 16)))
    inputs = [(scale * torch.randn(*shape)).to(dtype) for scale, shape in scales]
    found = []
    for cast in (dtype, torch.float64):
        with torch.autocast("cpu", dtype):
            parts = [part.to(cast) for part in inputs]
            targets = semantic_targets(labels, config.num_labels, 255)
            found.append(mask2former_losses(config, *parts, *targets, over_processes=False))
    for name, losses in vars(found[0]).items():
        assert losses.dtype == torch.float32 and losses.shape == (3,)
        torch.testing.assert_close(losses.double(), getattr(found[1], name), rtol=1e-5, atol=0)


PROCESSES = """
import sys
import torch
from test_seg_mask2former_training import two_processes
two_processes(sys.argv[1])
"""


def joined_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Two images for each of two processes: many masks and few in the first, one and none in the second."""
    torch.manual_seed(1)
    images, labels = torch.randn(4, 3, 64, 64).double(), coarse_labels(4, (64, 64))
    labels[1] = torch.where(labels[1] < 2, labels[1], 255)
    labels[2] = torch.where(labels[2] == 3, 3, 255)
    labels[3] = 255
    assert [len(image.unique()) for image in labels][2:] == [2, 1]
    return images, labels


def loss_after_backward(model, images, labels) -> torch.Tensor:
    loss = model(pixel_values=images, labels=labels).loss
    loss.backward()
    return loss.detach()


def two_processes(wrapper: str) -> None:
    """Run one process of the test below: compare its half of the joined batch with the whole."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as monkeypatch:
        fixed_points(monkeypatch)
        images, labels = joined_batch()
        torch.manual_seed(0)
        single = small_model().train()
        expected = loss_after_backward(single, images, labels)
        torch.manual_seed(0)
        model = small_model().train()
        if wrapper == "accelerate":
            from accelerate import Accelerator

            parallel = Accelerator(cpu=True).prepare(model)
        else:
            torch.distributed.init_process_group("gloo")
            parallel = nn.parallel.DistributedDataParallel(model)  # complains where a parameter has no gradient
        rank = torch.distributed.get_rank()
        assert torch.distributed.get_world_size() == 2
        loss = loss_after_backward(parallel, images[2 * rank :][:2], labels[2 * rank :][:2])
        torch.distributed.all_reduce(loss)
        torch.testing.assert_close(loss / 2, expected, rtol=1e-9, atol=0)
        for (name, mine), other in zip(model.named_parameters(), single.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-7, atol=1e-10, msg=name)
        # evaluation asks nobody: processes may have different numbers of batches
        if rank == 0:
            model.eval()(images, labels=labels)
        torch.distributed.destroy_process_group()


# by default, test_training_processes.py trains Mask2Former in two processes with accelerate
@pytest.mark.parametrize("wrapper", ["ddp", pytest.param("accelerate", marks=pytest.mark.slow)])
def test_two_processes_equal_one(tmp_path, wrapper):
    script = tmp_path / "script.py"
    script.write_text(PROCESSES)
    paths = [
        str(Path(__file__).parent),
        str(Path(segtransformers.__file__).parents[1]),
        os.environ.get("PYTHONPATH", ""),
    ]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    done = subprocess.run(
        [*command, wrapper],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_beit_large_at_896_needs_less_than_8_gib():
    """Peak memory of a forward pass over the weights, float32, in a process of its own."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of a process is read from /proc")
    script = Path(__file__).parent.parent / "benchmarks" / "memory.py"
    row = "mask2former_beit_adapter_large_896_80k_ade20k_ss"
    done = subprocess.run([sys.executable, script, row, "--only", "ours"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["peak_over_weights_gib"] < 8
