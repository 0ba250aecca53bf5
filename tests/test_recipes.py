# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Recipes against the recorded settings of the original configs, and the schedule against mmcv's formula."""

import dataclasses
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from reference_cases import FOLDER
from typer.testing import CliRunner

import segtransformers
from segtransformers.cli import app
from segtransformers.conversion.convert import empty_model
from segtransformers.conversion.protocol import read_test_pipeline
from segtransformers.datasets.known import DATASETS
from segtransformers.published import FAMILIES, published_rows
from segtransformers.training import (
    KNOWN_ISSUES,
    Recipe,
    Schedule,
    frozen_trunk_recipe_names,
    get_recipe,
    poly_schedule,
    recipe_names,
    small_model_recipe_names,
)

# DINOv2's recipes are one for all heads, see `test_recipes_of_frozen_dinov2`; DINOv3 published none
RECORDED_FAMILIES = [family for family in FAMILIES if family not in ("dinov2", "dinov3", "one_peace")]
FROZEN_DINOV2 = [name for name in published_rows("dinov2") if not name.endswith("_m2f")]
# the authors of these did not publish how they trained them, or the whole of it
WITHOUT_RECIPE = {"dinov2_vitg14_ade20k_m2f", "dinov3_vit7b16_ade20k_m2f", "onepeace_seg_cocostuff2ade20k"}


def recorded_rows(family: str) -> dict[str, dict]:
    if family in ("eva01", "eva02"):  # one file for both
        recorded = json.loads((FOLDER / "eva" / "training_recipes.json").read_text())["rows"]
        return {name: row for name, row in recorded.items() if name.startswith("eva02") == (family == "eva02")}
    recorded = json.loads((FOLDER / family / "training_recipes.json").read_text())
    if family == "mmseg_zoo":
        newer = {name: as_in_0x(row) for name, row in recorded["mmseg_1.x"].items()}
        for row in recorded["mmseg_0.x"].values():
            row["gpus"] = 16 // row["samples_per_gpu"]  # as the notes of the reference say
            rates = row["optimizer"].get("paramwise_cfg") or {}
            row["optimizer"]["paramwise_cfg"] = {"layer_decay_rate": rates.get("decay_rate", 1.0)}
            row["drop_path_rate"] = row["drop_path_rate"] or 0.0
        return recorded["mmseg_0.x"] | newer
    return recorded.get("rows") or recorded["recipes"]


def as_in_0x(row: dict) -> dict:
    """Return a recorded row of MMSegmentation 1.x with the names of 0.x. Its base rate is that of the backbone."""
    wrapper, (scheduler,) = row["optim_wrapper"], row["param_scheduler"]
    (choice,) = (step for step in row["train_pipeline"] if step["type"] == "RandomChoiceResize")
    (resize,) = (step for step in row["test_pipeline"] if step["type"] == "Resize")
    scales, middle = choice["scales"], choice["scales"][5]
    factor = wrapper["paramwise_cfg"]["custom_keys"]["backbone"]["lr_mult"]
    return {
        "optimizer": {**wrapper["optimizer"], "lr": wrapper["optimizer"]["lr"] * factor},
        "optimizer_config": {"grad_clip": wrapper["clip_grad"]},
        "lr_config": {"power": scheduler["power"], "min_lr": scheduler["eta_min"]},
        "max_iters": row["train_cfg"]["max_iters"],
        "gpus": row["gpus"],
        "samples_per_gpu": row["batch_size_per_gpu"],
        "fp16": None,
        "drop_path_rate": row["drop_path_rate"] or 0.0,
        "train_pipeline": [
            *row["train_pipeline"],
            {
                "type": "Resize",
                "img_scale": [choice["max_size"], middle],
                "ratio_range": [scales[0] / middle, scales[-1] / middle],
            },
        ],
        "test_cfg": row["test_cfg"],
        "test_pipeline": [{"type": "MultiScaleFlipAug", "img_scale": resize["scale"], "transforms": []}],
    }


