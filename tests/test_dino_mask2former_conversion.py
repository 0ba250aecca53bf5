# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Conversion of DINOv3's two files, of its trunk alone, and into folders without the trunk."""

import json
from pathlib import Path

import pytest
import torch
from reference_cases import ReferenceCase
from safetensors import safe_open
from test_dino_conversion import parts
from transformers import AutoModelForSemanticSegmentation

from segtransformers import PlainViTBackbone, SegMask2FormerForSemanticSegmentation
from segtransformers.conversion import ConversionError
from segtransformers.conversion.cli import main
from segtransformers.conversion.convert import empty_model
from segtransformers.conversion.converter import convert_to_folder
from segtransformers.conversion.dinov3_mask2former import TRUNK
from segtransformers.conversion.published_model import published_model
from segtransformers.datasets import get_dataset_info
from segtransformers.hub.model_card import write_model_card
from segtransformers.published import published_rows

CASE = ReferenceCase("dinov3_segmentors/tiny-m2f-vitl")
NAMES = {"dinov2": "dinov2_vitg14_ade20k_m2f", "dinov3": "dinov3_vit7b16_ade20k_m2f"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    head, trunk = parts(CASE, TRUNK)
    torch.save(head, folder / "head.pth")
    torch.save(trunk, folder / "trunk.pth")
    # the recorded trunk is narrower than any of the released ones, whose heads have 64 channels
    config = {**CASE.config, "backbone": {"num_heads": 2}}
    (folder / "config.json").write_text(json.dumps(config))
    return {path.stem: str(path) for path in folder.iterdir()}


def load(folder, **options):
    return AutoModelForSemanticSegmentation.from_pretrained(folder, dtype=torch.float64, **options).eval()


def names_in(folder) -> set[str]:
    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as opened:
            names |= set(opened.keys())
    return names


def test_adapter_and_trunk_of_dinov3(files, tmp_path, capsys):
    arguments = ["--checkpoint", files["head"], "--trunk-weights", files["trunk"], "--config", files["config"]]
    assert main("dinov3", [*arguments, "--output", str(tmp_path / "out"), "--max-shard-size", "4MB", "--verify"]) == 0
    assert "verified: relative error" in capsys.readouterr().out
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    CASE.check(load(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "dinov3" in card and "trunk_from" not in card


def test_the_numbers_follow_from_the_tensors(files, tmp_path):
    convert_to_folder(files["head"], tmp_path / "out", "dinov3", trunk_weights=files["trunk"])
    config = load(tmp_path / "out").config
    assert (config.num_labels, config.hidden_dim, config.resize_mask_logits) == (5, 32, True)
    assert (config.window_size, config.window_stride) == ([896, 896], [596, 596])
    assert config.backbone_config.interaction_indexes == [[0, 4], [5, 11], [12, 17], [18, 23]]


def test_the_trunk_is_left_out_and_put_back(files, tmp_path, monkeypatch):
    """The head's folder names the trunk's, which is converted from the authors' file alone."""
    monkeypatch.chdir(tmp_path)
    convert_to_folder(files["trunk"], tmp_path / "trunk", "dinov3", dtype=torch.float64)
    trunk = PlainViTBackbone.from_pretrained(tmp_path / "trunk")
    assert trunk.config.trunk == "vit_base_patch16_dinov3_qkvb" and trunk.config.num_hidden_layers == 24
    conversion = convert_to_folder(
        files["head"],
        tmp_path / "head",
        "dinov3",
        config=files["config"],
        trunk_weights=files["trunk"],
        separate_trunk="trunk",
    )
    names = names_in(tmp_path / "head")
    assert conversion.tensors_checked == len(names) and not any("trunk" in name for name in names)
    CASE.check(load(tmp_path / "head"))
    loaded = load(tmp_path / "head", trunk_from=tmp_path / "trunk")
    loaded.save_pretrained(tmp_path / "whole", include_trunk=True)
    (tmp_path / "trunk").rename(tmp_path / "elsewhere")
    CASE.check(load(tmp_path / "whole"))
    with pytest.raises(OSError, match=r"holds no weights of its trunk, which are 'trunk'.*pass trunk_from="):
        load(tmp_path / "head")
    write_model_card(tmp_path / "head")
    assert "They are loaded from `trunk`;" in (tmp_path / "head" / "README.md").read_text()


def test_runs_in_half_precision_with_parts_on_the_disk(files, tmp_path):
    convert_to_folder(
        files["head"],
        tmp_path / "out",
        "dinov3",
        config=files["config"],
        trunk_weights=files["trunk"],
        dtype=torch.bfloat16,
        max_shard_size="1MB",
    )
    whole = SegMask2FormerForSemanticSegmentation.from_pretrained(tmp_path / "out", dtype="auto").eval()
    model = SegMask2FormerForSemanticSegmentation.from_pretrained(
        tmp_path / "out",
        dtype="auto",
        device_map="auto",
        max_memory={"cpu": 6_000_000},
        offload_folder=tmp_path / "offload",
    ).eval()
    assert model.dtype == torch.bfloat16 and set(model.hf_device_map.values()) == {"cpu", "disk"}
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(model(images).logits, whole(images).logits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("head", None), "has a head without its backbone, .* --trunk-weights"),
        (("trunk", "head"), "is no backbone of dinov3.*--checkpoint takes the head"),
    ],
)
def test_files_in_the_wrong_place_are_named(files, tmp_path, arguments, message):
    checkpoint, trunk = (name and files[name] for name in arguments)
    with pytest.raises(ConversionError, match=message):
        convert_to_folder(checkpoint, tmp_path / "out", "dinov3", trunk_weights=trunk)
    assert not (tmp_path / "out").exists()


def test_an_adapter_on_another_trunk_is_named(files, tmp_path):
    _, other = parts(ReferenceCase("dinov3_segmentors/tiny-m2f-7b"), TRUNK)
    torch.save(other, tmp_path / "other.pth")
    with pytest.raises(
        ConversionError, match="adapter has 32 channels, but the backbone has 64: pass the backbone's file"
    ):
        convert_to_folder(files["head"], tmp_path / "out", "dinov3", trunk_weights=str(tmp_path / "other.pth"))


def test_a_damaged_file_is_known_by_its_name(files, tmp_path):
    path = tmp_path / "dinov3_vits16_pretrain_lvd1689m-08c60483.pth"
    path.write_bytes(Path(files["trunk"]).read_bytes())
    with pytest.raises(ConversionError, match=r"should begin with the digits in its name, 08c60483: it is damaged"):
        convert_to_folder(str(path), tmp_path / "out", "dinov3")


def test_verify_needs_the_trunk(files, tmp_path):
    with pytest.raises(ConversionError, match="--separate-trunk makes impossible"):
        convert_to_folder(files["head"], tmp_path / "out", "dinov3", verify=True, separate_trunk="x")


@pytest.mark.parametrize("family", NAMES)
def test_published_rows(family):
    row = published_rows(family)[NAMES[family]]
    model, _, _ = empty_model(row["model"])
    missing = row["num_parameters"] - sum(parameter.numel() for parameter in model.parameters())
    # mask_token and local_cls_norm of DINOv3, for pre-training
    assert missing == (3 * 4096 if family == "dinov3" else 0)
    info = get_dataset_info(row["dataset"])
    assert model.config.num_labels == len(info.classes) == 150
    assert model.config.window_size == [896, 896]
    assert row["config_status"] and row["note"]


def test_the_card_names_dinov3s_own_licence(files, tmp_path, monkeypatch):
    row = {**published_rows("dinov3")[NAMES["dinov3"]], "model": {**CASE.config, "backbone": {"num_heads": 2}}}
    monkeypatch.setitem(published_rows("dinov3"), "stand_in", row)
    monkeypatch.setattr("segtransformers.conversion.converter.name_classes", lambda *arguments: "no names")
    convert_to_folder(files["head"], tmp_path / "out", "dinov3", config="stand_in", trunk_weights=files["trunk"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: other\nlicense_name: dinov3-license\nlicense_link: https://ai.meta.com/" in card
    assert "Weights: dinov3-license, the licence of" in card and "62.6 | 63.0" in card


def test_gated_files_are_asked_for(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with pytest.raises(
        ConversionError, match=r"open https://ai.meta.com/.* --checkpoint FILE` with `--trunk-weights FILE`"
    ):
        published_model(NAMES["dinov3"])
