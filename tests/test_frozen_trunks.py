# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Training on a frozen trunk: recipes, precision, saved folders, and what is learned."""

import json
import re
import shlex
from pathlib import Path

import dino_stand_ins
import pytest
import torch
import yaml
from dino_stand_ins import DINOV2, DINOV3
from reference_cases import ReferenceCase, fill
from safetensors import safe_open
from test_seg_linear import described
from test_train_command import OWN_CLASSES, own_data
from transformers import AutoModelForSemanticSegmentation
from typer.testing import CliRunner

from segtransformers import (
    PlainViTBackbone,
    PlainViTConfig,
    SegLinearConfig,
    SegLinearForSemanticSegmentation,
    SegMask2FormerForSemanticSegmentation,
    SegmenterForSemanticSegmentation,
    ViTAdapterBackbone,
)
from segtransformers.cli import app
from segtransformers.conversion import ConversionError, convert_checkpoint, load_pretrained_trunk
from segtransformers.training import (
    Recipe,
    freeze_trunk,
    frozen_trunk_recipe_names,
    get_recipe,
    save_frozen_trunk,
    starting_model,
)
from segtransformers.training.starting_points import _own_config

PAGE = (Path(__file__).parents[1] / "docs" / "fine_tuning.md").read_text(encoding="utf-8")
CLASSES = dict(enumerate(OWN_CLASSES))
BUILT = {
    "dinov2-linear": (SegLinearForSemanticSegmentation, PlainViTBackbone),
    "dinov3-linear": (SegLinearForSemanticSegmentation, PlainViTBackbone),
    "dinov2-mask-transformer": (SegmenterForSemanticSegmentation, PlainViTBackbone),
    "dinov3-mask-transformer": (SegmenterForSemanticSegmentation, PlainViTBackbone),
    "dinov2-adapter-mask2former": (SegMask2FormerForSemanticSegmentation, ViTAdapterBackbone),
    "dinov3-adapter-mask2former": (SegMask2FormerForSemanticSegmentation, ViTAdapterBackbone),
}


@pytest.fixture(autouse=True)
def released(monkeypatch):
    dino_stand_ins.release(monkeypatch)


def tensors_in(folder: Path) -> set[str]:
    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as opened:
            names |= set(opened.keys())
    return names


def test_each_recipe_is_tested():
    assert set(frozen_trunk_recipe_names()) == set(BUILT)


@pytest.mark.parametrize(
    ("name", "trunk"),
    [(name, DINOV2 if name.startswith("dinov2") else DINOV3) for name in BUILT]
    + [("dinov2-linear", DINOV3), ("dinov3-linear", DINOV2)],
)
def test_recipes_build_their_model_around_any_trunk(name, trunk):
    recipe = get_recipe(name)
    model, processor = starting_model(trunk, recipe, CLASSES, crop_size=(64, 64))
    assert (type(model), type(model.backbone)) == BUILT[name] and model.config.num_labels == 3
    config, patch = model.config.backbone_config, 14 if trunk == DINOV2 else 16
    assert config.trunk == trunk and config.patch_size == patch and config.token_stride in (patch, 16)
    assert config.pretrain_image_size == ([70, 70] if trunk == DINOV2 else [256, 256])  # the weights are timm's own
    if type(model.backbone) is PlainViTBackbone:
        assert config.out_features == ["stage4"] and config.token_stride == patch
        assert config.position_interpolation_offset == (0.1 if trunk == DINOV2 else 0.0)
    else:
        assert model.backbone.config.out_features == ["stage1", "stage2", "stage3", "stage4"]
        assert (model.backbone.interactions[0].injector is None) == name.startswith("dinov3")
    assert config.window_size if hasattr(config, "window_size") else model.config.window_size == [64, 64]
    assert dict(processor.size)["shortest_edge"] == 64
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    loss = model(torch.randn(2, 3, 64, 64), labels=torch.randint(3, (2, 64, 64))).loss
    assert loss.isfinite()