RECORDED = [(family, name) for family in RECORDED_FAMILIES for name in recorded_rows(family)]


def recorded_batch_size(row: dict) -> int:
    for name in ("global_batch", "readme_batch"):
        if name in row:
            return row[name]
    gpus = row.get("gpus") or int(
        (row.get("readme_gpus_x_samples") or f"{16 // row['samples_per_gpu']}x").split("x")[0]
    )
    return gpus * row["samples_per_gpu"]


def test_each_published_row_has_a_recipe():
    assert set(recipe_names()) == {name for _, name in RECORDED} | set(FROZEN_DINOV2)
    assert {name for family in FAMILIES for name in published_rows(family)} <= set(recipe_names()) | WITHOUT_RECIPE


@pytest.mark.parametrize(("family", "name"), RECORDED)
def test_recipes_are_what_was_recorded(family, name):
    recipe, row = get_recipe(name), recorded_rows(family)[name]
    assert (recipe.name, recipe.family) == (name, family)
    optimizer, rates = row["optimizer"], row["optimizer"].get("paramwise_cfg", {})
    assert recipe.optimizer.name == optimizer["type"].lower()
    assert recipe.optimizer.learning_rate == optimizer["lr"]
    assert recipe.optimizer.weight_decay == optimizer["weight_decay"]
    assert list(recipe.optimizer.betas) == optimizer.get("betas", [0.9, 0.999])
    assert recipe.optimizer.momentum == optimizer.get("momentum", 0.0)
    assert recipe.layer_decay == rates.get("layer_decay_rate", 1.0)
    assert recipe.optimizer.decay_vectors == ("constructor" not in optimizer)

    assert dataclasses.asdict(recipe.schedule) == {
        "steps": row["max_iters"] if "max_iters" in row else row["runner"]["max_iters"],
        "warmup_steps": row["lr_config"].get("warmup_iters", 0),
        "warmup_ratio": row["lr_config"].get("warmup_ratio", 1e-6),
        "power": row["lr_config"]["power"],
        "min_lr": row["lr_config"]["min_lr"],
    }
    assert recipe.batch_size == recorded_batch_size(row)
    assert recipe.gradient_clipping == (row["optimizer_config"].get("grad_clip") or {}).get("max_norm")
    assert recipe.half_precision == (row["fp16"] is not None or row["optimizer_config"].get("use_fp16", False))
    assert recipe.drop_path_rate == row["drop_path_rate"]
    # ViT-Adapter's recorded recipes leave `with_cp` out: it is in the model's config
    backbone = published_rows(family)[name]["model"]["backbone"] if name in published_rows(family) else {}
    assert recipe.gradient_checkpointing == row.get("with_cp", backbone.get("with_cp", False))

    steps = {step["type"]: step for step in row["train_pipeline"] if isinstance(step, dict)}
    resize = row["resize"] if "resize" in row else steps["Resize"]
    crop = row["crop_size"] if "crop_size" in row else steps["RandomCrop"]["crop_size"]
    augmentation = recipe.augmentation
    assert [augmentation.longest_edge, augmentation.shortest_edge] == sorted(resize["img_scale"], reverse=True)
    assert list(augmentation.ratio_range) == resize["ratio_range"]
    assert list(recipe.crop_size) == crop
    assert augmentation.cat_max_ratio == 0.75
    assert augmentation.photometric_distortion
    assert augmentation.flip_probability == 0.5
    normalize = steps.get("Normalize", {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]})
    assert [255 * value for value in augmentation.image_mean] == pytest.approx(normalize["mean"])
    assert [255 * value for value in augmentation.image_std] == pytest.approx(normalize["std"])
    reduces = row["reduce_zero_label"][0] if "resize" in row else steps["LoadAnnotations"].get("reduce_zero_label")
    assert augmentation.reduce_labels == bool(reduces)

    protocol = recipe.test_protocol
    assert protocol.inference_mode == row["test_cfg"]["mode"]
    assert protocol.window_size == (tuple(row["test_cfg"]["crop_size"]) if "crop_size" in row["test_cfg"] else None)
    assert protocol.window_stride == (tuple(row["test_cfg"]["stride"]) if "stride" in row["test_cfg"] else None)
    (resizing,) = (step for step in row["test_pipeline"] if step["type"] == "MultiScaleFlipAug")
    assert [protocol.size["longest_edge"], protocol.size["shortest_edge"]] == sorted(
        resizing["img_scale"], reverse=True
    )
    divisors = [step["size_divisor"] for step in resizing["transforms"] if step["type"] == "ResizeToMultiple"]
    assert [protocol.size_divisor] == (divisors or [0])


