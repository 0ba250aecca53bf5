# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Training in two processes on this machine, through torchrun and accelerate."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_seg_mask2former import fixed_points
from test_train_command import own_data
from test_training import settled_model, still_norms, three_stages
from torch import distributed
from training_cases import KINDS, SIDE, Scenes, adapter, crop, losses, processor, trainer
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

import segtransformers
from segtransformers import PlainViTConfig, SegLinearConfig, SegLinearForSemanticSegmentation
from segtransformers.training import EvaluationDataset, TrainingDataset, freeze_trunk

SCRIPT = """
import sys
import test_training_processes as cases
getattr(cases, sys.argv[1])(sys.argv[2])
"""
SETTINGS = {
    "max_steps": 3,
    "optim": "sgd",
    "learning_rate": 0.1,
    "train_sampling_strategy": "sequential",
    "eval_strategy": "steps",
    "eval_steps": 3,
}
# Mask2Former's loss alone depends on the masks of all processes and of all accumulated batches. Tests in one process
# cover the accumulation of the others.
ACCUMULATIONS = {"upernet": (1,), "mask2former": (1, 2), "segmenter": (2,)}
# kinds of models with activation checkpointing or without. Only swin needs DDP's search for unused parameters.
UNUSED = [
    ("adapter", True),
    ("swin", False),
    ("swin", True),
    ("segmenter", False),
    ("four", True),
    ("frozen linear", False),
    ("frozen adapter", True),
]
LOGGED = ("loss", "grad_norm", "learning_rate")
ADAMW = {"optim": "adamw_torch", "learning_rate": 1e-3}


def run_of(kind: str, folder: str, per_device: int, model=None, **changes):
    model = still_norms(settled_model(kind)) if model is None else model
    # five images of two sizes: processes get different images, and Trainer pads the last batch with earlier ones
    data = EvaluationDataset(Scenes(5, sizes=((SIDE, 96), (80, 72))), processor())
    settings = {**SETTINGS, "per_device_train_batch_size": per_device, "eval_dataset": data, **changes}
    return trainer(model, folder, train_dataset=TrainingDataset(Scenes(12), crop), **settings)


def figures(run) -> dict:
    last = [entry for entry in run.state.log_history if "eval_mean_iou" in entry][-1]
    return {
        "losses": losses(run),
        "norms": [entry["grad_norm"] for entry in run.state.log_history if "grad_norm" in entry],
        "mean_iou": last["eval_mean_iou"],
        "iou": np.nan_to_num(run.class_metrics["per_category_iou"], nan=-1).tolist(),
        "counted": run.class_metrics["per_category_accuracy"].shape[0],
    }


def report(folder: str, name: str, run) -> None:
    if run.is_world_process_zero():
        (Path(folder) / f"{name}.json").write_text(json.dumps(figures(run)))


