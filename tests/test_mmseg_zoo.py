# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""MMSegmentation's own zoo against the original: Swin, ConvNeXt and ResNet of transformers under our heads."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from reference_cases import FOLDER, ReferenceCase, relative_error
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    ConvNextBackbone,
    ConvNextConfig,
    ResNetBackbone,
    SwinBackbone,
    SwinConfig,
)

from segtransformers import (
    SegConvNextBackbone,
    SegConvNextConfig,
    SegMask2FormerForSemanticSegmentation,
    SegResNetBackbone,
    SegResNetConfig,
    SegSwinBackbone,
    SegSwinConfig,
    SegUperNetForSemanticSegmentation,
    published_model,
)
from segtransformers.conversion import ConversionError, convert_checkpoint
from segtransformers.conversion.cli import main
from segtransformers.conversion.convert import empty_model
from segtransformers.conversion.mapping import find_rule
from segtransformers.conversion.mmseg_zoo import set_padding
from segtransformers.conversion.protocol import read_test_pipeline
from segtransformers.datasets import get_dataset_info
from segtransformers.inference import image_views, segment_image
from segtransformers.inference.logits import resized_logits
from segtransformers.published import PUBLISHED_FIELDS, published_outputs, published_rows
from segtransformers.published.names import find_published
from segtransformers.published.originals import original_of
from segtransformers.training import get_recipe
from segtransformers.training.augmentation import TrainingAugmentation
from segtransformers.training.layer_decay import parameter_groups
from segtransformers.training.recipe_settings import AugmentationSettings

SCRIPT = Path(__file__).parent.parent / "conversion_scripts" / "convert_mmseg_zoo.py"
ROWS = published_rows("mmseg_zoo")
CASES = sorted(path.parent.name for path in (FOLDER / "mmseg_zoo").glob("*/manifest.json"))
BACKBONES = {  # of the cases that need more than transformers' own backbones have
    "tiny-convnext-1x-upernet": ConvNextBackbone,
    "tiny-resnet50-upernet": ResNetBackbone,
    "tiny-resnetv1c50-upernet": SegResNetBackbone,
    "tiny-resnetv1c50-odd-upernet": SegResNetBackbone,
    "tiny-swin-nopatchnorm-upernet": SegSwinBackbone,
}


def converted(case: ReferenceCase, dtype: torch.dtype = torch.float64):
    # the index of the relative positions, whose values `fill` cannot give
    derived = case.manifest.get("derived", ())
    state_dict = {name: tensor for name, tensor in case.state_dict(dtype).items() if name not in derived}
    return convert_checkpoint(state_dict, case.config)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_outputs_are_the_originals(name):
    case = ReferenceCase(f"mmseg_zoo/{name}")
    model, images, expected = converted(case), case.pixel_values(), case.outputs()
    default = SegConvNextBackbone if "convnext" in name else SwinBackbone
    assert type(model.backbone) is BACKBONES.get(name, default)
    window = model.config.sliding_window()
    outputs = model(images, sliding_window=False)
    feature_maps = model.backbone(images).feature_maps
    found = {f"feature_{level}": feature_map for level, feature_map in enumerate(feature_maps)}
    found["segmentation_logits"] = outputs.logits
    if isinstance(model, SegMask2FormerForSemanticSegmentation):
        found |= {"class_logits": outputs.class_queries_logits, "mask_logits": outputs.masks_queries_logits}
    else:
        found |= {
            "logits": model.decode_head(feature_maps),
            "auxiliary_logits": model.auxiliary_head(feature_maps),
        }
    if window is not None:
        found["slide_logits"] = model(images).logits
    assert found.keys() <= case.manifest["outputs"].keys()
    for output, tensor in found.items():
        key = case.manifest["outputs"][output]["file_key"]
        assert relative_error(case.sampled(output, tensor), expected[key]) < 1e-6, output


@pytest.mark.parametrize(
    "name",
    ["convnext-narrow-upernet", "resnetv1c50-upernet", "swin-nopatchnorm-upernet", "swin-abspos-rect-upernet"],
)
@torch.no_grad()
def test_saved_models_load_with_all_options(tmp_path, name):
    case = ReferenceCase(f"mmseg_zoo/tiny-{name}")
    converted(case).save_pretrained(tmp_path)
    model, info = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    logits = case.sampled("segmentation_logits", model(case.pixel_values()).logits)
    assert relative_error(logits, case.outputs()["segmentation_logits"]) < 1e-6