@pytest.mark.parametrize("name", FROZEN_DINOV2)
def test_recipes_of_frozen_dinov2(name):
    recorded = json.loads((FOLDER / "dinov2_segmentors" / "training_recipes.json").read_text())["linear"]
    recipe, side = get_recipe(name), 640 if name.endswith("_ms") else 512
    optimizer, schedule = recorded["optimizer"], recorded["schedule"]
    assert recipe.freeze_trunk and recipe.layer_decay == 1 and recipe.optimizer.decay_vectors
    assert (recipe.optimizer.name, recipe.optimizer.learning_rate) == (optimizer["type"].lower(), optimizer["lr"])
    assert (recipe.optimizer.weight_decay, list(recipe.optimizer.betas)) == (
        optimizer["weight_decay"],
        optimizer["betas"],
    )
    assert dataclasses.asdict(recipe.schedule) == {
        "steps": schedule["max_iters"],
        "warmup_steps": schedule["warmup_iters"],
        "warmup_ratio": schedule["warmup_ratio"],
        "power": schedule["power"],
        "min_lr": schedule["min_lr"],
    }
    assert recipe.batch_size == 16 and recipe.gradient_clipping is recorded["gradient_clipping"] is None
    augmentation = recipe.augmentation
    assert augmentation.ratio_range == ((1.0, 3.0) if side == 640 else (0.5, 2.0))
    assert (augmentation.shortest_edge, augmentation.crop_size) == (side, (side, side))
    assert augmentation.longest_edge == 99999999 and augmentation.cat_max_ratio == 0.75
    assert augmentation.reduce_labels == (recipe.dataset == "ade20k")


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_fit_the_models(name):
    """Recipe and published model have the same data set and image processor."""
    recipe = get_recipe(name)
    row = published_rows(recipe.family).get(name)
    processor = recipe.image_processor()
    assert processor.do_reduce_labels == recipe.augmentation.reduce_labels
    assert recipe.dataset in DATASETS
    if row is not None:
        assert row["dataset"] in (recipe.dataset, recipe.dataset.removeprefix("mapillary_as_"))
    assert set(recipe.known_issues) <= set(KNOWN_ISSUES)
    has_layers = recipe.layer_decay != 1
    assert ("mask_predictor_at_lowest_rate" in recipe.known_issues) == (has_layers and "mask2former" in name)


@pytest.mark.parametrize(
    ("family", "name"),
    [(family, name) for family in FAMILIES for name in published_rows(family) if name not in WITHOUT_RECIPE],
)
def test_conversion_reads_the_same_from_the_row(family, name):
    """Recipes read the rows themselves, because the converters load torch and transformers."""
    recipe, row = get_recipe(name), published_rows(family)[name]
    config, protocol = empty_model(row["model"])[0].config, recipe.test_protocol
    assert config.inference_mode == protocol.inference_mode
    for field in ("window_size", "window_stride"):
        sides = getattr(config, field)
        assert getattr(protocol, field) == (None if sides is None else tuple(sides))
    assert getattr(config.backbone_config, "drop_path_rate", 0.0) == recipe.drop_path_rate
    own, read = (
        processor.to_dict()
        for processor in (
            recipe.image_processor(),
            read_test_pipeline(
                row["test_pipeline"],
                recipe.augmentation.reduce_labels,
                row["model"].get("data_preprocessor"),
                row["multi_scale_pipeline"],
            ),
        )
    )
    for field in ("image_mean", "image_std"):
        assert own.pop(field) == pytest.approx(read.pop(field))
    assert own == read


