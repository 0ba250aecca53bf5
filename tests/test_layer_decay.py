# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Learning rate and weight decay of every parameter against the recorded values of the original code."""

import dataclasses
import json
import re

import pytest
import torch
from reference_cases import FOLDER, ReferenceCase
from torch import nn
from transformers import AutoConfig, Swinv2Config, UperNetConfig, UperNetForSemanticSegmentation

from segtransformers import (
    SegMask2FormerConfig,
    SegMask2FormerForSemanticSegmentation,
    SegUperNetConfig,
    SegUperNetForSemanticSegmentation,
    ViTAdapterConfig,
)
from segtransformers.conversion.convert import empty_model
from segtransformers.conversion.mapping import find_rule
from segtransformers.published import FAMILIES, published_rows
from segtransformers.training import Recipe, create_optimizer, get_recipe, parameter_groups, recipe_names

GROUPS = json.loads((FOLDER / "vit_adapter/layer_decay_groups.json").read_text())
INTERNIMAGE = json.loads((FOLDER / "internimage/training_recipes.json").read_text())["layer_decay_examples"]
TINY_VIT = "upernet_deit_adapter_tiny_512_160k_ade20k"
BEIT_MASK2FORMER = "mask2former_beit_adapter_large_640_160k_ade20k_ss"
INTERNIMAGE_H = "mask2former_internimage_h_896_80k_cocostuff2ade20k_ss"


def changed(recipe: Recipe | str, **optimizer) -> Recipe:
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    return dataclasses.replace(recipe, optimizer=dataclasses.replace(recipe.optimizer, **optimizer))


def by_name(groups: list[dict]) -> dict[str, tuple[float, float]]:
    """Return (learning rate factor, weight decay) of each parameter, and assert that no parameter is in two groups."""
    found = {}
    for group in groups:
        assert len(group["params"]) == len(group["param_names"])
        for name in group["param_names"]:
            assert name not in found
            found[name] = group["lr_scale"], group["weight_decay"]
    return found


def our_names(names, rules) -> dict[str, str]:
    """Return our names of original tensors, mapped to the original names by the rules of the conversion."""
    found = {}
    for name in names:
        rule, new_name = find_rule(name, rules)
        assert rule is not None, name
        for part in rule.parts or [""]:
            if new_name is not None:
                found[new_name.replace("{part}", part)] = name
    return found


def compare(model, recipe, rules, expected: dict[str, tuple[float, float]]) -> None:
    """Assert that every parameter is treated as its original tensor."""
    actual = by_name(parameter_groups(model, recipe))
    originals = our_names(expected, rules)
    parameters = dict(model.named_parameters())
    assert set(actual) == set(parameters)
    assert set(actual) <= set(originals)
    for name, (scale, decay) in actual.items():
        assert (pytest.approx(scale, rel=1e-12), decay) == expected[originals[name]], name


@pytest.mark.parametrize("case", GROUPS["cases"])
def test_adapters_as_recorded(case):
    recorded = GROUPS["cases"][case]
    recipe = changed(
        BEIT_MASK2FORMER if "mask2former" in case else TINY_VIT,
        layer_decay=recorded["paramwise_cfg"]["layer_decay_rate"],
        weight_decay=GROUPS["optimizer"]["weight_decay"],
    )
    expected = {name: (how["lr_scale"], how["weight_decay"]) for name, how in recorded["parameters"].items()}
    model, rules, _ = empty_model(ReferenceCase(f"vit_adapter/{case}").config)
    for name in [name for name in expected if name.endswith("spatial_pos_embed.weight")]:
        # our model has one parameter for Uni-Perceiver's spatial and temporal positions, which are treated alike
        spatial, temporal = expected.pop(name), expected.pop(name.replace("spatial", "temporal"))
        assert spatial == temporal
        expected[name.replace("spatial_pos_embed.weight", "pos_embed")] = spatial
    compare(model, recipe, rules, expected)


def test_comer_as_its_authors_describe_it():
    """ViT-CoMer uses ViT-Adapter's constructor, which `treatment` repeats with the original names."""
    case = ReferenceCase("vit_comer/tiny-mask2former")
    depth = case.config["backbone"]["depth"]
    recipe = changed(BEIT_MASK2FORMER, layer_decay=0.8)

    def treatment(name: str, shape) -> tuple[float, float]:
        block = re.match(r"backbone\.blocks\.(\d+)\.", name)
        if block:
            layer = int(block[1]) + 1
        elif re.match(r"backbone\.(pos_embed|patch_embed\.)", name) or re.match(
            r"decode_head\.(mask_embed|cls_embed|level_embed|query_embed|query_feat)\b", name
        ):
            layer = 0
        else:
            layer = depth + 1
        decay = 0.0 if len(shape) == 1 or name.endswith(".bias") else recipe.optimizer.weight_decay
        return pytest.approx(0.8 ** (depth + 1 - layer), rel=1e-12), decay

    model, rules, _ = empty_model(case.config)
    expected = {name: treatment(name, shape) for name, shape, _ in case.manifest["state_dict"]}
    compare(model, recipe, rules, expected)


