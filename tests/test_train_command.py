# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`segtransformers train` as a user runs it, and the models that it starts from."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from model_tests import randomise
from PIL import Image
from training_cases import adapter, small_model
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, TrainingArguments
from typer.testing import CliRunner

from segtransformers import SegMask2FormerForSemanticSegmentation, ViTAdapterBackbone, packaged_model_path
from segtransformers.cli import app
from segtransformers.cli.common import UserError
from segtransformers.cli.train_arguments import parse_training_arguments
from segtransformers.datasets.scenes import draw_scene
from segtransformers.training import get_recipe, training_arguments
from segtransformers.training.arguments import fitted_batch
from segtransformers.training.starting_points import class_parameters, starting_model

RECIPE = "upernet_deit_adapter_tiny_512_160k_ade20k"
OWN_CLASSES = ["nature", "built", "moving"]
MERGED = np.array([0, 0, 0, 0, 1, 1, 1, 0, 2, 2], np.uint8)  # the drawn classes -> OWN_CLASSES
PAGE = (Path(__file__).parents[1] / "docs" / "fine_tuning.md").read_text(encoding="utf-8")
COMMAND = shlex.split(re.findall(r"^segtransformers train .*--max_steps 40 .*$", PAGE, re.MULTILINE)[0])


def own_data(folder: Path, train: int = 8, validation: int = 3) -> Path:
    """Write a data folder of drawn scenes with three classes of its own."""
    seed = 0
    for part, count in (("train", train), ("validation", validation)):
        for index in range(count):
            image, labels = draw_scene(seed, (96, 128))
            for kind, pixels in (("images", image), ("masks", MERGED[labels])):
                path = folder / kind / part / f"{index:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
            seed += 1
    (folder / "classes.txt").write_text("\n".join(OWN_CLASSES))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return own_data(tmp_path_factory.mktemp("data") / "my-data")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The folder of a small model of the drawn classes with its image processor."""
    folder = tmp_path_factory.mktemp("tiny")
    small_model("segmenter").save_pretrained(folder)
    AutoImageProcessor.from_pretrained(packaged_model_path()).save_pretrained(folder)
    return folder


def run(*words) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["train", *map(str, words)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def options(data, output, model, *more) -> list:
    small = ["--crop-size", 64, "--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 1]
    return ["--data", data, "--recipe", RECIPE, "--model", model, "--output", output, *small, "--use_cpu", *more]


@pytest.mark.slow
def test_readme_command_fine_tunes_the_packaged_model(data):
    """The model gets other classes, and its folder works in every other command."""
    words = [sys.executable, "-m", *COMMAND]
    done = subprocess.run(words, cwd=data.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "start at random: decode_head.classifier.weight, decode_head.classifier.bias" in done.stderr
    output = data.parent / COMMAND[COMMAND.index("--output") + 1]
    model = AutoModelForSemanticSegmentation.from_pretrained(output)
    assert [model.config.id2label[index] for index in range(3)] == OWN_CLASSES
    results = json.loads((output / "results.json").read_text())
    assert [entry["name"] for entry in results["classes"]] == OWN_CLASSES and results["images"] == 3
    assert results["classes"][0]["iou"] > 0.6 and results["classes"][1]["iou"] > 0.2  # at random: 0.3 and 0.1
    assert json.loads((output / "recipe.json").read_text())["name"] == RECIPE
    assert list((output / "predictions").glob("step-*-0.png"))
    image = data / "images" / "validation" / "000.png"
    target = data.parent / "segmented.png"
    done = CliRunner().invoke(app, ["segment", str(image), "--model", str(output), "--output", str(target)])
    assert done.exit_code == 0 and "nature" in done.output and target.exists()
    again = data.parent / "again.json"
    done = CliRunner().invoke(
        app, ["evaluate", "--model", str(output), "--data", str(data), "--output", str(again), "--device", "cpu"]
    )
    assert done.exit_code == 0 and json.loads(again.read_text())["classes"] == results["classes"]


def test_resumes_an_interrupted_run(data, tiny, tmp_path):
    common = ["--max_steps", 4, "--save_steps", 2, "--logging_steps", 1]
    status, _ = run(*options(data, tmp_path / "whole", tiny, *common))
    assert status == 0
    status, output = run(*options(data, tmp_path / "whole", tiny, *common))
    assert status == 1 and "holds checkpoints of another run: continue it with --resume" in output
    parts = options(data, tmp_path / "parts", tiny, *common)
    words = [sys.executable, "-m", "segtransformers", "train", *map(str, parts), "--logging_steps", "1"]
    # the same number of threads, because the last bits depend on it
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, text=True, env=environment, **pipes) as process:
        deadline = time.monotonic() + 120
        while process.poll() is None and not list((tmp_path / "parts").glob("checkpoint-2/trainer_state.json")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and "--resume continues from the last checkpoint" in errors
    status, _ = run(*parts, "--resume")
    assert status == 0
    whole, other = (
        json.loads((tmp_path / name / "checkpoint-4" / "trainer_state.json").read_text()) for name in ("whole", "parts")
    )
    losses = [[entry["loss"] for entry in state["log_history"] if "loss" in entry] for state in (whole, other)]
    assert len(losses[0]) == 4 and losses[0] == losses[1]


def test_a_bad_validation_sample_ends_the_run_before_step_1(tiny, tmp_path):
    folder = own_data(tmp_path / "data", 2, 3)
    masks = folder / "masks/validation"
    Image.fromarray(np.full((96, 128), 9, np.uint8)).save(masks / "000.png")
    Image.new("L", (5, 5)).save(masks / "001.png")
    (folder / "images/validation/002.png").write_bytes(b"broken")
    status, output = run(*options(folder, tmp_path / "out", tiny, "--max_steps", 2))
    assert status == 1 and "3 samples cannot be used" in output and "'loss'" not in output
    assert all(name in output for name in ("000.png", "001.png", "002.png")) and not (tmp_path / "out").exists()
    status, output = run(*options(folder, tmp_path / "out", tiny, "--max_steps", 2, "--eval-split", "train"))
    assert status == 0, output


def test_columns_of_data_on_disk(tiny, tmp_path):
    import datasets

    folder = own_data(tmp_path / "data", 2, 1)
    features = datasets.Features({"photo": datasets.Image(), "gt": datasets.Image()})
    parts = {}
    for part in ("train", "validation"):
        images, masks = (
            [str(path) for path in sorted((folder / kind / part).iterdir())] for kind in ("images", "masks")
        )
        parts[part] = datasets.Dataset.from_dict({"photo": images, "gt": masks}, features)
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved/classes.txt").write_text("\n".join(OWN_CLASSES))
    words = options(tmp_path / "saved", tmp_path / "out", tiny, "--max_steps", 1, "--prediction-images", 0)
    status, output = run(*words, "--columns", "photo,gt")
    assert status == 0 and (tmp_path / "out/results.json").exists(), output


def test_a_new_classifier_is_said_in_one_line(data, tmp_path):
    small_model("upernet").save_pretrained(tmp_path / "model")
    shutil.copy(packaged_model_path() / "preprocessor_config.json", tmp_path / "model")
    code = "from segtransformers.training import get_recipe, starting_model\n"
    code += f"starting_model({str(tmp_path / 'model')!r}, get_recipe({RECIPE!r}), dict(enumerate('abc')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if "MISMATCH" in line or "REPORT" in line or "random" in line]
    assert done.returncode == 0 and len(said) == 1 and "start at random: decode_head.classifier" in said[0], done.stderr


def test_limit_lora_and_predictions_in_tensorboard(data, tiny, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    status, output = run(
        *options(data, tmp_path, tiny, "--limit", 2, "--max_steps", 2, "--lora-rank", 2, "--prediction-images", 1),
        *("--report_to", "tensorboard", "--eval_steps", 2),
    )
    assert status == 0 and "2 images and 2 images, 3 classes" in output
    (events,) = (tmp_path / "runs").rglob("events.*")
    log = EventAccumulator(str(events)).Reload()
    assert log.Tags()["images"] == ["predictions/0"] and "eval/mean_iou" in log.Tags()["scalars"]
    names = AutoModelForSemanticSegmentation.from_pretrained(tmp_path).state_dict().keys()
    assert names == small_model("segmenter").state_dict().keys()


@pytest.mark.slow  # half a minute
def test_predictions_in_trackio(data, tiny, tmp_path):
    """In a process of its own, because trackio reads its folder once."""
    words = options(data, tmp_path / "out", tiny, "--max_steps", 2, "--eval_steps", 2, "--prediction-images", 1)
    words += ["--report_to", "trackio", "--project", "drawn", "--run_name", "first"]
    subprocess.run(
        [sys.executable, "-m", "segtransformers", "train", *map(str, words)],
        env={**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    (drawing,) = (tmp_path / "trackio" / "media" / "drawn").rglob("*.png")
    width, height = Image.open(drawing).size  # image, label map and prediction, enlarged, with titles and a legend
    assert width > 3 * 2 * 128 and height == 2 * 96 + 28
    with contextlib.closing(sqlite3.connect(tmp_path / "trackio" / "drawn.db")) as store:
        logged = str(store.execute("SELECT * FROM metrics").fetchall())
    assert all(f'"{name}"' in logged for name in ("train/loss", "eval/mean_iou", "predictions/0"))


def test_own_recipe_and_data_without_parts(data, tiny, tmp_path):
    flat = tmp_path / "flat"
    for kind in ("images", "masks"):
        (flat / kind).mkdir(parents=True)
        for path in (data / kind / "train").iterdir():
            (flat / kind / path.name).write_bytes(path.read_bytes())
    (flat / "classes.txt").write_text("\n".join(OWN_CLASSES))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"base: {RECIPE}\nbatch_size: 4\nschedule: {{steps: 2, warmup_steps: 0}}\n")
    status, output = run(
        *("--data", flat, "--recipe", recipe, "--model", tiny, "--output", tmp_path / "out", "--crop-size", 64),
        "--use_cpu",
    )
    assert status == 0, output
    assert "every tenth image is held out for evaluation, 1 of 8" in output
    assert "2 steps of 4 images (2 per device, accumulated 2 times)" in output


def test_losses_and_class_weights_from_the_data(data, tiny, tmp_path):
    words = ["--losses", "cross_entropy,dice:3", "--class-weights", "auto", "--ema", 0.9, "--max_steps", 1]
    words += ["--sampling", "rare_class"]
    status, output = run(*options(data, tmp_path / "out", tiny, *words))
    assert status == 0, output
    (line,) = [line for line in output.splitlines() if line.startswith("class weights: ")]
    config = json.loads((tmp_path / "out/config.json").read_text())
    weights = config["losses"][0]["class_weights"]
    assert config["losses"] == [
        {"name": "cross_entropy", "class_weights": weights},
        {"name": "dice", "weight": 3.0, "class_weights": weights},
    ]
    assert sorted(OWN_CLASSES, key=line.index) == [OWN_CLASSES[index] for index in np.argsort(weights)]
    counts = np.zeros(3)
    for path in (data / "masks/train").iterdir():
        counts += np.bincount(np.asarray(Image.open(path)).ravel(), minlength=3)
    np.testing.assert_allclose(weights, np.sqrt(counts.sum() / (3 * counts)), rtol=1e-5)
    recipe = json.loads((tmp_path / "out/recipe.json").read_text())
    assert recipe["class_weights"] == "auto" and recipe["weight_average"]["decay"] == 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--recipe", "upernet_deit"], "'upernet_deit' is not a published recipe"),
        (["--recipe", "mine.yaml"], "the recipe file mine.yaml does not exist"),
        (["--data", "nowhere/at/all"], "the folder nowhere/at/all does not exist"),
        (["--model", "nowhere/at/all"], "cannot load the model nowhere/at/all: there is no such folder"),
        (["--model", "nowhere"], "cannot load the model nowhere: there is no such folder"),
        (["--max_steps", 0], "--max_steps must not be 0"),
        (["--max_step", 3], "--max_step is not an option; did you mean --max_steps?"),
        (["--max_steps", "few"], "argument --max_steps/--max-steps: invalid int value: 'few'"),
        (["--output_dir", "x"], "--output_dir is not an option of this command: use --output"),
        (["--crop-size", "big"], "--crop-size must be positive numbers"),
        (["--gradient_accumulation_steps", 3], "cannot be divided among 1 processes with 3 accumulation steps"),
        (["--sampling", "often"], "sampling.method must be rare_class or repeat_factor, got 'often'"),
        (["--ema", 2], "weight_average.decay must be a number from 0 to 1, got 2"),
        (["--losses", "dize"], "a loss needs a name of cross_entropy, binary_cross_entropy"),
        (["--losses", "dice:x"], "'dice:x' is not a loss with a weight, such as dice:3"),
        (["--class-weights", "often"], "class weights must be one of auto, inverse_square_root"),
        (["--classes", "gone.txt"], "--classes gone.txt: expected an existing file or a number"),
    ],
)
def test_mistakes_are_one_line(data, tiny, tmp_path, change, message):
    words = ["--data", data, "--recipe", RECIPE, "--model", tiny, "--output", tmp_path / "out", *change, "--use_cpu"]
    status, output = run(*words)
    assert status == 1 and output.startswith("error: ") and message in output and output.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ["--metric_for_best_model", "miou"],
            "metric_for_best_model must be one of mean_iou, mean_accuracy, mean_dice",
        ),
        (["--label_smoothing_factor", 0.1], "label_smoothing_factor must be 0 for label maps, got 0.1"),
        (["--per_device_train_batch_size", 0], "per_device_train_batch_size must be at least 1, got 0"),
        (["--gradient_accumulation_steps", 0], "gradient_accumulation_steps must be at least 1, got 0"),
        (["--class-weights", "1,2"], "class_weights has 2 numbers, but the model has 3 classes"),
        (["--report_to", "wandb"], "WandbCallback requires wandb to be installed"),
        (["--trunk-weights", "gone.pth"], "the file gone.pth does not exist"),
        (["--push_to_hub"], "nobody is logged in: run `hf auth login`"),
    ],
)
def test_errors_of_a_later_step_end_the_command_first(data, tiny, tmp_path, monkeypatch, change, message):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: False)
    monkeypatch.setattr("segtransformers.hub.publishing.get_token", lambda: None)
    status, output = run(*options(data, tmp_path / "out", tiny, "--max_steps", 1, *change))
    assert status == 1 and "1 steps" not in output
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert message in line


def test_one_class_alone_is_for_mask2former(tmp_path):
    """Other models learn from differences between classes."""
    data = own_data(tmp_path / "data", train=2, validation=1)
    (data / "classes.txt").write_text("nature")
    words = ["--label-map", "0:0,1:255,2:255", "--max_steps", 1, "--prediction-images", 0]
    for kind in ("upernet", "mask2former"):
        folder = tmp_path / kind
        small_model(kind).save_pretrained(folder)
        AutoImageProcessor.from_pretrained(packaged_model_path()).save_pretrained(folder)
        status, output = run(*options(data, tmp_path / f"{kind}-trained", folder, *words))
        if kind == "upernet":
            assert status == 1 and "the data has one class, but this model needs at least two" in output
    assert status == 0 and json.loads((tmp_path / "mask2former-trained" / "results.json").read_text())["images"] == 1


@pytest.mark.parametrize("kind", ["upernet", "mask2former"])
def test_small_grey_images_and_ignored_labels(tmp_path, kind):
    """Images are smaller than the crop, and all labels are 255: the loss is finite, and the mean IoU is undefined."""
    data = own_data(tmp_path / "data", train=2, validation=1)
    for path in data.rglob("*.png"):
        grey = Image.open(path).convert("L").resize((40, 50))
        (grey if "images" in path.parts else grey.point(lambda _: 255)).save(path)
    folder = tmp_path / kind
    small_model(kind).save_pretrained(folder)
    AutoImageProcessor.from_pretrained(packaged_model_path()).save_pretrained(folder)
    steps = ["--max_steps", 2, "--logging_steps", 1, "--save_steps", 2]
    status, output = run(*options(data, tmp_path / "out", folder, *steps))
    assert status == 0, output
    state = json.loads((tmp_path / "out" / "checkpoint-2" / "trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert len(losses) == 2 and np.isfinite(losses).all() and (losses[0] > 0) == (kind == "mask2former")
    assert json.loads((tmp_path / "out" / "results.json").read_text())["mean_iou"] is None


def test_resumes_the_last_complete_checkpoint_of_the_same_model(data, tiny, tmp_path):
    words = options(
        data, tmp_path / "out", tiny, "--save_steps", 2, "--logging_steps", 1, "--prediction-images", 0, "--resume"
    )
    assert run(*words, "--max_steps", 2)[0] == 0  # without a checkpoint, the run starts from the beginning
    broken = tmp_path / "out" / "checkpoint-4"
    shutil.copytree(tmp_path / "out" / "checkpoint-2", broken)
    (broken / "trainer_state.json").unlink()  # as if the run was killed while writing it
    assert run(*words, "--max_steps", 4)[0] == 0
    state = json.loads((broken / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "loss" in entry] == [1, 2, 3, 4]
    status, output = run(*words, "--max_steps", 6, "--lora-rank", 2)
    assert status == 1 and "checkpoint-4 was trained with other parameters" in output
    words[words.index(tiny)] = "packaged"
    status, output = run(*words, "--max_steps", 6)
    assert status == 1 and "checkpoint-4 has another model or other classes" in output


def test_upernet_needs_two_images_per_device(data, tmp_path):
    words = options(data, tmp_path / "out", "packaged", "--per_device_train_batch_size", 1, "--max_steps", 1)
    status, output = run(*words)
    assert status == 1 and output.endswith("at least two images per device: --per_device_train_batch_size 2\n"), output


def test_damaged_image_in_a_worker_is_one_line(data, tiny, tmp_path):
    damaged = own_data(tmp_path / "damaged", train=2, validation=1)
    (damaged / "images" / "train" / "001.png").write_bytes(b"no image")
    words = options(damaged, tmp_path / "out", tiny, "--max_steps", 2, "--dataloader_num_workers", 1)
    status, output = run(*words)
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert status == 1 and "001.png" in line and "Traceback" not in output


def test_training_arguments_follow_the_recipe(tmp_path):
    recipe = get_recipe(RECIPE)
    arguments = training_arguments(recipe, tmp_path, use_cpu=True)
    assert (arguments.learning_rate, arguments.weight_decay, arguments.max_steps) == (1.2e-4, 0.01, 160000)
    assert (arguments.warmup_steps, arguments.max_grad_norm) == (1500, 0)
    assert arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps == 16
    short = training_arguments(recipe, tmp_path, use_cpu=True, max_steps=100, learning_rate=1.0)
    assert (short.max_steps, short.warmup_steps, short.learning_rate) == (100, 10, 1.0)
    sgd = training_arguments(get_recipe("segmenter_vit-b_mask_8x1_512x512_160k_ade20k"), tmp_path, use_cpu=True)
    assert sgd.optim == "sgd" and sgd.optim_args == "momentum=0.9"
    assert parse_training_arguments(["--max-steps", "5", "--bf16", "--eval_steps=2"]) == {
        "max_steps": 5,
        "bf16": True,
        "eval_steps": 2.0,
    }
    assert (arguments.eval_steps, arguments.save_steps, short.eval_steps, short.logging_steps) == (16000, 16000, 50, 10)
    trial = training_arguments(recipe, tmp_path, use_cpu=True, max_steps=40)
    assert (trial.eval_steps, trial.save_steps) == (40, 40)


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("--learnin_rate", "did you mean --learning_rate"),
        ("--lr", "use --learning_rate"),
        ("--epochs", "use --num_train_epochs"),
        ("--batch_size", "use --batch-size"),
        ("--device", "--use_cpu true keeps to the CPU"),
        ("--colum", "did you mean --columns"),
    ],
)
def test_hints_for_wrong_options(option, hint):
    with pytest.raises(UserError, match=hint):
        parse_training_arguments([option, "1"])


def test_one_process_with_several_gpus_sees_the_same_batch(tmp_path, monkeypatch):
    """Without torchrun, Trainer distributes the images of one process over the GPUs."""
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    arguments = training_arguments(get_recipe(RECIPE), tmp_path, use_cpu=True)
    assert arguments.train_batch_size == 4 and arguments.gradient_accumulation_steps == 4


@pytest.mark.parametrize(
    ("batch", "processes", "fixed", "expected"),
    [
        (16, 1, {}, (2, 8)),
        (16, 8, {}, (2, 1)),
        (16, 16, {}, (1, 1)),
        (8, 1, {"per_device": 4}, (4, 2)),
        (16, 2, {"accumulation": 2}, (4, 2)),
        (16, 3, {"per_device": 2, "accumulation": 1}, (2, 1)),
    ],
)
def test_batch_is_fitted(batch, processes, fixed, expected):
    assert fitted_batch(batch, processes, **fixed) == expected


def test_batch_that_cannot_be_fitted():
    with pytest.raises(ValueError, match="batch of 16 images cannot be divided among 3 processes: choose both"):
        fitted_batch(16, 3)
    with pytest.raises(ValueError, match="among 2 processes of 3 images"):
        fitted_batch(16, 2, per_device=3)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("upernet", ["decode_head.classifier", "auxiliary_head.classifier"]),
        ("mask2former", ["class_predictor"]),
        ("segmenter", ["decode_head.class_embeddings", "decode_head.mask_norm"]),
    ],
)
def test_other_classes_renew_the_classifier_alone(tmp_path, kind, expected):
    """With `from_pretrained`, and with the command even if the shape of the old classifier fits."""
    model = randomise(small_model(kind))
    model.save_pretrained(tmp_path)
    AutoImageProcessor.from_pretrained(packaged_model_path()).save_pretrained(tmp_path)
    before = model.state_dict()
    names = class_parameters(model.config)
    assert names and all(name.startswith(tuple(expected)) for name in names)
    classes = {index: f"class {index}" for index in range(3)}
    fewer, info = AutoModelForSemanticSegmentation.from_pretrained(
        tmp_path,
        id2label=classes,
        label2id={name: index for index, name in classes.items()},
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    assert {key[0] for key in info["mismatched_keys"]} == set(names) and not info["missing_keys"]
    others, _ = starting_model(str(tmp_path), get_recipe(RECIPE), {index: f"class {index}" for index in range(10)})
    same, _ = starting_model(str(tmp_path), get_recipe(RECIPE), model.config.id2label)
    for name, tensor in before.items():
        assert torch.equal(same.state_dict()[name], tensor)
        for changed in (fewer, others):
            assert torch.equal(changed.state_dict()[name], tensor) != (name in names), name
    images, labels = torch.randn(2, 3, 64, 64), torch.randint(3, (2, 64, 64))
    fewer.train()(images, labels=labels).loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in fewer.parameters())
    with pytest.raises(ValueError, match=r"values \[.*3.*num_labels=3"):
        fewer(images, labels=torch.full_like(labels, 3))


def test_starts_from_a_backbone_or_the_recipe_alone(tmp_path):
    classes = dict(enumerate(OWN_CLASSES))
    backbone = ViTAdapterBackbone(adapter())
    backbone.save_pretrained(tmp_path)
    recipe = get_recipe("mask2former_beit_adapter_base_512_40k_cocostuff10k_ss")
    model, processor = starting_model(str(tmp_path), recipe, classes, [[0, 0, 0]] * 3, crop_size=(128, 128))
    assert type(model) is SegMask2FormerForSemanticSegmentation and model.config.num_labels == 3
    assert model.config.backbone_config.drop_path_rate == recipe.drop_path_rate and model.training
    assert model.config.palette == [[0, 0, 0]] * 3
    assert dict(processor.size)["shortest_edge"] == 128
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], tensor), name
    recipe = get_recipe(RECIPE)
    model, processor = starting_model(None, recipe, classes)
    assert model.config.backbone_config.trunk.startswith(("deit_tiny", "vit_tiny")) and model.config.num_labels == 3
    assert model.config.window_size == [512, 512] and dict(processor.size)["shortest_edge"] == 512


def test_starts_from_a_trunk_of_timm(tmp_path):
    """With weights from a file, and without a network."""
    import timm

    torch.manual_seed(0)
    source = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    torch.save({"model": source.state_dict()}, tmp_path / "trunk.pth")
    model, _ = starting_model(
        "vit_tiny_patch16_224",
        get_recipe(RECIPE),
        dict(enumerate(OWN_CLASSES)),
        crop_size=(64, 64),
        trunk_weights=tmp_path / "trunk.pth",
    )
    assert type(model.backbone) is ViTAdapterBackbone
    assert torch.equal(model.backbone.trunk.blocks[3].attn.qkv.weight, source.blocks[3].attn.qkv.weight)
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        with pytest.raises(Exception, match=r"(?i)offline|connect|cannot find|not found|internet"):
            starting_model("vit_tiny_patch16_224", get_recipe(RECIPE), dict(enumerate(OWN_CLASSES)))
