# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Conversion of Segmenter's checkpoints, its pre-trained trunks, and the table of the published checkpoints."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from reference_cases import ReferenceCase, fill, relative_error
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline

from segtransformers import SegmenterForSemanticSegmentation, SegmenterViTBackbone, ViTAdapterBackbone, ViTAdapterConfig
from segtransformers.conversion import ConversionError, convert_checkpoint, load_pretrained_trunk
from segtransformers.conversion.cli import main
from segtransformers.conversion.config_text import parse_variant
from segtransformers.conversion.convert import empty_model
from segtransformers.conversion.mapping import Settings
from segtransformers.conversion.protocol import read_test_pipeline
from segtransformers.conversion.segmenter import read_vit
from segtransformers.datasets import get_dataset_info
from segtransformers.published import PUBLISHED_FIELDS, published_rows

SCRIPT = Path(__file__).parent.parent / "conversion_scripts" / "convert_segmenter.py"
ROWS = published_rows("segmenter")
OFFICIAL = ReferenceCase("segmenter/tiny-official-mask")


def convert(capsys, *arguments) -> tuple[int, str, str]:
    """Run the script in this process; return the exit status, stdout and stderr."""
    status = main("segmenter", [str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def random_image(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def official_files(folder: Path, case: ReferenceCase = OFFICIAL, **changes) -> Path:
    """Write a checkpoint and its variant.yml as the official repository does; return the checkpoint's path."""
    variant = {**case.config, "dataset_kwargs": {"dataset": "ade20k", "normalization": "vit"}, "amp": False, **changes}
    net = variant["net_kwargs"]
    net["image_size"] = tuple(net["image_size"])
    net["decoder"]["n_cls"] = net["n_cls"]  # the original writes it there too
    (folder / "variant.yml").write_text(yaml.dump(variant))
    file = folder / "checkpoint.pth"
    torch.save(
        {"model": case.state_dict(torch.float32), "optimizer": {"state": {}}, "n_cls": net["n_cls"], "epoch": 63}, file
    )
    return file


def test_mmseg_checkpoint_on_the_command_line_and_in_a_pipeline(tmp_path):
    case = ReferenceCase("segmenter/tiny-mask-slide")
    torch.save({"meta": case.manifest["meta"], "state_dict": case.state_dict(torch.float32)}, tmp_path / "original.pth")
    config = {
        "model": case.config,
        "test_pipeline": ROWS["segmenter_vit-t_mask_8x1_512x512_160k_ade20k"]["test_pipeline"],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    arguments = ["--checkpoint", "original.pth", "--config", "config.json", "--output", "converted"]
    done = subprocess.run([sys.executable, SCRIPT, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "converted").double()
    assert type(model) is SegmenterForSemanticSegmentation
    with torch.no_grad():
        logits = model(case.pixel_values()).logits
    assert relative_error(case.sampled("slide_logits", logits), case.outputs()["slide_logits"]) < 1e-6

    segments = pipeline("image-segmentation", model=str(tmp_path / "converted"))(random_image(150, 110))
    assert {segment["label"] for segment in segments} <= set(case.manifest["meta"]["CLASSES"])
    total = sum((np.asarray(segment["mask"]) == 255).astype(int) for segment in segments)
    assert total.shape == (110, 150) and (total == 1).all()


def test_official_checkpoint_with_its_variant_in_the_same_folder(tmp_path, capsys):
    output = tmp_path / "converted"
    status, printed, error = convert(capsys, "--checkpoint", official_files(tmp_path), "--output", output)
    assert (status, error) == (0, "") and "7 classes (without names: add --dataset to name them)" in printed
    model = AutoModelForSemanticSegmentation.from_pretrained(output).double()
    model.config.inference_mode = "whole"
    with torch.no_grad():
        logits = model(OFFICIAL.pixel_values()).logits
    expected = OFFICIAL.outputs()["segmentation_logits"]
    assert relative_error(OFFICIAL.sampled("segmentation_logits", logits), expected) < 1e-6
    processor = AutoImageProcessor.from_pretrained(output)
    assert dict(processor.size) == {"shortest_edge": 64, "longest_edge": 256} and processor.size_divisor == 0
    assert tuple(processor.image_mean) == tuple(processor.image_std) == (0.5, 0.5, 0.5)
    segments = pipeline("image-segmentation", model=str(output))(random_image(40, 30))
    assert sum((np.asarray(segment["mask"]) == 255).sum() for segment in segments) == 40 * 30


def test_official_checkpoint_of_a_known_data_set(tmp_path, capsys):
    """The variant is in another folder; 19 outputs, DeiT's normalisation, longest edge twice the shortest."""
    case = ReferenceCase("segmenter/tiny-official-deit-mask")
    (tmp_path / "run").mkdir()
    net = {**case.config["net_kwargs"], "n_cls": 19}
    official_files(tmp_path, case, net_kwargs=net, dataset_kwargs={"dataset": "cityscapes", "normalization": "deit"})
    names = ("decoder.cls_emb", "decoder.mask_norm.weight", "decoder.mask_norm.bias")
    shapes = [
        [name, [19 if name in names and side == 6 else side for side in shape], dtype]
        for name, shape, dtype in case.manifest["state_dict"]
    ]
    torch.save({"model": fill.state_dict(shapes, torch.float32)}, tmp_path / "run" / "checkpoint.pth")
    arguments = ["--checkpoint", tmp_path / "run" / "checkpoint.pth", "--output", tmp_path / "converted"]
    status, _, error = convert(capsys, *arguments)
    assert status == 1 and "does not hold its config: add --config" in error
    status, printed, _ = convert(capsys, *arguments, "--config", tmp_path / "variant.yml")
    assert status == 0 and "19 classes (names of cityscapes" in printed
    config = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "converted").config
    assert config.id2label[0] == "road" and config.palette[0] == [128, 64, 128]
    processor = AutoImageProcessor.from_pretrained(tmp_path / "converted")
    assert dict(processor.size) == {"shortest_edge": 64, "longest_edge": 128}
    assert tuple(processor.image_mean) == (0.485, 0.456, 0.406) and not processor.do_reduce_labels


def test_checkpoint_of_mmsegmentation_1(tmp_path, capsys):
    """Class names, config text and normalisation have other places than in 0.x."""
    case = ReferenceCase("segmenter/tiny-mask-no-patch-bias")
    model = case.config
    del model["backbone"]["patch_bias"]  # not in the published configs
    model["backbone"]["out_origin"] = False
    model["data_preprocessor"] = {
        "type": "SegDataPreProcessor",
        "mean": [127.5] * 3,
        "std": [127.5] * 3,
        "bgr_to_rgb": True,
        "pad_val": 0,
        "seg_pad_val": 255,
        "size": (64, 64),
    }
    steps = [
        {"type": "LoadImageFromFile"},
        {"type": "Resize", "scale": (256, 64), "keep_ratio": True},
        {"type": "LoadAnnotations", "reduce_zero_label": True},
        {"type": "PackSegInputs"},
    ]
    text = f"model = {model!r}\ntest_pipeline = {steps!r}\ntrain_pipeline = {steps[2:3]!r}\n"
    meta = {**case.manifest["meta"], "cfg": text}
    torch.save({"meta": meta, "state_dict": case.state_dict(torch.float32), "message_hub": {}}, tmp_path / "new.pth")
    output = tmp_path / "converted"
    status, printed, error = convert(capsys, "--checkpoint", tmp_path / "new.pth", "--output", output)
    assert (status, error) == (0, "") and "5 classes (names from the checkpoint)" in printed
    config = AutoModelForSemanticSegmentation.from_pretrained(output).config
    assert config.backbone_config.patch_bias is False and config.id2label[4] == "class_4"
    assert config.palette == case.manifest["meta"]["dataset_meta"]["palette"]
    processor = AutoImageProcessor.from_pretrained(output)
    assert dict(processor.size) == {"shortest_edge": 64, "longest_edge": 256} and processor.do_reduce_labels
    assert processor.image_mean[0] == processor.image_std[0] == 0.5


def test_checkpoint_decides_on_the_patch_bias():
    """The config says that the patch embedding has no bias, but the checkpoint has one: it must not be dropped."""
    case = ReferenceCase("segmenter/tiny-mask")
    config = case.config
    config["backbone"]["patch_bias"] = False
    model = convert_checkpoint(case.state_dict(), config)
    assert model.config.backbone_config.patch_bias is True
    with torch.no_grad():
        logits = model(case.pixel_values()).logits
    assert relative_error(case.sampled("segmentation_logits", logits), case.outputs()["segmentation_logits"]) < 2e-6


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("backbone.with_cls_token", False, "backbone.with_cls_token is False; only True"),
        ("backbone.out_indices", [2, 3], "backbone.out_indices is"),
        ("backbone.norm_cfg", {"type": "BN"}, "backbone.norm_cfg.type is 'BN'; only 'LN'"),
        ("backbone.qkv_bias", False, "backbone.qkv_bias is False"),
        ("backbone.surprise", 1, "backbone has unknown settings: surprise"),
        ("backbone.interpolate_mode", "nearest", "position_interpolation must be 'bicubic' or 'bilinear'"),
        ("decode_head.surprise", 1, "decode_head has unknown settings: surprise"),
        ("backbone.num_heads", None, "backbone.num_heads is None; expected a positive integer"),
        ("backbone.img_size", None, "backbone.img_size is None; expected one side or (height, width) in pixels"),
        ("backbone.img_size", [64, 64, 64], "backbone.img_size is [64, 64, 64]; expected one side or"),
        ("decode_head.num_heads", None, "decode_head.num_heads is None; expected a positive integer"),
        ("decode_head.embed_dims", None, "decode_head.embed_dims is None; expected a positive integer"),
        ("decode_head.num_layers", True, "decode_head.num_layers is True; expected a positive integer"),
        ("decode_head.num_classes", "7", "decode_head.num_classes is '7'; expected a positive integer"),
        ("decode_head.num_heads", 5, "must be a multiple of its 5 heads"),
        ("decode_head.attn_drop_rate", 0.1, "decode_head.attn_drop_rate is 0.1; only 0.0"),
        ("decode_head.in_index", 0, "decode_head.in_index is 0; only -1"),
        ("decode_head.align_corners", True, "decode_head.align_corners is True"),
        ("auxiliary_head", {"type": "FCNHead"}, "Segmenter is converted without one"),
    ],
)
def test_invalid_mmseg_configs_are_refused(path, value, message):
    config = ReferenceCase("segmenter/tiny-mask").config
    *parents, key = path.split(".")
    part = config
    for parent in parents:
        part = part[parent]
    part[key] = value
    with pytest.raises(ConversionError) as caught:
        empty_model(config)
    assert message in " ".join(str(caught.value).split())


def test_convolutions_in_a_linear_head_are_refused():
    config = ReferenceCase("segmenter/tiny-linear").config
    config["decode_head"]["num_convs"] = 1
    with pytest.raises(ConversionError, match=r"decode_head.num_convs is 1; only 0"):
        empty_model(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda variant: variant["net_kwargs"].pop("n_cls"), "net_kwargs has no setting 'n_cls'"),
        (lambda variant: variant["net_kwargs"].pop("decoder"), "net_kwargs has no setting 'decoder'"),
        (lambda variant: variant["net_kwargs"]["decoder"].update(name="deeplab_dec"), "name is 'deeplab_dec'; only"),
        (lambda variant: variant["net_kwargs"].update(dropout=0.1), "net_kwargs.dropout is 0.1; only 0.0"),
        (lambda variant: variant["net_kwargs"].update(surprise=1), "unknown settings: surprise"),
        (lambda variant: variant["net_kwargs"].pop("normalization"), "net_kwargs has no setting 'normalization'"),
        (lambda variant: variant["net_kwargs"]["decoder"].pop("name"), "net_kwargs.decoder has no setting 'name'"),
        (lambda variant: variant["net_kwargs"].update(normalization="clip"), "normalization is 'clip'; only 'vit' or"),
        *(
            (
                lambda variant, name=name, value=value: variant["net_kwargs"].update({name: value}),
                f"the variant.net_kwargs.{name} is {value!r}; expected {needed}",
            )
            for name, value, needed in (
                ("n_cls", "7", "a positive integer"),
                ("n_cls", None, "a positive integer"),
                ("d_model", [128], "a positive integer"),
                ("n_heads", None, "a positive integer"),
                ("patch_size", 0, "a positive integer"),
                ("image_size", None, "one side or (height, width) in pixels"),
                ("image_size", [64, "64"], "one side or (height, width) in pixels"),
            )
        ),
        (lambda variant: variant["net_kwargs"].update(d_model=96, n_heads=4), "wrong shapes: encoder.cls_token is"),
        (
            lambda variant: variant["inference_kwargs"].pop("window_size"),
            "inference_kwargs has no setting 'window_size'",
        ),
        (lambda variant: variant["inference_kwargs"].update(window_stride=65), "must not exceed window_size"),
        (
            lambda variant: variant["inference_kwargs"].update(im_size="512"),
            "im_size is '512'; expected a positive integer",
        ),
        (lambda variant: variant.update(dataset_kwargs=["ade20k"]), "dataset_kwargs must be a dict of settings"),
        (lambda variant: variant.update(net_kwargs=3), "net_kwargs must be a dict"),
        (lambda variant: variant.pop("net_kwargs"), "has no model dict with a type"),
    ],
)
def test_invalid_official_variants_are_refused(tmp_path, capsys, change, message):
    file = official_files(tmp_path)
    variant = parse_variant((tmp_path / "variant.yml").read_text())
    change(variant)
    (tmp_path / "variant.yml").write_text(yaml.dump(variant))
    status, printed, error = convert(capsys, "--checkpoint", file, "--output", tmp_path / "converted")
    assert status == 1 and not printed and message in error, error
    assert not (tmp_path / "converted").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda weights: weights.pop("decoder.proj_patch"),
            "lacks (by their new names): decode_head.patch_proj.weight",
        ),
        (
            lambda weights: weights.update({"decoder.proj_patch": torch.zeros(3)}),
            "decoder.proj_patch is (3,), expected",
        ),
        (lambda weights: weights.update({"encoder.surprise": torch.zeros(3)}), "model does not have: encoder.surprise"),
        (lambda weights: weights.update({"encoder.dist_token": torch.zeros(1, 1, 128)}), "does not have: encoder.dist"),
    ],
)
def test_official_checkpoints_that_do_not_fit_are_refused(change, message):
    weights = OFFICIAL.state_dict(torch.float32)
    change(weights)
    with pytest.raises(ConversionError) as caught:
        convert_checkpoint(weights, OFFICIAL.config)
    assert message in str(caught.value)


