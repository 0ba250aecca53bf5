# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Automatic choices of a training run, over a table of data and machines."""

import dataclasses
import json
import shlex

import pytest
import timm
from test_train_command import run
from training_cases import small_model
from transformers import AutoImageProcessor

from segtransformers import packaged_model_path
from segtransformers.datasets.scenes import write_scenes
from segtransformers.training import get_recipe
from segtransformers.training.choices import PRESETS, TRUNKS, DataSummary, choose
from segtransformers.training.machine import MachineSummary, describe_machine

LAPTOP = MachineSummary(cores=8, memory=12.0, hub=True)
OFFLINE = MachineSummary(cores=2, memory=6.0)
BARE = MachineSummary(cores=2, memory=6.0, packaged=False)
CACHED = MachineSummary(cores=8, memory=12.0, cached=("vit_small_patch16_dinov3",))
OLD_GPU = MachineSummary(gpus=1, gpu_memory=4.0, precision="fp16", cores=4, hub=True)
GPU = MachineSummary(gpus=1, gpu_memory=24.0, precision="bf16", cores=16, hub=True)
SERVER = MachineSummary(gpus=8, gpu_memory=80.0, precision="bf16", cores=128, hub=True)
FEW = DataSummary(images=20, evaluation_images=2, classes=3, height=480, width=640)
SOME = DataSummary(images=600, evaluation_images=100, classes=12, height=1024, width=2048)
MANY = DataSummary(images=20000, evaluation_images=2000, classes=150, height=500, width=680)
ONE_CLASS = DataSummary(images=300, evaluation_images=0, classes=1, height=70, width=50)
FLAGS = DataSummary(images=900, evaluation_images=90, classes=1, height=512, width=512, multi_label=True)
DINOV2 = "vit_{}_patch14_dinov2"


@pytest.mark.parametrize(
    ("data", "machine", "preset", "recipe", "model", "crop", "precision"),
    [
        (FEW, LAPTOP, "fast", "dinov2-linear", DINOV2.format("small"), 224, "fp32"),
        (FEW, OFFLINE, "balanced", "small-vit-adapter", "packaged", 320, "fp32"),
        (FEW, BARE, "balanced", "small-vit-adapter", None, 320, "fp32"),
        (FEW, CACHED, "best", "dinov3-linear", "vit_small_patch16_dinov3", 480, "fp32"),
        (FEW, SERVER, "best", "dinov2-linear", DINOV2.format("large"), 480, "bf16"),
        (SOME, OLD_GPU, "balanced", "dinov2-mask-transformer", DINOV2.format("small"), 512, "fp16"),
        (SOME, GPU, "fast", "dinov2-linear", DINOV2.format("base"), 384, "bf16"),
        (SOME, GPU, "balanced", "dinov2-mask-transformer", DINOV2.format("base"), 512, "bf16"),
        (SOME, GPU, "best", "dinov2-adapter-mask2former", DINOV2.format("large"), 640, "bf16"),
        (MANY, SERVER, "balanced", "dinov2-mask-transformer", DINOV2.format("large"), 480, "bf16"),
        (FLAGS, GPU, "best", "dinov2-mask-transformer", DINOV2.format("large"), 512, "bf16"),
        (ONE_CLASS, GPU, "balanced", "dinov2-adapter-mask2former", DINOV2.format("base"), 64, "bf16"),
    ],
)
def test_table_of_data_and_machines(data, machine, preset, recipe, model, crop, precision):
    choices = choose(data, machine, preset)
    assert (choices["--recipe"], choices["--model"], choices["--crop-size"]) == (recipe, model, crop)
    assert choices["--precision"] == precision and choices["--batch-size"] == "auto"
    assert ("--keep-best" in choices) == (data.evaluation_images > 0) == ("--early-stopping" in choices)
    assert ("--model" in choices) == (model is not None)
    assert all(choice.reason for choice in choices.choices)
    get_recipe(recipe)


def test_starting_points_without_a_network_are_said():
    assert (
        "the Hub cannot be reached" in choose(FEW, OFFLINE).notes[0] and "drawn scenes" in choose(FEW, OFFLINE).notes[0]
    )
    assert "random weights" in choose(FEW, BARE).notes[0]
    assert "DINOv3 License" in choose(FEW, CACHED).notes[0]
    assert choose(FEW, LAPTOP).notes == ()