@pytest.mark.parametrize("row", INTERNIMAGE)
def test_internimage_as_recorded(row):
    """Examples by name, and the numbers of tensors and parameters in each group of the full models."""
    recipe = get_recipe(row)
    model, rules, _ = empty_model(published_rows("internimage")[row]["model"])
    groups = parameter_groups(model, recipe)
    actual = by_name(groups)
    for name, ours in our_names(INTERNIMAGE[row]["examples"], rules).items():
        example = INTERNIMAGE[row]["examples"][ours]
        assert actual[name] == (pytest.approx(example["lr_scale"], rel=1e-12), example["weight_decay"]), name
    recorded = {
        (round(group["lr_scale"], 12), group["weight_decay"]): (group["tensors"], group["parameters"])
        for group in INTERNIMAGE[row]["groups"]
    }
    assert len(recorded) == len(INTERNIMAGE[row]["groups"])
    assert {
        (round(group["lr_scale"], 12), group["weight_decay"]): (
            len(group["params"]),
            sum(parameter.numel() for parameter in group["params"]),
        )
        for group in groups
    } == recorded


def test_internimage_with_mask2former():
    model, _, _ = empty_model(published_rows("internimage")[INTERNIMAGE_H]["model"])
    actual = by_name(parameter_groups(model, get_recipe(INTERNIMAGE_H)))
    lowest = 0.95**51
    assert actual["class_predictor.weight"] == (pytest.approx(lowest), 0.05)
    assert actual["transformer_module.queries_features.weight"] == (pytest.approx(lowest), 0.05)
    assert actual["pixel_decoder.level_embed"] == (1.0, 0.05)
    offsets = "pixel_decoder.encoder.layers.0.self_attn.sampling_offsets.weight"
    assert actual[offsets] == (1.0, 0.0)  # by name
    assert actual["pixel_decoder.encoder.layers.0.self_attn.value_proj.weight"] == (1.0, 0.05)


def test_keywords_as_mmcv_reads_them():
    """The one row without layer decay, against mmcv's rule on the original names."""
    row = "upernet_augreg_adapter_base_512_160k_ade20k"
    source = json.loads((FOLDER / "vit_adapter/training_recipes.json").read_text())["rows"][row]["optimizer"]
    keywords = source["paramwise_cfg"]["custom_keys"]
    ordered = sorted(sorted(keywords), key=len, reverse=True)
    recipe = get_recipe(row)
    model, rules, _ = empty_model(published_rows("vit_adapter")[row]["model"])
    checked = set()
    actual = by_name(parameter_groups(model, recipe))
    # the tiny model has the same tensor names
    for name, _, _ in ReferenceCase("vit_adapter/full-upernet_deit_adapter_tiny_512_160k_ade20k").manifest[
        "state_dict"
    ]:
        first = next((keyword for keyword in ordered if keyword in name), None)
        changes = keywords.get(first, {})
        expected = changes.get("lr_mult", 1.0), source["weight_decay"] * changes.get("decay_mult", 1.0)
        for ours in set(our_names([name], rules)) & set(actual):  # statistics of batch norms are not parameters
            assert actual[ours] == expected, name
            checked.add(ours)
    assert checked == set(actual)

    mended = by_name(parameter_groups(model, recipe, reproduce_known_issues=False))
    assert actual["decode_head.classifier.bias"] == (1.0, 0.0)
    assert mended["decode_head.classifier.bias"] == (10.0, 0.0)
    assert actual["decode_head.bottleneck.batch_norm.weight"] == (10.0, 0.01)
    assert mended["decode_head.bottleneck.batch_norm.weight"] == (10.0, 0.0)
    assert mended["backbone.trunk.blocks.0.mlp.fc1.weight"] == (1.0, 0.01)


def test_segmenter_is_one_group():
    model, _, _ = empty_model(ReferenceCase("segmenter/tiny-mask").config)
    recipe = get_recipe("segmenter_vit-t_mask_8x1_512x512_160k_ade20k")
    (group,) = parameter_groups(model, recipe)
    assert group["lr"] == 0.001
    assert group["weight_decay"] == 0.0
    assert len(group["params"]) == len(list(model.parameters()))
    optimizer = create_optimizer(model, recipe)
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["momentum"] == 0.9