def test_every_tensor_is_used_and_the_rest_is_named():
    case = ReferenceCase("mmseg_zoo/tiny-swin-upernet")
    with pytest.raises(ConversionError, match=r"does not have: backbone.stages.0.surprise"):
        convert_checkpoint(case.state_dict() | {"backbone.stages.0.surprise": torch.zeros(3).double()}, case.config)
    state_dict = case.state_dict()
    del state_dict["backbone.stages.2.blocks.1.attn.w_msa.qkv.bias"]
    with pytest.raises(ConversionError, match=r"lacks .*layers.2.blocks.1.attention.k_proj.bias"):
        convert_checkpoint(state_dict, case.config)
    state_dict = case.state_dict()
    state_dict["backbone.stages.0.downsample.norm.weight"] = torch.zeros(65).double()
    with pytest.raises(ConversionError, match=r"downsample.norm.weight is 65, expected a multiple of 4"):
        convert_checkpoint(state_dict, case.config)


def test_both_generations_of_mask2former_have_the_same_config():
    older, newer = (ReferenceCase(f"mmseg_zoo/tiny-swin-mask2former{suffix}") for suffix in ("-rc", ""))
    configs = [empty_model(case.config)[0].config.to_dict() for case in (older, newer)]
    assert configs[0] == configs[1] and configs[0]["resize_mask_logits"] and not configs[0]["pad_to_stride"]
    derived = set(older.manifest["derived"])
    state_dict = {name: tensor for name, tensor in older.state_dict().items() if name not in derived}
    model = convert_checkpoint(state_dict, newer.config)  # names of the first files with the later config
    with torch.no_grad():
        logits = older.sampled("class_logits", model(older.pixel_values()).class_queries_logits)
    assert relative_error(logits, older.outputs()["class_logits"]) < 1e-6


@pytest.mark.parametrize(
    ("case", "part", "changes", "message"),
    [
        ("swin-upernet", "backbone", {"patch_size": 2}, "backbone.patch_size is 2; only 4"),
        ("swin-upernet", "backbone", {"strides": [4, 2, 2, 1]}, "backbone.strides is"),
        ("swin-upernet", "backbone", {"ape": True}, "backbone has unknown settings: ape"),
        ("swin-upernet", "backbone", {"out_indices": [3, 0]}, "expected ascending stages from 0 to 3"),
        ("swin-upernet", "backbone", {"depths": [2, 2]}, "expected a number for each of 4 stages"),
        ("swin-upernet", "backbone", {"qk_scale": -1.0}, "qk_scale must be a positive number"),
        ("swin-upernet", "backbone", {"norm_cfg": {"type": "BN"}}, "backbone.norm_cfg.type is 'BN'"),
        ("swin-upernet", "auxiliary_head", {"align_corners": True}, "auxiliary_head.align_corners is True"),
        ("convnext-upernet", "backbone", {"arch": "enormous"}, "backbone.arch is 'enormous'; expected atto, femto"),
        ("convnext-upernet", "backbone", {"gap_before_final_norm": True}, "gap_before_final_norm is True"),
        ("convnext-upernet", "backbone", {"type": "ConvNeXt"}, "known types are .*mmcls.ConvNeXt"),
        ("convnext-upernet", "backbone", {"use_grn": True}, "use_grn is True"),
        ("resnet50-upernet", "backbone", {"depth": 51}, "backbone.depth is 51; expected one of 18, 34, 50, 101, 152"),
        ("resnet50-upernet", "backbone", {"dilations": [1, 1, 2, 4]}, "backbone.dilations is"),
        ("resnetv1c50-upernet", "backbone", {"stem_channels": 7}, "embedding_size must be even"),
        (
            "swin-mask2former",
            "decode_head",
            {"transformer_decoder": {"num_layers": 1, "return_intermediate": True}},
            "transformer_decoder has no setting 'transformerlayers'",
        ),
    ],
)
def test_configs_that_cannot_be_converted(case, part, changes, message):
    config = ReferenceCase(f"mmseg_zoo/tiny-{case}").config
    config[part].update(changes)
    with pytest.raises(ConversionError, match=message):
        empty_model(config)


@pytest.mark.parametrize(
    ("config_class", "fields", "message"),
    [
        (SegSwinConfig, {"qk_scale": 0}, "qk_scale must be a positive number"),
        (SegConvNextConfig, {"downsampling_norm_eps": -1.0}, "downsampling_norm_eps must be a positive number"),
        (SegResNetConfig, {"embedding_size": 63}, "embedding_size must be even"),
    ],
)
def test_impossible_configs_are_refused(config_class, fields, message):
    with pytest.raises(ValueError, match=message):
        config_class(**fields)