def test_variant_text_is_parsed_without_executing_it():
    text = "net_kwargs:\n  image_size: &size !!python/tuple\n  - 512\n  - 512\n  again: *size\n"
    assert parse_variant(text) == {"net_kwargs": {"image_size": [512, 512], "again": [512, 512]}}
    for hostile in ("!!python/object/apply:os.system ['true']", "!!python/name:os.system", "{a: [}"):
        with pytest.raises(ConversionError, match="the variant cannot be parsed"):
            parse_variant(hostile)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("2021-13-45", "'2021-13-45' is not a valid timestamp"),
        ("!!timestamp abc", "'abc' is not a valid timestamp"),
        ("!!int abc", "'abc' is not a valid int"),
        ("!!int ''", "'' is not a valid int"),
        ("!!float abc", "'abc' is not a valid float"),
        ("!!bool abc", "'abc' is not a valid bool"),
        ("9" * 5000, "999... is not a valid int"),
    ],
)
def test_invalid_values_in_a_variant_are_refused(value, message):
    with pytest.raises(ConversionError, match="the variant cannot be parsed") as caught:
        parse_variant(f"net_kwargs:\n  n_cls: [{value}]\n")
    assert message in str(caught.value) and "line 2, column 11" in str(caught.value)


def test_suffix_of_a_variant_file_is_needed(tmp_path, capsys):
    arguments = ["--checkpoint", official_files(tmp_path), "--output", tmp_path / "converted", "--config"]
    for name in ("VARIANT.YML", "variant.Yaml", "variant.txt"):
        (tmp_path / "variant.yml").rename(tmp_path / name)
        status, _, error = convert(capsys, *arguments, tmp_path / name)
        (tmp_path / name).rename(tmp_path / "variant.yml")
        if name.endswith("txt"):
            assert status == 1 and "variant.txt cannot be read" in error
            assert "read as Python" in error and "a variant file .yml or .yaml" in error
        else:
            assert (status, error) == (0, "")
            shutil.rmtree(tmp_path / "converted")