def vit_adapter(
    head=SegUperNetForSemanticSegmentation, config=SegUperNetConfig, trunk="vit_tiny_patch16_224", **fields
):
    options = {"hidden_size": 32} if config is SegUperNetConfig else {}
    backbone = ViTAdapterConfig(
        trunk=trunk,
        num_hidden_layers=4,
        pretrain_image_size=64,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        **fields,
    )
    with torch.device("meta"):
        return head(config(backbone_config=backbone, num_labels=3, **options))


def test_known_issues_can_be_corrected_one_by_one():
    recipe = get_recipe(BEIT_MASK2FORMER)
    model = vit_adapter(SegMask2FormerForSemanticSegmentation, SegMask2FormerConfig)
    positions, classifier = "backbone.trunk.embeddings.pos_embed", "class_predictor.weight"
    lowest = pytest.approx(0.9**5)
    every = by_name(parameter_groups(model, recipe))
    assert every[positions] == (lowest, 0.05)
    assert every[classifier] == (lowest, 0.05)
    none = by_name(parameter_groups(model, recipe, reproduce_known_issues=False))
    assert none[positions] == (lowest, 0.0)
    assert none[classifier] == (1.0, 0.05)
    one = by_name(parameter_groups(model, recipe, reproduce_known_issues=["mask_predictor_at_lowest_rate"]))
    assert one[positions] == (lowest, 0.0)
    assert one[classifier] == (lowest, 0.05)
    assert by_name(parameter_groups(model, recipe, reproduce_known_issues="mask_predictor_at_lowest_rate")) == one
    with pytest.raises(ValueError, match="'typo' is not a known issue; known are weight_decay_exclusions_n"):
        parameter_groups(model, recipe, reproduce_known_issues=["typo"])


def test_known_issues_of_internimage_can_be_corrected():
    case = ReferenceCase("internimage/tiny-h-upernet")
    model, _, _ = empty_model(case.config)
    recipe = get_recipe("upernet_internimage_h_896_160k_ade20k")
    depths, (first, *_) = case.config["backbone"]["depths"], case.config["backbone"]["level2_post_norm_block_ids"]
    top, before = sum(depths) + 1, sum(depths[:2])
    last_norm, post_norm = "backbone.stages.3.norm.weight", "backbone.stages.2.block_norms.0.weight"
    actual = by_name(parameter_groups(model, recipe))
    assert actual[last_norm][0] == pytest.approx(0.95 ** (top - (1 + sum(depths[:3]))))
    assert actual[post_norm][0] == pytest.approx(0.95 ** (top - (1 + before)))
    mended = by_name(parameter_groups(model, recipe, reproduce_known_issues=False))
    assert mended[last_norm][0] == pytest.approx(0.95 ** (top - sum(depths)))
    assert mended[post_norm][0] == pytest.approx(0.95 ** (top - (1 + before + first)))
    assert {name for name in actual if actual[name] != mended[name]} <= {
        name.replace("weight", kind).replace("block_norms.0", f"block_norms.{index}")
        for name in (last_norm, post_norm)
        for kind in ("weight", "bias")
        for index in range(9)
    }


@pytest.mark.parametrize(
    "trunk",
    [
        "vit_small_patch14_dinov2",
        "vit_small_patch16_dinov3",
        "eva02_tiny_patch14_224",
        "vit_small_patch16_rope_mixed_224",
        "beit_base_patch16_224",
    ],
)
def test_any_trunk(trunk):
    model = vit_adapter(trunk=trunk)
    actual = by_name(parameter_groups(model, get_recipe(TINY_VIT)))
    assert set(actual) == {name for name, _ in model.named_parameters()}
    scales = {name: scale for name, (scale, _) in actual.items()}
    for name, scale in scales.items():
        if name.startswith(("backbone.trunk.embeddings.", "backbone.trunk.rotary.")):
            assert scale == pytest.approx(0.95**5), name
        elif name.startswith("backbone.trunk.blocks."):
            assert scale == pytest.approx(0.95 ** (4 - int(name.split(".")[3]))), name
        else:
            assert scale == 1.0, name