def test_padding_of_the_preprocessor():
    case = ReferenceCase("mmseg_zoo/tiny-swin-mask2former")
    config = empty_model(case.config)[0].config
    set_padding(config, case.config)
    assert config.pad_to_stride
    for test_cfg, message in (
        ({"size_divisor": 64}, "size_divisor is 64; only 32"),
        ({"size": [2, 2]}, "size_divisor"),
    ):
        with pytest.raises(ConversionError, match=message):
            set_padding(config, {"data_preprocessor": {"test_cfg": test_cfg}})
    upernet = empty_model(ReferenceCase("mmseg_zoo/tiny-swin-upernet").config)[0].config
    with pytest.raises(ConversionError, match="only Mask2Former"):
        set_padding(upernet, {"data_preprocessor": {"test_cfg": {"size_divisor": 32}}})


@pytest.mark.parametrize("kind", ["padded", "unpadded"])
@torch.no_grad()
def test_inference_protocol(tmp_path, capsys, kind):
    """Resize, normalisation, padding, scores and their resize are those of MMSegmentation 1.x."""
    case = ReferenceCase("mmseg_zoo/tiny-swin-mask2former")
    config, derived = case.config, case.manifest["derived"]
    if kind == "unpadded":
        del config["data_preprocessor"]["test_cfg"]
    pipeline = [
        {"type": "LoadImageFromFile"},
        {"type": "Resize", "scale": [512, 128], "keep_ratio": True},
        {"type": "LoadAnnotations", "reduce_zero_label": True},
        {"type": "PackSegInputs"},
    ]
    state_dict = {name: tensor for name, tensor in case.state_dict().items() if name not in derived}
    torch.save({"meta": case.manifest["meta"], "state_dict": state_dict}, tmp_path / "original.pth")
    (tmp_path / "config.json").write_text(json.dumps({"model": config, "test_pipeline": pipeline}))
    words = ["--checkpoint", tmp_path / "original.pth", "--config", tmp_path / "config.json"]
    assert main("mmseg_zoo", [str(word) for word in [*words, "--output", tmp_path / "converted"]]) == 0
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "converted").eval()
    processor = AutoImageProcessor.from_pretrained(tmp_path / "converted")
    recorded = load_file(FOLDER / "mmseg_zoo" / "tiny-inference-protocol" / "outputs.safetensors")

    image = recorded["image_rgb"].permute(2, 0, 1)
    resized = recorded["resized_rgb"].permute(2, 0, 1)
    pixel_values = processor(images=image, return_tensors="pt").pixel_values
    height, width = pixel_values.shape[2:]
    assert (height, width) == tuple(resized.shape[1:])
    expected = recorded[f"{kind}_input"]
    assert relative_error(pixel_values, expected[..., :height, :width]) < 1e-6
    assert not expected[..., height:, :].any() and not expected[..., :, width:].any()

    (view,) = image_views(processor, image)
    (scores,) = resized_logits(model, view, [tuple(image.shape[1:])], None)
    found, expected = scores.take(slice(0, image.shape[1])), recorded[f"{kind}_scores"]
    assert relative_error(found, expected) < 1e-5  # of an input in float32
    (labels,) = processor.post_process_semantic_segmentation(model(pixel_values.double()), [image.shape[1:]])
    assert torch.equal(labels, expected.argmax(0))
    assert torch.equal(segment_image(model, processor, image), labels)