@pytest.mark.parametrize("name", ["dinov3-adapter-mask2former", "dinov2-adapter-mask2former"])
def test_recipes_build_their_model_around_the_folder_of_a_plain_vit(tmp_path, name):
    """As `convert dinov3` writes it from the authors' file of the ViT alone."""
    config = PlainViTConfig(
        trunk="vit_base_patch16_dinov3", hidden_size=32, num_hidden_layers=8, num_attention_heads=2, padding="none"
    )
    source = PlainViTBackbone(config)
    source.save_pretrained(tmp_path)
    model, _ = starting_model(str(tmp_path), get_recipe(name), CLASSES, crop_size=(64, 64))
    assert (type(model), type(model.backbone)) == BUILT[name]
    fields = model.config.backbone_config
    assert fields.interaction_indexes == [[0, 1], [2, 3], [4, 5], [6, 7]] and fields.token_stride == 16
    assert fields.out_features == ["stage1", "stage2", "stage3", "stage4"]
    weights = source.trunk.state_dict()
    for key, tensor in model.backbone.trunk.state_dict().items():
        assert torch.equal(tensor, weights[key]), key
    with torch.no_grad():
        assert model.eval()(torch.randn(1, 3, 40, 50)).logits.shape == (1, 3, 40, 50)
    with pytest.raises(
        ValueError, match=r"it is a plain ViT that gives 1 of the 3 feature maps .*: choose a recipe with a linear head"
    ):
        starting_model(str(tmp_path), get_recipe("upernet_augreg_adapter_base_512_160k_ade20k"), CLASSES)


def test_a_frozen_trunk_must_have_weights():
    for name in BUILT:
        with pytest.raises(ValueError, match=r"freezes the trunk, which would be random: .* --model vit_base_patch1"):
            starting_model(None, get_recipe(name), CLASSES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"head": {"model_type": "seg_linear"}}}, "must have a head and a backbone"),
        ({"model": {"head": {}, "backbone": {"model_type": "seg_plain_vit"}}}, "each with a model_type"),
        (
            {"base": "dinov3-linear", "model": {"backbone": {"trunk": 7}}},
            "backbone.trunk must be the name of a plain ViT in timm, got 7",
        ),
        ({"freeze_trunk": "yes"}, "freeze_trunk must be true or false"),
    ],
)
def test_wrong_recipes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Recipe.from_dict({"name": "own", **change})


def test_recipes_may_change_the_model():
    recipe = Recipe.from_dict({"base": "dinov2-linear", "model": {"head": {"resize_factors": [2]}}})
    model, _ = starting_model(DINOV2, recipe, CLASSES)
    assert model.decode_head.resize_factors == [2] and type(model) is SegLinearForSemanticSegmentation
    wrong = Recipe.from_dict({"base": "dinov2-linear", "model": {"backbone": {"model_type": "swin"}}})
    with pytest.raises(ValueError, match="model_type 'swin'; known are seg_plain_vit, seg_vit_adapter"):
        starting_model(DINOV2, wrong, CLASSES)


@pytest.mark.parametrize("name", ["dinov2-linear", "dinov3-adapter-mask2former"])
def test_half_precision_of_the_trunk_alone(name):
    """Matrix products of the trunk run in bfloat16, everything else and the features are float32."""
    model, _ = starting_model(DINOV3, get_recipe(name), CLASSES)
    images = torch.randn(2, 3, 64, 64)
    seen: dict[str, set] = {"trunk": set(), "rest": set()}

    def see(module, _, output, part):
        seen[part].add(output.dtype)

    trunk = model.backbone.trunk
    inside = {id(module) for module in trunk.modules()}
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            part = "trunk" if id(module) in inside else "rest"
            module.register_forward_hook(lambda *arguments, part=part: see(*arguments, part))
    model.eval()
    with torch.no_grad():
        exact = model.backbone(images).feature_maps
        freeze_trunk(model, torch.bfloat16)
        rounded = model.backbone(images).feature_maps
    assert seen["trunk"] == {torch.float32, torch.bfloat16} and seen["rest"] <= {torch.float32}
    for one, other in zip(exact, rounded, strict=True):
        assert other.dtype == torch.float32 and not torch.equal(one, other)
        assert (one - other).norm() / one.norm() < 0.02
    assert all(parameter.dtype == torch.float32 for parameter in trunk.parameters())
    model.train()
    model(images, labels=torch.randint(3, (2, 64, 64))).loss.backward()
    for parameter_name, parameter in model.named_parameters():
        assert (parameter.grad is None) == parameter_name.startswith("backbone.trunk."), parameter_name