@pytest.mark.slow  # a minute: models of up to three billion parameters on the meta device
@pytest.mark.parametrize(
    ("family", "row"),
    [
        (family, row)
        for family in FAMILIES
        for row in published_rows(family)
        if row in recipe_names()  # all but three, whose authors did not publish how they trained them
    ],
)
def test_every_published_model(family, row):
    """Each parameter is in one group, the patch embedding has the lowest rate, and the heads have the full rate."""
    recipe = get_recipe(row)
    model, _, _ = empty_model(published_rows(family)[row]["model"])
    actual = by_name(parameter_groups(model, recipe))
    assert set(actual) == {name for name, _ in model.named_parameters()}
    scales = {name: scale for name, (scale, _) in actual.items()}
    # of the patch embedding or the stem, which comes first in the backbones of transformers, too
    convolution = next(module for module in model.backbone.modules() if isinstance(module, nn.Conv2d))
    if family != "mmseg_zoo":
        convolution = model.backbone.get_input_embeddings()
    (name,) = (name for name, parameter in model.named_parameters() if parameter is convolution.weight)
    assert scales[name] == min(scales.values())
    assert max(scales.values()) == recipe.optimizer.head_learning_rate_factor
    assert (scales[name] < 1) == (recipe.layer_decay < 1)


def test_other_backbones_are_taken_in_order():
    backbone = AutoConfig.for_model(
        "dinov2", hidden_size=8, num_hidden_layers=3, num_attention_heads=2, out_indices=[3]
    )
    config = UperNetConfig(backbone_config=backbone, hidden_size=8, use_auxiliary_head=False, num_labels=2)
    with torch.device("meta"):
        actual = by_name(parameter_groups(UperNetForSemanticSegmentation(config), get_recipe(TINY_VIT)))
    assert actual["backbone.embeddings.patch_embeddings.projection.weight"][0] == pytest.approx(0.95**4)
    for index in range(3):
        assert actual[f"backbone.encoder.layer.{index}.mlp.fc1.weight"][0] == pytest.approx(0.95 ** (3 - index))
    assert actual["backbone.layernorm.weight"][0] == pytest.approx(0.95)
    assert actual["decode_head.classifier.weight"][0] == 1.0


def test_a_stage_in_between_goes_with_the_block_before():
    backbone = Swinv2Config(embed_dim=8, depths=[1, 2], num_heads=[1, 1], window_size=2, out_indices=[1, 2])
    config = UperNetConfig(backbone_config=backbone, hidden_size=8, use_auxiliary_head=False, num_labels=2)
    with torch.device("meta"):
        model = UperNetForSemanticSegmentation(config)
    actual = by_name(parameter_groups(model, get_recipe(TINY_VIT)))
    layers = {name: scale for name, (scale, _) in actual.items()}
    assert len({round(scale, 9) for scale in layers.values()}) >= 3
    assert set(layers) == {name for name, _ in model.named_parameters()}


def test_without_a_backbone_everything_is_the_head():
    model = nn.ModuleDict({"plain": nn.Linear(2, 2), "other": nn.Linear(2, 2)})
    model["other"].bias = nn.Parameter(torch.zeros(2, 2))  # a bias by its name
    assert by_name(parameter_groups(model, get_recipe(TINY_VIT))) == {
        "plain.weight": (1.0, 0.01),
        "plain.bias": (1.0, 0.0),
        "other.weight": (1.0, 0.01),
        "other.bias": (1.0, 0.0),
    }


def test_frozen_parameters_are_left_out():
    model = vit_adapter()
    model.backbone.trunk.requires_grad_(False)
    names = by_name(parameter_groups(model, get_recipe(TINY_VIT)))
    assert set(names) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not any(".trunk." in name for name in names)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="unfreeze a part of the model"):
        parameter_groups(model, get_recipe(TINY_VIT))


def test_wrapped_models_have_the_same_groups():
    model = vit_adapter()
    plain = by_name(parameter_groups(model, get_recipe(TINY_VIT)))
    wrapped = by_name(parameter_groups(torch.compile(model), get_recipe(TINY_VIT)))
    assert {name.removeprefix("_orig_mod."): how for name, how in wrapped.items()} == plain
    alone = by_name(parameter_groups(model.backbone, get_recipe(TINY_VIT)))
    assert {f"backbone.{name}": how for name, how in alone.items()} == {
        name: how for name, how in plain.items() if name.startswith("backbone.")
    }


def test_a_step_of_the_optimizer():
    """torch accepts the groups and keeps their names."""
    model = nn.Linear(3, 3)
    optimizer = create_optimizer(model, get_recipe(TINY_VIT))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert sorted(name for group in optimizer.param_groups for name in group["param_names"]) == ["bias", "weight"]
    before = model.weight.detach().clone()
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    # Adam's first step has the size of the learning rate for any gradient, after the weight decay
    assert torch.allclose(model.weight, before * (1 - 1.2e-4 * 0.01) - 1.2e-4, atol=1e-8)
    optimizer.load_state_dict(optimizer.state_dict())