def jax_arrays(case: ReferenceCase) -> dict[str, np.ndarray]:
    """Return the arrays of the case's .npz file."""
    return {name: tensor.numpy() for name, tensor in fill.state_dict(case.manifest["npz"]).items()}


@pytest.mark.parametrize("name", ["jax-augreg", "jax-augreg-resized"])
def test_trunk_from_jax(name, tmp_path):
    """Load an .npz file of AugReg into the backbone that MMSegmentation builds for it."""
    case = ReferenceCase(f"segmenter/tiny-{name}")
    config = read_vit(Settings(case.config["backbone"], "backbone"))
    backbone = SegmenterViTBackbone(config).double().eval()
    np.savez(tmp_path / "B_16.npz", **jax_arrays(case))
    unused = load_pretrained_trunk(backbone, tmp_path / "B_16.npz")
    assert sorted(unused) == sorted(case.manifest["unused"])
    outputs = case.outputs()
    with torch.no_grad():
        (feature_map,) = backbone(case.pixel_values()).feature_maps
    assert relative_error(feature_map, outputs["feature_0"]) < 2e-6
    assert relative_error(backbone.trunk.embeddings.pos_embed, outputs["pos_embed"]) < 2e-6


def test_trunk_from_jax_with_other_or_missing_names(tmp_path):
    case = ReferenceCase("segmenter/tiny-jax-augreg")
    arrays = jax_arrays(case)
    np.savez(tmp_path / "new.npz", **arrays)
    config = read_vit(Settings(case.config["backbone"], "backbone"))
    backbone = SegmenterViTBackbone(config)
    expected = SegmenterViTBackbone(config)
    load_pretrained_trunk(expected, tmp_path / "new.npz")
    old = {f"opt/target/{name}": array for name, array in arrays.items()}
    np.savez(tmp_path / "old.npz", **old, **{"opt/target/pre_logits/kernel": np.zeros((32, 32), np.float32)})
    assert len(load_pretrained_trunk(backbone, tmp_path / "old.npz")) == 3
    for (name, tensor), other in zip(expected.state_dict().items(), backbone.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name

    block = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1"
    np.savez(tmp_path / "few.npz", **{name: array for name, array in arrays.items() if name != f"{block}/key/kernel"})
    with pytest.raises(ConversionError, match=r"no place for blocks.1.attn.query.weight.* blocks.1.attn.qkv.weight is"):
        load_pretrained_trunk(backbone, tmp_path / "few.npz")
    np.savez(tmp_path / "odd.npz", surprise=np.zeros(3, np.float32), **arrays)
    with pytest.raises(ConversionError, match="no place for surprise"):
        load_pretrained_trunk(backbone, tmp_path / "odd.npz")
    np.savez(tmp_path / "objects.npz", **{"embedding/kernel": np.array([print], dtype=object)})
    with pytest.raises(ConversionError, match=r"objects.npz is damaged or not a file of numpy arrays"):
        load_pretrained_trunk(backbone, tmp_path / "objects.npz")


_BLOCK = "Transformer/encoderblock_1"
_ATTENTION = f"{_BLOCK}/MultiHeadDotProductAttention_1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{_ATTENTION}/query/kernel": ()}, f"{_ATTENTION}/query/kernel is (), expected a matrix"),
        ({f"{_ATTENTION}/out/kernel": (3,)}, f"{_ATTENTION}/out/kernel is (3,), expected a matrix"),
        ({f"{_BLOCK}/MlpBlock_3/Dense_0/kernel": (3,)}, "Dense_0/kernel is (3,), expected a matrix"),
        ({f"{_ATTENTION}/key/kernel": (5, 2, 16)}, f"{_ATTENTION}/key/kernel ((32, 5)), "),
        ({f"{_ATTENTION}/value/bias": (5,)}, f"{_ATTENTION}/value/bias ((5,)) must have equal shapes"),
        ({"embedding/kernel": (16, 16, 3)}, "embedding/kernel is (16, 16, 3), expected (height, width, 3, channels)"),
        ({f"{_BLOCK}/LayerNorm_0/scale": ()}, "blocks.1.norm1.weight is (), expected"),
        ({"embedding/bias": ()}, "patch_embed.proj.bias is (), expected"),
        ({"cls": ()}, "cls_token is (), expected"),
        ({"opt/target/cls": (1, 1, 48)}, "'cls' and 'opt/target/cls' become the same tensor of the trunk"),
    ],
)
def test_arrays_of_wrong_shapes_and_duplicates_are_refused(tmp_path, changes, message):
    case = ReferenceCase("segmenter/tiny-jax-augreg")
    arrays = jax_arrays(case) | {name: np.zeros(shape, np.float32) for name, shape in changes.items()}
    np.savez(tmp_path / "odd.npz", **arrays)
    backbone = SegmenterViTBackbone(read_vit(Settings(case.config["backbone"], "backbone")))
    with pytest.raises(ConversionError) as caught:
        load_pretrained_trunk(backbone, tmp_path / "odd.npz")
    assert message in str(caught.value)