def test_on_a_cpu_the_precision_stays():
    model, _ = starting_model(DINOV2, get_recipe("dinov2-linear"), CLASSES)
    freeze_trunk(model)
    assert model.backbone.trunk.frozen_dtype is None or torch.cuda.is_available()


def run(*words: str):
    result = CliRunner().invoke(app, ["train", *map(str, words)])
    assert result.exit_code == 0, result.output
    return result


SHORT = ["--crop-size", 64, "--max_steps", 2, "--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 1]
SHORT += ["--use_cpu", "true", "--prediction-images", 0, "--eval_strategy", "no"]


def test_the_saved_folder_holds_what_was_trained(tmp_path):
    """It names the trunk, which is loaded from there; with --whole it holds everything."""
    data = own_data(tmp_path / "data")
    arguments = ["--data", data, "--recipe", "dinov3-linear", "--model", DINOV3, *SHORT]
    result = run(*arguments, "--output", tmp_path / "run")
    assert f"saved folders name the frozen trunk, {DINOV3}" in result.output and "--whole" in result.output
    names = tensors_in(tmp_path / "run")
    assert names and not any(name.startswith("backbone.trunk.") for name in names)
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    assert tensors_in(checkpoint) == names
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["backbone_config"]["trunk_weights"] == DINOV3
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "run")
    fresh, _ = starting_model(DINOV3, get_recipe("dinov3-linear"), CLASSES)
    for name, tensor in fresh.backbone.trunk.state_dict().items():
        assert torch.equal(tensor, model.backbone.trunk.state_dict()[name]), name
    run(*arguments, "--output", tmp_path / "run", "--resume", "--max_steps", 3)
    run(*arguments, "--output", tmp_path / "whole", "--whole")
    assert {name for name in tensors_in(tmp_path / "whole") if name.startswith("backbone.trunk.")}
    assert tensors_in(tmp_path / "whole") == set(model.state_dict())
    # a run from the folder goes on with the trunk that it names
    run(
        "--data",
        data,
        "--recipe",
        "dinov3-linear",
        "--model",
        tmp_path / "run",
        *SHORT,
        "--output",
        tmp_path / "more",
    )
    assert tensors_in(tmp_path / "more") == names


def test_a_trunk_from_a_file_is_saved(tmp_path):
    """Nobody else can load it by a name."""
    data = own_data(tmp_path / "data")
    weights, _ = dino_stand_ins.pretrained._download(DINOV2)
    torch.save({**weights, "mask_token": torch.zeros(1, 32)}, tmp_path / "trunk.pth")
    run(
        "--data",
        data,
        "--recipe",
        "dinov2-linear",
        "--model",
        DINOV2,
        "--trunk-weights",
        tmp_path / "trunk.pth",
        *SHORT,
        "--output",
        tmp_path / "run",
    )
    assert any(name.startswith("backbone.trunk.") for name in tensors_in(tmp_path / "run"))
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "run")
    assert torch.equal(model.backbone.trunk.blocks[1].mlp.fc1.weight, weights["blocks.1.mlp.fc1.weight"])


def test_other_models_are_saved_whole():
    config = SegLinearConfig(
        num_labels=3, backbone_config={"model_type": "resnet", "depths": [1], "hidden_sizes": [8], "embedding_size": 8}
    )
    model = SegLinearForSemanticSegmentation(config)
    freeze_trunk(model)
    assert save_frozen_trunk(model, "anything") is None


def test_trunks_load_from_the_authors_files(tmp_path):
    """DINOv2 with registers and a SwiGLU, and DINOv3 with and without biases, under the names of their own files."""
    for name, prefix, trunk in (
        ("dinov2_segmentors/tiny-ms-registers-shrink", "backbone.", "vit_giant_patch14_reg4_dinov2"),
        (
            "dinov3_segmentors/tiny-linear-last",
            "segmentation_model.0.feature_model.",
            "vit_huge_plus_patch16_dinov3_qkvb",
        ),
        ("dinov3_segmentors/tiny-linear-floor", "segmentation_model.0.feature_model.", "vit_7b_patch16_dinov3"),
    ):
        case = ReferenceCase(name)
        tensors = fill.state_dict(case.manifest["state_dict"], torch.float32)
        file = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        torch.save(file, tmp_path / "trunk.pth")
        expected = convert_checkpoint(tensors, case.config).backbone
        config = expected.config
        assert config.trunk == trunk
        backbone = PlainViTBackbone(config)
        unused = load_pretrained_trunk(backbone, tmp_path / "trunk.pth")
        assert "mask_token" in unused
        for key, tensor in expected.state_dict().items():
            assert torch.equal(tensor, backbone.state_dict()[key]), key