def test_names_are_listed_without_torch():
    code = (
        "import sys, types; package = types.ModuleType('segtransformers'); package.__path__ = [sys.argv[1]]; "
        "sys.modules['segtransformers'] = package\n"  # without what the package's own __init__ imports
        "from segtransformers.training.recipes import get_recipe, recipe_names\n"
        "for name in recipe_names(): print(get_recipe(name).name)\n"
        "assert not {'torch', 'transformers', 'numpy'} & sys.modules.keys(), 'heavy'\n"
    )
    words = [sys.executable, "-c", code, str(Path(segtransformers.__file__).parent)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == recipe_names()


def mmcv_learning_rate(base: float, step: int, schedule: Schedule) -> float:
    """mmcv's two hooks in its own order: decay, then warm-up."""
    coefficient = (1 - step / schedule.steps) ** schedule.power
    regular = (base - schedule.min_lr) * coefficient + schedule.min_lr
    if step >= schedule.warmup_steps:
        return regular
    reduction = (1 - step / schedule.warmup_steps) * (1 - schedule.warmup_ratio)
    return regular * (1 - reduction)


@pytest.mark.parametrize(
    "schedule",
    [
        get_recipe("upernet_deit_adapter_tiny_512_160k_ade20k").schedule,
        get_recipe("segmenter_vit-b_mask_8x1_512x512_160k_ade20k").schedule,
        Schedule(steps=3000, warmup_steps=500, warmup_ratio=0.1, power=0.9, min_lr=1e-6),
    ],
    ids=["linear", "segmenter", "all"],
)
def test_schedule_at_ten_steps(schedule):
    """Groups with several learning rates; every step is taken, as in training."""
    bases = (1e-3, 6e-5, 2e-7)
    steps = dataclasses.replace(schedule, steps=min(schedule.steps, 4000))
    optimizer = torch.optim.SGD(
        [{"params": [torch.nn.Parameter(torch.zeros(()))], "lr": base} for base in bases], lr=1.0
    )
    scheduler = poly_schedule(optimizer, steps)
    checked = {0, 1, 2, 400, 499, 500, 1499, 1500, steps.steps // 2, steps.steps - 1}
    for step in range(steps.steps):
        if step in checked:
            rates = [group["lr"] for group in optimizer.param_groups]
            assert rates == pytest.approx([mmcv_learning_rate(base, step, steps) for base in bases], rel=1e-9), step
        optimizer.step()
        scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([steps.min_lr] * 3, abs=1e-18)


def test_published_values_of_the_schedule():
    """Computed by hand for the smallest row: 1.2e-4, 160000 steps, 1500 of warm-up from 1e-6."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.2e-4)
    factor = poly_schedule(optimizer, get_recipe("upernet_deit_adapter_tiny_512_160k_ade20k").schedule).lr_lambdas[0]
    assert factor(0) == pytest.approx(1e-6)
    assert factor(750) == pytest.approx((1 - 750 / 160000) * (1 - 0.5 * (1 - 1e-6)))
    assert factor(1500) == pytest.approx(1 - 1500 / 160000)
    assert factor(80000) == pytest.approx(0.5)
    assert factor(160000) == 0
    assert factor(200000) == 0


def test_a_resumed_schedule_continues():
    def begin():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1e-3)
        return optimizer, poly_schedule(optimizer, Schedule(steps=20, warmup_steps=5))

    optimizer, scheduler = begin()
    rates = []
    for step in range(20):
        if step == 8:
            saved = optimizer.state_dict(), pickle.loads(pickle.dumps(scheduler.state_dict()))
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    optimizer, scheduler = begin()
    optimizer.load_state_dict(saved[0])
    scheduler.load_state_dict(saved[1])
    for expected in rates[8:]:
        assert optimizer.param_groups[0]["lr"] == expected
        optimizer.step()
        scheduler.step()


def test_with_steps():
    recipe = get_recipe("upernet_deit_adapter_tiny_512_160k_ade20k")
    assert recipe.with_steps(40000).schedule == dataclasses.replace(recipe.schedule, steps=40000)
    assert recipe.with_steps(200).schedule.warmup_steps == 20
    assert recipe.with_steps(3).schedule.warmup_steps == 0


@pytest.mark.parametrize(
    "name", [recipe_names()[0], recipe_names()[-1], "segmenter_vit-t_mask_8x1_512x512_160k_ade20k"]
)
def test_recipes_are_plain_data(name, tmp_path):
    recipe = get_recipe(name)
    (tmp_path / "a.json").write_text(json.dumps(recipe.to_dict()))
    (tmp_path / "b.yaml").write_text(yaml.safe_dump(recipe.to_dict()))
    assert Recipe.from_file(tmp_path / "a.json") == recipe
    assert Recipe.from_file(tmp_path / "b.yaml") == recipe


def test_a_file_may_change_a_published_recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "base: upernet_deit_adapter_tiny_512_160k_ade20k\n"
        "optimizer: {learning_rate: 1e-4}\n"  # text for YAML 1.1
        "schedule: {steps: 5000}\n"
        "augmentation: {crop_size: 384}\n"
    )
    recipe, base = Recipe.from_file(path), get_recipe("upernet_deit_adapter_tiny_512_160k_ade20k")
    assert recipe.optimizer == dataclasses.replace(base.optimizer, learning_rate=1e-4)
    assert recipe.schedule == dataclasses.replace(base.schedule, steps=5000)
    assert recipe.crop_size == (384, 384)
    assert recipe.name == "upernet_deit_adapter_tiny_512_160k_ade20k (changed)"
    assert recipe.source is None
    assert recipe.known_issues == base.known_issues


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "a recipe must be a mapping of names to values, got list"),
        ("{", "is not a recipe"),
        ("batch_size: 8", "the recipe has no name"),
        ("{name: a, learning_rate: 1}", "the recipe has unknown settings: learning_rate; known are name, family"),
        ("{name: a, optimizer: {lr: 1}}", "optimizer has unknown settings: lr; known are name, learning_rate"),
        ("{name: a, optimizer: adamw}", "optimizer must be a mapping of names to values, got 'adamw'"),
        ("{name: a, optimizer: {name: adam}}", "optimizer.name must be one of adamw, sgd, got 'adam'"),
        ("{name: a, optimizer: {learning_rate: -1}}", "optimizer.learning_rate must be a number from 0 on, got -1"),
        ("{name: a, optimizer: {learning_rate: .nan}}", "optimizer.learning_rate must be a number from 0 on, got nan"),
        ("{name: a, optimizer: {layer_decay: 2}}", "optimizer.layer_decay must be a number from 0 to 1, got 2"),
        ("{name: a, optimizer: {betas: [1]}}", r"optimizer.betas must be 2 numbers from 0 on, got \[1\]"),
        ("{name: a, optimizer: {no_weight_decay: norm}}", "optimizer.no_weight_decay must be a list of parts of names"),
        ("{name: a, schedule: {steps: 0}}", "schedule.steps must be a whole number from 1 on, got 0"),
        ("{name: a, schedule: {steps: 1.5}}", "schedule.steps must be a whole number from 1 on, got 1.5"),
        ("{name: a, augmentation: {ratio_range: [2, 1]}}", "augmentation.ratio_range must be"),
        ("{name: a, augmentation: {crop_size: [0, 1]}}", "augmentation.crop_size must be 2 numbers from 1 on"),
        ("{name: a, augmentation: {crop_size: [32.5, 32]}}", "augmentation.crop_size must be whole pixels"),
        ("{name: a, augmentation: {reduce_labels: 3}}", "augmentation.reduce_labels must be true or false, got 3"),
        ("{name: a, test_protocol: {inference_mode: slide}}", "test_protocol.window_size is needed"),
        ("{name: a, test_protocol: {inference_mode: x}}", "test_protocol.inference_mode must be whole or slide"),
        ("{name: a, test_protocol: {size: 512}}", "test_protocol.size must be a mapping, got 512"),
        ("{name: a, batch_size: true}", "batch_size must be a whole number from 1 on, got True"),
        ("{name: a, gradient_clipping: x}", "gradient_clipping must be a number from 0 on, got 'x'"),
        ("{name: a, known_issues: [x]}", "'x' is not a known issue"),
        ("{name: a, known_issues: 5}", "known_issues must be a list of names, got 5"),
        ("{name: a, known_faults: [x]}", "'x' is not a known issue"),
        ("{name: a, dataset: 5}", "dataset must be text, got 5"),
        ("{base: [a]}", r"base must be the name of a published recipe, got \['a'\]"),
        ("{name: 3}", "a recipe needs a name, got 3"),
        ("{base: upernet_deit}", "'upernet_deit' is not a published recipe; .* such as upernet_"),
    ],
)
def test_bad_recipes(text, message, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        Recipe.from_file(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_text(tmp_path):
    (tmp_path / "recipe.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"recipe\.json is not a recipe"):
        Recipe.from_file(tmp_path / "recipe.json")
    with pytest.raises(FileNotFoundError):
        Recipe.from_file(tmp_path / "missing.json")


ANY_DATA = [*frozen_trunk_recipe_names(), *small_model_recipe_names()]


def test_command():
    result = CliRunner().invoke(app, ["recipes"])
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[0].startswith("Start here: `segtransformers train --data DIR --output DIR`")
    groups = [group.splitlines() for group in result.output.split("\n\n")[1:]]
    assert all(title.startswith(("For any data", "Of published models")) for title, *_ in groups)
    names = [line.split()[0] for _, *group in groups for line in group]
    assert names[: len(ANY_DATA)] == ANY_DATA
    assert sorted(names[len(ANY_DATA) :]) == sorted(recipe_names())
    assert (
        "upernet_deit_adapter_tiny_512_160k_ade20k  ade20k, adamw 0.00012, 160000 steps of 16 images 512x512, "
        "layer decay 0.95, drop path 0.1"
    ) in lines


def test_command_for_one(tmp_path):
    name = "segmenter_vit-t_mask_8x1_512x512_160k_ade20k"
    result = CliRunner().invoke(app, ["recipes", name])
    assert result.exit_code == 0
    (tmp_path / "recipe.json").write_text(result.output)
    assert Recipe.from_file(tmp_path / "recipe.json") == get_recipe(name)
    result = CliRunner().invoke(app, ["recipes", "segmenter_vit-t"])
    assert result.exit_code == 1
    assert result.output.startswith(
        "error: 'segmenter_vit-t' is not a published recipe; `segtransformers recipes` lists all "
        + str(len([*ANY_DATA, *recipe_names()]))
    )
    assert result.output.count("\n") == 1


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("mask2former_beit_ade20k", "mask2former_beit_adapter_large"),
        ("UperNet DeiT tiny", "upernet_deit_adapter_tiny_512_160k_ade20k"),
        ("upernet_deit_adapter_tiny_512_160k_ade2k", "upernet_deit_adapter_tiny_512_160k_ade20k"),
        ("segmenter-vit-t", "segmenter_vit-t"),
    ],
)
def test_suggestions_share_words(wrong, right):
    with pytest.raises(ValueError, match=rf"such as {right}"):
        get_recipe(wrong)
    with pytest.raises(ValueError, match=rf"lists all {len([*ANY_DATA, *recipe_names()])}$"):
        get_recipe("xyz")


def test_a_reader_may_stop_early():
    """`segtransformers recipes | head` is no error."""
    words = [sys.executable, "-m", "segtransformers", "recipes"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.wait(60) == 0 and not process.stderr.read()