def data_parallel(folder: str) -> None:
    assert int(os.environ["WORLD_SIZE"]) == 2
    with pytest.MonkeyPatch.context() as patch:
        fixed_points(patch)
        for kind in KINDS:
            for accumulation in ACCUMULATIONS[kind]:
                run = run_of(kind, folder, 2 // accumulation, gradient_accumulation_steps=accumulation)
                run.train()
                wrapped = run.model_wrapped
                assert type(wrapped).__name__ == "DistributedDataParallel" and not wrapped.find_unused_parameters
                report(folder, f"{kind}-{accumulation}", run)
    # evaluation of fewer images than processes
    one = run_of("segmenter", folder, 2, eval_dataset=EvaluationDataset(Scenes(1), processor()), eval_strategy="no")
    one.evaluate()
    report(folder, "one image", one)
    synchronised_norms(folder)


def partly_trained(kind: str):
    """Return a model of which the loss does not depend on every parameter, or whose trunk is frozen."""
    if kind == "frozen linear":
        torch.manual_seed(0)
        sizes = {"patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        backbone = PlainViTConfig(trunk="vit_tiny_patch16_224", pretrain_image_size=SIDE, **sizes)
        model = SegLinearForSemanticSegmentation(
            SegLinearConfig(backbone_config=backbone, num_labels=10, classifier_dropout=0.0)
        )
    elif kind == "frozen adapter":  # DINOv3's, whose trunk keeps no graph
        model = settled_model("upernet", adapter(use_injectors=False, final_norm=True))
    else:
        model = settled_model("upernet") if kind == "four" else three_stages(kind)
    if kind.startswith("frozen"):
        freeze_trunk(model, torch.bfloat16)
    return still_norms(model)


def unused_parameters(folder: str) -> None:
    """Without a search for unused parameters, DDP raises at the second step."""
    for kind, checkpointing in UNUSED:
        model = partly_trained(kind)
        arguments = {"eval_strategy": "no", "activation_checkpointing": checkpointing}
        run = run_of("upernet", folder, 2, model=model, **arguments)
        assert run.args.ddp_find_unused_parameters is None  # the arguments may serve another model
        run.train()
        wrapped = run.model_wrapped
        assert type(wrapped).__name__ == "DistributedDataParallel"
        if kind not in ("adapter", "segmenter"):  # these need not build their unused parts
            assert wrapped.find_unused_parameters == (kind == "swin")
        if run.is_world_process_zero():
            (Path(folder) / f"{kind}-{checkpointing}.json").write_text(json.dumps(losses(run)))


def trained(folder: str) -> None:
    data_parallel(folder)
    unused_parameters(folder)
    distributed.destroy_process_group()


def synchronised_norms(folder: str) -> None:
    """torch synchronises batch norms on GPUs only, so this forward computes the same on the CPU."""

    def forward(self, features):
        if not self.training:
            return torch.nn.functional.batch_norm(
                features, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        channels = features.shape[1]
        sums = torch.stack(
            [features.sum((0, 2, 3)), features.square().sum((0, 2, 3)), features.new_full((channels,), 1)]
        )
        sums[2] = features.numel() / channels
        sums = distributed.nn.functional.all_reduce(sums)
        mean, square = sums[0] / sums[2], sums[1] / sums[2]
        variance = square - mean.square()
        shape = (1, -1, 1, 1)
        scaled = (features - mean.view(shape)) / (variance.view(shape) + self.eps).sqrt()
        return scaled * self.weight.view(shape) + self.bias.view(shape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.SyncBatchNorm, "forward", forward)
        parallel = torch.nn.parallel.DistributedDataParallel
        patch.setattr(parallel, "_passing_sync_batchnorm_handle", lambda *_: None)  # DDP refuses SyncBatchNorm on a CPU
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(settled_model("upernet"))
        run = run_of("upernet", folder, per_device=2, model=model, eval_strategy="no")
        run.train()
        if run.is_world_process_zero():
            (Path(folder) / "synchronised.json").write_text(json.dumps(losses(run)))


def interrupted(folder: str) -> None:
    run = run_of("segmenter", folder, per_device=2, max_steps=500, eval_strategy="no")
    try:
        run.train()
    except KeyboardInterrupt as stop:
        if run.is_world_process_zero():
            (Path(folder) / "stopped.json").write_text(json.dumps([str(stop), run.state.global_step]))


def as_if_on_gpus() -> None:
    """Tell accelerate that these processes have GPUs, because it shards on GPUs only. Tensors stay on the CPU."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    initialise = AcceleratorState.__init__

    def with_gpus(self, *args, **kwargs):
        if PartialState._shared_state.get("distributed_type") == DistributedType.MULTI_CPU:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        initialise(self, *args, **kwargs)

    AcceleratorState.__init__ = with_gpus


def sharded(folder: str) -> None:
    as_if_on_gpus()
    settings = {**ADAMW, "save_strategy": "steps", "save_steps": 2, "fsdp": True, "fsdp_config": {"version": 2}}
    for kind in ("upernet", "mask2former"):
        run_of(kind, f"{folder}/{kind}", per_device=2, **{**settings, "save_strategy": "no"}).train()
    run = run_of("segmenter", folder, per_device=2, **settings)
    run.train()
    assert run.is_fsdp_enabled and any(type(part).__name__ == "DTensor" for part in run.model.parameters())
    report(folder, "sharded", run)
    run.save_model(f"{folder}/saved")
    again = run_of("segmenter", f"{folder}/again", per_device=2, **settings)
    again.train(resume_from_checkpoint=f"{folder}/checkpoint-2")
    if run.is_world_process_zero():
        np.testing.assert_allclose(losses(again), losses(run), rtol=1e-6)
    distributed.destroy_process_group()


def launch(launcher: list[str], words: list[str], wait: bool = True):
    paths = [
        str(Path(__file__).parent),
        str(Path(segtransformers.__file__).parents[1]),
        os.environ.get("PYTHONPATH", ""),
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "1",
    }
    words = [sys.executable, "-m", *launcher, *words]
    process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if not wait:
        return process
    process.out, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors[:6000]
    return process


def launch_case(case: str, folder: Path, wait: bool = True):
    script = folder / "script.py"
    script.write_text(SCRIPT)
    return launch(TORCHRUN, [str(script), case, str(folder)], wait)


TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
# with --cpu accelerate starts several processes through MPI only
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results of two processes, started once for the two tests that compare them."""
    folder = tmp_path_factory.mktemp("two processes")
    launch_case("trained", folder)
    return folder


def test_two_processes_train_as_one_with_the_joined_batch(results, tmp_path, monkeypatch):
    """Losses, gradients and evaluation agree. Plain DDP would raise for unused parameters."""
    fixed_points(monkeypatch)
    for kind in KINDS:
        single = run_of(kind, str(tmp_path), per_device=4)
        single.train()
        expected = figures(single)
        for accumulation in ACCUMULATIONS[kind]:
            found = json.loads((results / f"{kind}-{accumulation}.json").read_text())
            np.testing.assert_allclose(found["losses"], expected["losses"], rtol=1e-5)
            np.testing.assert_allclose(found["norms"], expected["norms"], rtol=1e-4)
            np.testing.assert_allclose(found["iou"], expected["iou"], atol=2e-3)  # rounding may change a pixel or two
    one = json.loads((results / "one image.json").read_text())
    single = run_of(
        "segmenter", str(tmp_path), 2, eval_dataset=EvaluationDataset(Scenes(1), processor()), eval_strategy="no"
    )
    single.evaluate()
    assert one["iou"] == figures(single)["iou"]
    single = run_of("upernet", str(tmp_path), per_device=4, model=settled_model("upernet"), eval_strategy="no")
    single.train()
    np.testing.assert_allclose(json.loads((results / "synchronised.json").read_text()), losses(single), rtol=1e-4)


def test_two_processes_train_models_with_unused_parameters(results, tmp_path):
    for kind in dict(UNUSED):
        single = run_of("upernet", str(tmp_path), per_device=4, model=partly_trained(kind), eval_strategy="no")
        single.train()
        for checkpointing in [checkpointing for other, checkpointing in UNUSED if other == kind]:
            found = json.loads((results / f"{kind}-{checkpointing}.json").read_text())
            np.testing.assert_allclose(found, losses(single), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_command_in_two_processes_is_that_in_one(tmp_path, launcher):
    """Both runs have the same batches, augmentation and losses."""
    data = own_data(tmp_path / "data")
    settled_model("segmenter").save_pretrained(tmp_path / "tiny")
    AutoImageProcessor.from_pretrained(segtransformers.packaged_model_path()).save_pretrained(tmp_path / "tiny")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("base: segmenter_vit-t_mask_8x1_512x512_160k_ade20k\nbatch_size: 4\ndrop_path_rate: 0\n")
    words = ["--data", data, "--recipe", recipe, "--model", tmp_path / "tiny", "--crop-size", SIDE, "--use_cpu"]
    words += [
        "--max_steps",
        6,
        "--save_steps",
        6,
        "--logging_steps",
        1,
        "--learning_rate",
        0.01,
        "--prediction-images",
        1,
    ]
    found, results = [], []
    for count, started in ((1, ["segtransformers"]), (2, [*launcher, "-m", "segtransformers"])):
        output = tmp_path / str(count)
        process = launch(started, ["train", *map(str, words), "--output", str(output)])
        parts = "2 processes" if count == 2 else "accumulated 2 times"
        assert f"6 steps of 4 images (2 per device, {parts})" in process.out
        state = json.loads((output / "checkpoint-6" / "trainer_state.json").read_text())
        found.append([[entry[name] for entry in state["log_history"] if name in entry] for name in LOGGED])
        results.append(json.loads((output / "results.json").read_text()))
    assert all(len(figures) == 6 for figures in found[0]) and len(set(found[0][0])) == 6
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)
    assert results[0]["images"] == results[1]["images"] == 3
    np.testing.assert_allclose(results[1]["mean_iou"], results[0]["mean_iou"], atol=2e-3)


def test_ctrl_c_stops_both_after_the_same_step(tmp_path):
    with launch_case("interrupted", tmp_path, wait=False) as process:
        deadline = time.monotonic() + 200
        lines = []
        while sum("'loss'" in line for line in lines) < 3:
            assert time.monotonic() < deadline and process.poll() is None, lines
            lines.append(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=200)
    message, step = json.loads((tmp_path / "stopped.json").read_text())
    assert message == f"stopped after step {step}; a checkpoint is saved" and 3 <= step < 500
    AutoModelForSemanticSegmentation.from_pretrained(tmp_path / f"checkpoint-{step}")
    assert (tmp_path / f"checkpoint-{step}" / "rng_state_1.pth").exists()


@pytest.mark.slow
def test_sharded_parameters(tmp_path):
    """FSDP gives the same losses as one process, resumable checkpoints, and a model that loads without FSDP."""
    launch_case("sharded", tmp_path)
    found = json.loads((tmp_path / "sharded.json").read_text())
    single = run_of("segmenter", str(tmp_path / "single"), per_device=4, **ADAMW)
    single.train()
    expected = figures(single)
    np.testing.assert_allclose(found["losses"], expected["losses"], rtol=1e-5)
    np.testing.assert_allclose(found["iou"], expected["iou"], atol=2e-3)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "saved")
    for (name, tensor), other in zip(loaded.named_parameters(), single.model.parameters(), strict=True):
        torch.testing.assert_close(tensor, other, rtol=1e-4, atol=1e-5, msg=name)