def test_trunk_of_mmsegmentation(tmp_path):
    """Load a .pth file that MMSegmentation makes of an .npz file, a dict of tensors under mmseg's names."""
    case = ReferenceCase("segmenter/tiny-mask")
    weights = {
        name.removeprefix("backbone."): tensor
        for name, tensor in case.state_dict(torch.float32).items()
        if name.startswith("backbone.")
    }
    torch.save(weights, tmp_path / "vit_tiny_p16_384.pth")
    expected = convert_checkpoint(case.state_dict(torch.float32), case.config).backbone
    backbone = SegmenterViTBackbone(expected.config)
    assert load_pretrained_trunk(backbone, tmp_path / "vit_tiny_p16_384.pth") == []
    for (name, tensor), other in zip(expected.state_dict().items(), backbone.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name
    adapter = ViTAdapterBackbone(
        ViTAdapterConfig(
            pretrain_image_size=64, hidden_size=48, num_hidden_layers=4, num_attention_heads=3, use_prefix_tokens=False
        )
    )
    unused = load_pretrained_trunk(adapter, tmp_path / "vit_tiny_p16_384.pth")
    assert set(unused) == {"cls_token", "ln1.weight", "ln1.bias"}
    assert torch.equal(adapter.trunk.blocks[3].attn.qkv.weight, weights["layers.3.attn.attn.in_proj_weight"])


@pytest.mark.parametrize("name", ROWS)
def test_published_row_describes_a_model(name):
    row = ROWS[name]
    info = get_dataset_info(row["dataset"])
    processor = read_test_pipeline(row["test_pipeline"], info.reduce_zero_label)
    crop = row["crop_size"]
    assert dict(processor.size) == {"shortest_edge": crop, "longest_edge": 4 * crop} and processor.size_divisor == 0
    assert tuple(processor.image_mean) == tuple(processor.image_std) == (0.5, 0.5, 0.5)
    model, _, _ = empty_model(row["model"])
    config = model.config
    assert config.num_labels == len(info.classes)
    assert (config.window_size, config.window_stride) == ([crop, crop], [crop - 32, crop - 32])
    assert sum(parameter.numel() for parameter in model.parameters()) == row["num_parameters"]


def test_published_table():
    assert [(row["miou"], row["miou_ms"]) for row in ROWS.values()] == [
        (39.99, 40.83),
        (45.75, 46.82),
        (46.19, 47.85),
        (49.60, 51.07),
        (51.65, 53.58),
    ]
    for name, row in ROWS.items():
        assert list(row) == [*PUBLISHED_FIELDS, "model", "test_pipeline", "multi_scale_pipeline"], name
        assert row["download"].startswith("https://download.openmmlab.com/") and name in row["download"]
    assert "52.16 / 53.65" in ROWS["segmenter_vit-l_mask_8x1_640x640_160k_ade20k"]["note"]
