# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
import json

import pytest
import torch
from reference_cases import FOLDER
from safetensors.torch import load_file, save_file
from torch import nn
from training_cases import small_model, trainer
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
from typer.testing import CliRunner

from segtransformers import packaged_model_path
from segtransformers.cli import app
from segtransformers.training import Recipe
from segtransformers.training.recipe_settings import WeightAverageSettings
from segtransformers.training.weight_average import WeightAverage

TENSORS = load_file(FOLDER / "losses" / "tensors.safetensors")
STEPS = 10


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ema.torch.ema_0.9", {"decay": 0.9, "warmup": False}),
        ("ema.torch.ema_0.999", {"decay": 0.999, "warmup": False}),
        ("ema.mmengine.ema_0.1", {"decay": 0.9, "warmup": False}),
        ("ema.torch.swa", {"decay": 1.0}),
        ("ema.mmcv.default", {"decay": 0.9998, "definition": "mmcv"}),
        ("ema.mmcv.momentum_0.5_warm_up_10", {"decay": 0.5, "warmup_steps": 10, "definition": "mmcv"}),
        (
            "ema.mmcv.momentum_0.5_warm_up_10_interval_2",
            {"decay": 0.5, "warmup_steps": 10, "interval": 2, "definition": "mmcv"},
        ),
        ("ema.mmcv.momentum_0.1_warm_up_1", {"decay": 0.9, "warmup_steps": 1, "definition": "mmcv"}),
        (
            "ema.mmcv.momentum_0.1_interval_3_warm_up_1",
            {"decay": 0.9, "interval": 3, "warmup_steps": 1, "definition": "mmcv"},
        ),
    ],
)
def test_averages_are_those_of_the_recorded_runs(name, settings):
    values, expected = TENSORS["ema.parameter"].double(), TENSORS[name].double()
    model = nn.Module()
    model.weight = nn.Parameter(values[0].clone())
    average = WeightAverage(WeightAverageSettings(**settings))
    average.start(model)
    for step in range(1, STEPS + 1):
        model.weight.data.copy_(values[step])
        average.update(step)
        with average.applied():
            torch.testing.assert_close(model.weight.data, expected[step], rtol=1e-6, atol=1e-7)
        assert torch.equal(model.weight.data, values[step])


def test_interval_and_warmup():
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(WeightAverageSettings(decay=0.75, interval=2))
    model.weight.data.fill_(0)
    average.start(model)
    seen = []
    for step in range(1, 13):
        model.weight.data.fill_(step)
        average.update(step)
        with average.applied():
            seen.append(model.weight.item())
    # the mean of 2, 4, 6, 8, and then a quarter of the new weights
    assert seen[1::2] == pytest.approx([2, 3, 4, 5, 0.75 * 5 + 2.5, 0.75 * (0.75 * 5 + 2.5) + 3])
    assert average.updates == 6


def run(folder, steps=4, **arguments):
    torch.manual_seed(0)
    recipe = Recipe(name="averaged", weight_average=WeightAverageSettings(decay=0.5, warmup=False))
    settings = {
        "recipe": recipe,
        "max_steps": steps,
        "learning_rate": 0.01,
        "save_strategy": "steps",
        "save_steps": 2,
        "eval_strategy": "no",
    }
    return trainer(small_model("upernet"), folder, **{**settings, **arguments})