@pytest.mark.slow  # test_conversion.py runs such a script by default
def test_script_runs_from_the_command_line(tmp_path):
    case = ReferenceCase("mmseg_zoo/tiny-resnetv1c50-upernet")
    torch.save({"meta": case.manifest["meta"], "state_dict": case.state_dict(torch.float32)}, tmp_path / "original.pth")
    (tmp_path / "config.json").write_text(json.dumps(case.config))
    arguments = ["--checkpoint", "original.pth", "--config", "config.json", "--output", "converted"]
    done = subprocess.run([sys.executable, SCRIPT, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "converted").double()
    with torch.no_grad():
        logits = case.sampled("segmentation_logits", model(case.pixel_values()).logits)
    assert relative_error(logits, case.outputs()["segmentation_logits"]) < 1e-6


@pytest.mark.parametrize("name", ROWS)
def test_published_rows_describe_models_that_exist(name):
    row = ROWS[name]
    assert list(row) == [*PUBLISHED_FIELDS, "model", "test_pipeline", "multi_scale_pipeline"]
    info, config = get_dataset_info(row["dataset"]), row["model"]
    processor = read_test_pipeline(row["test_pipeline"], info.reduce_zero_label, config.get("data_preprocessor"))
    assert [255 * level for level in processor.image_mean] == pytest.approx([123.675, 116.28, 103.53])
    assert processor.size_divisor == 0 and dict(processor.size)["shortest_edge"] == min(
        [row["crop_size"]] if isinstance(row["crop_size"], int) else [1024]
    )
    model, _, _ = empty_model(config)
    set_padding(model.config, config)
    assert model.config.num_labels == published_outputs(row) == len(info.classes)
    assert row["miou"] and row["download"].endswith(".pth") and name in row["download"]
    if isinstance(model, SegMask2FormerForSemanticSegmentation):
        assert model.config.resize_mask_logits and model.config.pad_to_stride == (row["crop_size"] != 640)
        assert row["miou_ms"] is None
    else:
        assert isinstance(model, SegUperNetForSemanticSegmentation) and row["miou_ms"] > row["miou"]
    count = sum(parameter.numel() for parameter in model.parameters())
    final_norm = 2 * config["backbone"]["embed_dims"] * 8 if config["backbone"]["type"] == "SwinTransformer" else 0
    if row["num_parameters"] is None:
        assert "the config was not at hand" in row["note"]
    else:
        assert count == row["num_parameters"] + final_norm
    assert original_of("mmseg_zoo", row).license == "apache-2.0"


def test_names_may_be_shortened():
    assert find_published("upernet_swin_tiny") == (
        "upernet_swin_tiny_patch4_window7_512x512_160k_ade20k_pretrain_224x224_1K"
    )
    assert find_published("mask2former-swin-t-ade20k") == "mask2former_swin-t_8xb2-160k_ade20k-512x512"


def test_patch_merging_is_reordered():
    """An unfold of 2x2 patches and transformers' concatenation have the same values in another order."""
    _, rules, _ = empty_model(ReferenceCase("mmseg_zoo/tiny-swin-upernet").config)
    rule, _ = find_rule("backbone.stages.0.downsample.norm.weight", rules)
    features = torch.randn(1, 5, 4, 6)
    unfolded = torch.nn.functional.unfold(features, 2, stride=2).transpose(1, 2)
    last = features.permute(0, 2, 3, 1)
    concatenated = torch.cat([last[:, row::2, column::2] for column in range(2) for row in range(2)], -1).flatten(1, 2)
    assert torch.equal(rule.change("norm.weight", unfolded), concatenated)


@pytest.mark.parametrize(
    ("ours", "theirs", "config"),
    [
        (SegSwinBackbone, SwinBackbone, (SegSwinConfig, SwinConfig)),
        (SegConvNextBackbone, ConvNextBackbone, (SegConvNextConfig, ConvNextConfig)),
    ],
)
def test_without_their_options_they_are_transformers_own(ours, theirs, config):
    sizes = {"embed_dim": 16, "num_heads": [1, 1, 2, 2]} if theirs is SwinBackbone else {"hidden_sizes": [8, 8, 16, 16]}
    sizes |= {"depths": [1, 1, 1, 1], "out_features": ["stage1", "stage4"]}
    extra = {"downsampling_norm_eps": 1e-6} if theirs is ConvNextBackbone else {}
    first, second = ours(config[0](**sizes, **extra)).eval(), theirs(config[1](**sizes)).eval()
    second.load_state_dict(first.state_dict())
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for one, other in zip(first(images).feature_maps, second(images).feature_maps, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("data", ["160k_ade20k-512x512", "90k_cityscapes-512x1024"])
@pytest.mark.parametrize("backbone", ["swin-t", "r50"])
def test_recipes_of_mask2former(backbone, data):
    """Heads learn ten times as fast; norms, queries and tables are not decayed, as the original's keys say."""
    name = f"mask2former_{backbone}_8xb2-{data}"
    row = json.loads((FOLDER / "mmseg_zoo" / "training_recipes.json").read_text())["mmseg_1.x"][name]
    recipe, model = get_recipe(name), empty_model(ROWS[name]["model"])[0]
    (choice,) = (step for step in row["train_pipeline"] if step["type"] == "RandomChoiceResize")
    assert list(recipe.augmentation.shortest_edges) == choice["scales"]
    assert recipe.augmentation.longest_edge == choice["max_size"]
    norms = {
        f"{place}.{kind}"
        for place, module in model.named_modules()
        if isinstance(module, nn.LayerNorm | nn.GroupNorm)
        for kind, _ in module.named_parameters()
    }
    embeddings = ("queries_embedder", "queries_features", "level_embed")
    for group in parameter_groups(model, recipe):
        for parameter in group["param_names"]:
            is_head = not parameter.startswith("backbone.")
            assert group["lr"] == pytest.approx(1e-4 if is_head else 1e-5), parameter
            undecayed = (
                parameter in norms
                or parameter.startswith(tuple(f"transformer_module.{part}." for part in embeddings))
                or parameter.endswith("relative_position_bias_table")
            )
            assert group["weight_decay"] == (0 if undecayed else 0.05), parameter


def test_recipe_of_swin():
    name = "upernet_swin_tiny_patch4_window7_512x512_160k_ade20k_pretrain_224x224_1K"
    model = empty_model(ROWS[name]["model"])[0]
    decays = {
        parameter: group["weight_decay"]
        for group in parameter_groups(model, get_recipe(name))
        for parameter in group["param_names"]
    }
    for parameter, decay in decays.items():  # the original's keyword is "norm", which the "bn" of its heads lacks
        words = ("norm", "relative_position_bias_table")
        undecayed = parameter.startswith("backbone.") and any(word in parameter for word in words)
        assert decay == (0 if undecayed else 0.01), parameter


@pytest.mark.parametrize(("size", "layers"), [("tiny", 6), ("base", 12)])
def test_recipe_of_convnext(size, layers):
    """`get_stage_id_for_convnext` and the constructor around it, in `layer_decay_optimizer_constructor.py`."""
    name = f"upernet_convnext_{size}_fp16_512x512_160k_ade20k"
    model = empty_model(ROWS[name]["model"])[0]
    scales = {
        parameter: group["lr_scale"]
        for group in parameter_groups(model, get_recipe(name))
        for parameter in group["param_names"]
    }
    for parameter, exponent in (
        ("backbone.embeddings.patch_embeddings.weight", layers + 1),
        ("backbone.encoder.stages.2.downsampling_layer.1.weight", layers + 1),
        ("backbone.encoder.stages.0.layers.2.dwconv.weight", layers),
        ("backbone.encoder.stages.2.layers.8.pwconv1.bias", layers - 2),
        ("backbone.encoder.stages.3.layers.0.layer_scale_parameter", layers - 3),
        ("backbone.hidden_states_norms.stage2.weight", 0),
        ("decode_head.classifier.weight", 0),
    ):
        assert scales[parameter] == pytest.approx(0.9**exponent), parameter


def test_shortest_edges_are_drawn():
    augmentation = TrainingAugmentation(shortest_edges=[20, 40], longest_edge=70, crop_size=(96, 96))
    sizes = {augmentation._scaled_size(30, 60, torch.Generator().manual_seed(seed)) for seed in range(20)}
    assert sizes == {(20, 40), (35, 70)}
    with pytest.raises(ValueError, match="shortest_edges must be a list of whole pixels"):
        AugmentationSettings(shortest_edges=[0.5])


def test_both_files_of_a_row_become_the_published_model(tmp_path, monkeypatch):
    """The row's config fits the names of both generations; card and config name the row."""
    name = "mask2former_swin-stand-in_ade20k"
    older, newer = (ReferenceCase(f"mmseg_zoo/tiny-swin-mask2former{suffix}") for suffix in ("-rc", ""))
    row = ROWS["mask2former_swin-t_8xb2-160k_ade20k-512x512"]
    monkeypatch.setitem(ROWS, name, {**row, "model": newer.config})
    monkeypatch.setenv("SEGTRANSFORMERS_CACHE", str(tmp_path / "cache"))
    for case in (older, newer):
        state_dict = case.state_dict(torch.float32)
        derived = {key: torch.zeros(49, 49, dtype=torch.long) for key in case.manifest["derived"]}
        meta = {"dataset_meta": {"classes": case.manifest["meta"]["CLASSES"]}}
        torch.save({"meta": meta, "state_dict": state_dict | derived}, tmp_path / "file.pth")
        folder = published_model("swin-stand-in", tmp_path / "file.pth")
        model = AutoModelForSemanticSegmentation.from_pretrained(folder).double()
        assert model.config.source_config == name and model.config.pad_to_stride
        with torch.no_grad():
            logits = case.sampled("segmentation_logits", model(case.pixel_values()).logits)
        assert relative_error(logits, case.outputs()["segmentation_logits"]) < 1e-5
        card = (folder / "README.md").read_text()
        assert f"# {name}" in card and "value: 48.66" in card and "license: apache-2.0" in card
        assert "Masked-attention Mask Transformer" in card and f"evaluate --model {name}" in card
        shutil.rmtree(folder)