def test_biases_that_the_trunk_lacks_are_named(tmp_path):
    """Those of the released distilled trunks are zero and may be left out; others need timm's _qkvb architectures."""
    torch.manual_seed(0)
    source = convert_checkpoint(*described(ReferenceCase("dinov3_segmentors/tiny-linear-four"))).float().backbone
    case = ReferenceCase("dinov3_segmentors/tiny-linear-four")
    prefix = "segmentation_model.0.feature_model."
    tensors = fill.state_dict(case.manifest["state_dict"], torch.float32)
    file = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    torch.save(file, tmp_path / "trunk.pth")
    fields = {**source.config.to_dict(), "trunk": "vit_base_patch16_dinov3", "qkv_bias": False}
    backbone = PlainViTBackbone(PlainViTBackbone.config_class.from_dict(fields))
    with pytest.raises(ConversionError, match=r"biases .* which the trunk 'vit_base_patch16_dinov3' lacks: .*_qkvb"):
        load_pretrained_trunk(backbone, tmp_path / "trunk.pth")
    torch.save(
        {key: torch.zeros_like(tensor) if key.endswith("qkv.bias") else tensor for key, tensor in file.items()},
        tmp_path / "trunk.pth",
    )
    load_pretrained_trunk(backbone, tmp_path / "trunk.pth")
    assert torch.equal(backbone.trunk.blocks[0].attn.qkv.weight, source.trunk.blocks[0].attn.qkv.weight)


def test_command_and_recipe_of_the_documentation(tmp_path):
    """With a tiny trunk in place of the real one, and few steps."""
    data = own_data(tmp_path / "data")
    (command,) = re.findall(r"^segtransformers train .*vit_base_patch16_dinov3.*$", PAGE, re.MULTILINE)
    words = shlex.split(command.replace("vit_base_patch16_dinov3", DINOV3).replace("my-data", str(data)))
    words[words.index("--output") + 1] = str(tmp_path / "trained")
    run(*words[2:], *SHORT, "--max_steps", 1)
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "trained").eval()
    assert type(model) is SegMask2FormerForSemanticSegmentation and model.config.num_labels == 3
    with torch.no_grad():
        assert model(torch.randn(1, 3, 40, 50)).logits.shape == (1, 3, 40, 50)
    (recipe,) = re.findall(r"```yaml\n(base: dinov3.*?)```", PAGE, re.DOTALL)
    assert not Recipe.from_dict(yaml.safe_load(recipe)).freeze_trunk
    assert all(f"`{name}`" in PAGE for name in frozen_trunk_recipe_names())


TABLE = re.findall(r"^\| `(vit_\w+_dinov[23])` \| (.*) \|$", PAGE, re.MULTILINE)


# models of up to seven billion parameters on the meta device take seconds each
@pytest.mark.parametrize("row", [TABLE[0], *(pytest.param(row, marks=pytest.mark.slow) for row in TABLE[1:])])
def test_memory_in_the_documentation(row):
    """4 bytes of each weight, and 12 more of each trained one for its gradient and AdamW's two states."""
    trunk, cells = row[0], row[1].split(" | ")
    counts = []
    for kind in ("linear", "adapter-mask2former"):
        config = _own_config(get_recipe(f"{trunk[-6:]}-{kind}"), trunk)
        config.num_labels = 150
        with torch.device("meta"):
            model = AutoModelForSemanticSegmentation.from_config(config)
        fixed = sum(parameter.numel() for parameter in model.backbone.trunk.parameters())
        counts.append(sum(parameter.numel() for parameter in model.parameters()) - fixed)
    figures = [2 * fixed, *(4 * fixed + 16 * trained for trained in counts), 16 * (fixed + counts[-1])]
    assert cells[0] == f"{fixed / 1e6:.0f}M"
    assert cells[1:5] == [f"{figures[0] / 1e9:.2f}", *(f"{figure / 1e9:.1f}" for figure in figures[1:])]
    assert cells[5].startswith("Apache-2.0" if "dinov2" in trunk else "DINOv3 License")