def weights(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_evaluations_and_the_saved_model_use_the_average(tmp_path):
    training = run(tmp_path)
    seen, evaluated = [], []
    update = training.weight_average.update

    def recorded(step):
        seen.append(weights(training.model))
        update(step)
        if step == 3:
            training.evaluate()

    training.weight_average.update = recorded
    count = training._count

    def counted(model, inputs):
        evaluated.append(weights(model))
        return count(model, inputs)

    training._count = counted
    training.train()
    expected, averages = seen[0], []
    for step in seen[1:]:
        expected = {name: 0.5 * expected[name] + 0.5 * step[name] for name in step}
        averages.append(expected)
    name = "decode_head.classifier.weight"
    assert not torch.allclose(averages[-1][name], seen[-1][name], atol=1e-5)
    torch.testing.assert_close(evaluated[0], averages[1])  # after step 3
    torch.testing.assert_close(weights(training.model), averages[-1])
    training.save_model(str(tmp_path / "saved"))
    saved = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(weights(saved), averages[-1])
    checkpoint = load_file(tmp_path / "checkpoint-4/model.safetensors")
    torch.testing.assert_close(checkpoint[name], seen[-1][name])  # for the next step
    torch.testing.assert_close(load_file(tmp_path / "checkpoint-4/weight_average.safetensors"), averages[-1])


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    whole = run(tmp_path / "whole")
    whole.train()
    resumed = run(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-2"))
    torch.testing.assert_close(weights(resumed.model), weights(whole.model), rtol=0, atol=0)
    assert resumed.weight_average.updates == 4


def test_the_best_model_is_that_of_its_average(tmp_path):
    training = run(
        tmp_path, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True, metric_for_best_model="loss"
    )
    training.train()
    best = load_file(f"{training.state.best_model_checkpoint}/weight_average.safetensors")
    torch.testing.assert_close(weights(training.model), best, rtol=0, atol=0)


def test_checkpoints_that_do_not_fit_are_named(tmp_path):
    run(tmp_path, steps=2).train()
    checkpoint = tmp_path / "checkpoint-2"
    file = checkpoint / "weight_average.safetensors"
    average = WeightAverage(WeightAverageSettings())
    with pytest.raises(ValueError, match="is the average of another model: "):
        average.load(checkpoint, small_model("segmenter"), 0)
    frozen = small_model("upernet")
    frozen.backbone.requires_grad_(False)
    with pytest.raises(ValueError, match="the same trained parts"):
        average.load(checkpoint, frozen, 0)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="is damaged"):
        average.load(checkpoint, small_model("upernet"), 0)
    file.unlink()
    with pytest.raises(ValueError, match="was trained without an average of the weights"):
        run(tmp_path / "other").train(resume_from_checkpoint=str(checkpoint))


def test_half_precision_weights_are_averaged_in_float32():
    model = nn.Linear(4, 4).bfloat16()
    average = WeightAverage(WeightAverageSettings(decay=0.999, warmup=False))
    average.start(model)
    first = model.weight.detach().clone()
    average.update(1)
    model.weight.data += 0.5
    for step in range(2, 102):
        average.update(step)
    with average.applied():
        moved = (model.weight.data - first).float().mean()
    assert moved == pytest.approx(0.5 * (1 - 0.999**100), rel=0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay": 1.5}, "weight_average.decay must be a number from 0 to 1"),
        ({"interval": 0}, "weight_average.interval must be a whole number from 1 on"),
        ({"definition": "timm"}, "must be standard or mmcv"),
        ({"momentum": 0.1}, "weight_average has unknown settings: momentum"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Recipe.from_dict({"name": "mine", "weight_average": settings})


def test_recipe_round_trip():
    recipe = Recipe(name="mine", weight_average=WeightAverageSettings(decay=0.99))
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert Recipe.from_dict(Recipe(name="mine").to_dict()).weight_average is None


def average_command(*words) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["average", *map(str, words)])
    return done.exit_code, done.output


def test_average_of_saved_models(tmp_path):
    folders = [tmp_path / str(seed) for seed in range(3)]
    models = [small_model("upernet", seed) for seed in range(3)]
    for seed, (folder, model) in enumerate(zip(folders, models, strict=True)):
        model.decode_head.fpn_bottleneck.batch_norm.running_mean.fill_(seed)
        model.save_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(packaged_model_path())
    processor.save_pretrained(folders[1])
    status, output = average_command(*folders, "--output", tmp_path / "mean")
    assert status == 0 and "the average of 3 models is in" in output
    saved = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "mean")
    for name, parameter in saved.named_parameters():
        expected = torch.stack([dict(model.named_parameters())[name] for model in models]).mean(0)
        torch.testing.assert_close(parameter, expected)
    assert saved.decode_head.fpn_bottleneck.batch_norm.running_mean.eq(1).all()
    assert AutoImageProcessor.from_pretrained(tmp_path / "mean").to_dict() == processor.to_dict()


def test_models_that_cannot_be_averaged_are_named(tmp_path):
    small_model("upernet").save_pretrained(tmp_path / "a")
    small_model("upernet", hidden_size=16).save_pretrained(tmp_path / "b")
    for words, message in (
        ([tmp_path / "a"], "an average needs at least two models"),
        ([tmp_path / "a", tmp_path / "b"], "b is another model than"),
        ([tmp_path / "a", tmp_path / "c"], "c is no folder"),
    ):
        status, output = average_command(*words, "--output", tmp_path / "mean")
        assert status == 1 and output.startswith("error: ") and message in output and output.count("\n") == 1
        assert not (tmp_path / "mean").exists()
    status, output = average_command(tmp_path / "a", tmp_path / "a", "--output", tmp_path / "b")
    assert status == 1 and "b is not empty: choose another folder" in output


def test_weights_that_cannot_be_averaged_are_named(tmp_path):
    small_model("upernet").save_pretrained(tmp_path / "whole")
    small_model("upernet").save_pretrained(tmp_path / "other")
    file = tmp_path / "other/model.safetensors"
    content, tensors = file.read_bytes(), load_file(file)
    name = "decode_head.classifier.weight"
    for changes, message in (
        ({name: None}, f"lacks weights that fit its config.json, such as {name}"),
        ({name: tensors[name][:2].contiguous()}, f"lacks weights that fit its config.json, such as {name}"),
        ({name: tensors[name] * float("nan")}, f"{name} holds NaN or infinity"),
        (None, "cannot be loaded"),
    ):
        if changes is None:
            file.write_bytes(content[:1000])
        else:
            kept = {key: value for key, value in {**tensors, **changes}.items() if value is not None}
            save_file(kept, file, {"format": "pt"})
        status, output = average_command(tmp_path / "whole", tmp_path / "other", "--output", tmp_path / "mean")
        assert status == 1 and message in output and not (tmp_path / "mean").exists(), output