@pytest.mark.parametrize("machine", [LAPTOP, OFFLINE, GPU, SERVER])
@pytest.mark.parametrize("data", [FEW, SOME, MANY])
def test_presets_spend_more_and_more(data, machine):
    steps = [choose(data, machine, preset)["--max_steps"] for preset in PRESETS]
    crops = [choose(data, machine, preset)["--crop-size"] for preset in PRESETS]
    assert crops == sorted(crops) and all(crop % 32 == 0 for crop in crops)
    # a step of "best" on a slow machine can cost so much more that fewer of them fit its time
    assert min(steps) >= 50 and steps[0] <= 4000 and (machine is not SERVER or steps == sorted(steps))


def test_features_are_cached_only_for_a_linear_head_on_a_cpu():
    assert choose(FEW, LAPTOP)["--cache-features"] == 8
    assert "--cache-features" not in choose(MANY, LAPTOP)
    assert "--cache-features" not in choose(FEW, GPU)
    assert "--cache-features" not in choose(FEW, OFFLINE)
    without = choose(FEW, LAPTOP, "balanced", {"--cache-features": None})  # as with LoRA or a teacher
    assert "--cache-features" not in without and without["--recipe"] == "dinov2-linear"


def test_what_the_user_gave_is_kept():
    fixed = {"--model": "vit_base_patch16_dinov3", "--crop-size": 256, "--max_steps": 7, "--precision": "fp32"}
    choices = choose(SOME, GPU, "fast", fixed)
    assert choices["--recipe"] == "dinov3-linear" and not fixed.keys() & {one.option for one in choices.choices}
    assert "--max_steps" not in choose(SOME, GPU, "fast", {"--num_train_epochs": 3})
    tagged = choose(SOME, GPU, "fast", {"--model": "vit_small_patch14_dinov2.lvd142m"})
    assert tagged["--recipe"] == "dinov2-linear" and "--model" not in tagged
    published = choose(SOME, GPU, "fast", {"--model": "segmenter_vit-t_mask_8x1_512x512_160k_ade20k"})
    assert published["--recipe"] == "segmenter_vit-t_mask_8x1_512x512_160k_ade20k" and "--crop-size" not in published
    with pytest.raises(ValueError, match="no recipe is known for --model some/folder: choose one with --recipe"):
        choose(SOME, GPU, "fast", {"--model": "some/folder"})
    with pytest.raises(ValueError, match="must be one of fast, balanced, best, got 'quick'"):
        choose(SOME, GPU, "quick")


def test_the_packaged_model_learns_slowly_where_it_knows_the_classes():
    known = dataclasses.replace(FEW, are_packaged_classes=True)
    assert choose(known, OFFLINE)["--learning_rate"] == 0.0005
    for data, machine in ((FEW, OFFLINE), (known, LAPTOP), (known, BARE)):
        assert "--learning_rate" not in choose(data, machine)


def test_trunks_are_those_of_timm():
    for name, facts in TRUNKS.items():
        model = timm.create_model(name, pretrained=False) if "small" in name else None
        assert timm.get_pretrained_cfg(name).hf_hub_id
        if model is not None:
            assert (len(model.blocks), model.embed_dim, model.patch_embed.patch_size[0]) == (
                facts.layers,
                facts.channels,
                facts.patch,
            )
            assert sum(tensor.numel() for tensor in model.parameters()) / 1e6 == pytest.approx(
                facts.parameters, abs=0.6
            )


def test_this_machine_is_described(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    machine = describe_machine(TRUNKS, use_gpu=False)
    assert machine.gpus == 0 and machine.precision == "fp32" and machine.packaged and not machine.hub
    assert machine.cores >= 1 and 0.1 < machine.memory < 1e5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("data"), 20, size=(64, 96))


def test_data_and_output_are_enough_and_the_printed_command_is_the_same(folder, tmp_path, monkeypatch):
    """Offline and without cached models, as in continuous integration."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    small = ["--max_steps", "2", "--use_cpu", "--logging_steps", "1", "--disable_tqdm", "true"]
    status, output = run("--data", folder, "--output", tmp_path / "first", *small)
    assert status == 0, output
    assert "the Hub cannot be reached" in output and "every tenth image is held out" in output
    line = next(line for line in output.splitlines() if line.startswith("the same as: "))
    words = shlex.split(line.removeprefix("the same as: segtransformers train "))
    words[words.index("--output") + 1] = str(tmp_path / "second")
    assert words[words.index("--crop-size") + 1] == "64" and "--keep-best" in words and "packaged" in words
    status, output = run(*words)
    assert status == 0 and "chosen for this data" not in output
    first, second = (json.loads((tmp_path / name / "recipe.json").read_text()) for name in ("first", "second"))
    assert first == second and first["name"] == "small-vit-adapter"
    first, second = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("first", "second"))
    assert first["classes"] == second["classes"]
    page = (tmp_path / "second" / "report.html").read_text()
    assert "--crop-size 64" in page and "balloon" in page and page.count("<img ") == 6  # two images
    assert page.count("<svg") == 3
    chosen = json.loads((tmp_path / "first" / "choices.json").read_text())
    status, output = run("--data", folder, "--output", tmp_path / "first", *small[2:], "--max_steps", 3, "--resume")
    assert status == 0 and f"continued: {shlex.join(chosen)}" in output


def test_wrong_combinations_are_named_before_the_data_are_read(tmp_path):
    common = ["--data", tmp_path / "none", "--output", tmp_path / "out"]
    for words, message in (
        (["--preset", "quick"], "--preset must be one of fast, balanced, best, got quick"),
        (["--preset", "fast", "--recipe", "dinov2-linear"], "--preset and --recipe exclude each other"),
        (["--batch-size", "many"], "--batch-size must be auto or a number of images from 1 on, got many"),
        (["--batch-size", 2, "--per_device_train_batch_size", 2], "--per_device_train_batch_size exclude each other"),
        (["--batch-size", "auto", "--gradient_accumulation_steps", 2], "--gradient_accumulation_steps exclude"),
        (["--precision", "half"], "--precision must be auto, fp32, bf16 or fp16, got half"),
        (["--precision", "fp16", "--use_cpu"], "--precision fp16 needs a GPU"),
        (["--precision", "bf16", "--bf16"], "--precision and --bf16 exclude each other"),
    ):
        status, output = run(*common, *words)
        assert status == 1 and message in output, output


def test_models_without_a_known_recipe_need_one(folder, tmp_path):
    small_model("segmenter").save_pretrained(tmp_path / "model")
    AutoImageProcessor.from_pretrained(packaged_model_path()).save_pretrained(tmp_path / "model")
    status, output = run("--data", folder, "--output", tmp_path / "out", "--model", tmp_path / "model", "--use_cpu")
    assert status == 1 and "no recipe is known for --model" in output and not (tmp_path / "out").exists()


def test_the_best_checkpoint_becomes_the_model_and_the_run_ends_early(folder, tmp_path, monkeypatch):
    """A learning rate that destroys the trained model makes the first evaluation the best."""
    words = ["--data", folder, "--recipe", "small-vit-adapter", "--model", "packaged", "--crop-size", 64, "--use_cpu"]
    words += [
        "--output",
        tmp_path / "out",
        "--max_steps",
        8,
        "--eval_steps",
        1,
        "--save_steps",
        1,
        "--logging_steps",
        1,
    ]
    words += ["--warmup_steps", 4, "--learning_rate", 0.5, "--batch-size", 8, "--early-stopping", 2]
    status, output = run(*words, "--disable_tqdm", "true")
    assert status == 0, output
    scores = [float(part.split("'")[1]) for part in output.split("'eval_mean_iou': ")[1:]]
    best = max(scores)
    assert scores.index(best) + 2 < 8 and len(scores) == scores.index(best) + 3  # two worse ones follow
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["mean_iou"] == pytest.approx(best, abs=1e-3)
    state = json.loads((tmp_path / "out" / f"checkpoint-{len(scores)}" / "trainer_state.json").read_text())
    assert state["best_global_step"] == scores.index(best) + 1
    status, output = run(*words, "--eval_strategy", "no", "--output", tmp_path / "none")
    assert status == 1 and "--keep-best and --early-stopping need evaluation data" in output
