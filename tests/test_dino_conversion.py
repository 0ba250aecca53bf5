# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Conversion of heads that DINOv2 and DINOv3 publish or save without their backbone: two files become one folder."""

import io
import json

import pytest
import torch
from reference_cases import ReferenceCase, fill, relative_error
from test_download import authority, server  # noqa: F401
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from segtransformers import published_model
from segtransformers.cache import downloads_folder
from segtransformers.conversion import ConversionError, convert_checkpoint
from segtransformers.conversion.cli import main
from segtransformers.conversion.convert import empty_model
from segtransformers.conversion.converter import convert_to_folder
from segtransformers.published import PUBLISHED_FIELDS, published_rows, trunk_addresses

ROWS = {name: row for name, row in published_rows("dinov2").items() if not name.endswith("_m2f")}
DINOV2 = ReferenceCase("dinov2_segmentors/tiny-linear")
DINOV3 = ReferenceCase("dinov3_segmentors/tiny-linear-last")
DINOV3_TRUNK = "segmentation_model.0.feature_model."


def parts(case: ReferenceCase, prefix: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return head and backbone as they are in two files. Buffers that follow from the config have other values."""
    tensors = fill.state_dict(case.manifest["state_dict"], torch.float64)
    head = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    return head, {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@pytest.fixture
def files(tmp_path):
    """The files of a DINOv2 head, its backbone and its config, and of a DINOv3 probe with its backbone."""
    head, trunk = parts(DINOV2, "backbone.")
    torch.save({"state_dict": head, "meta": DINOV2.manifest["meta"]}, tmp_path / "head.pth")
    torch.save(trunk, tmp_path / "trunk.pth")
    config = DINOV2.config
    config["backbone"] = {name: config["backbone"][name] for name in ("type", "out_indices", "num_heads")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    head, trunk = parts(DINOV3, DINOV3_TRUNK)
    torch.save({"model": head, "optimizer": {}}, tmp_path / "probe.pth")
    torch.save(trunk, tmp_path / "dinov3.pth")
    return {path.stem: str(path) for path in tmp_path.iterdir()}


def assert_equals(folder, case: ReferenceCase) -> None:
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, dtype=torch.float64).eval()
    with torch.no_grad():
        logits = model(case.pixel_values(), sliding_window=False).logits
    found = case.sampled("segmentation_logits", logits)
    assert relative_error(found, case.outputs()["segmentation_logits"]) < 2e-6


def test_head_and_backbone_of_dinov2(files, tmp_path, capsys):
    arguments = ["--checkpoint", files["head"], "--trunk-weights", files["trunk"], "--config", files["config"]]
    assert main("dinov2", [*arguments, "--output", str(tmp_path / "out"), "--verify"]) == 0
    assert "97 used, 1 unused" in capsys.readouterr().out
    assert_equals(tmp_path / "out", DINOV2)
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert record["source"]["file"] == "head.pth" and record["source"]["trunk"]["file"] == "trunk.pth"
    assert "tags:\n- semantic-segmentation\n- segtransformers\n- dinov2" in (tmp_path / "out" / "README.md").read_text()


def test_a_probe_of_dinov3_needs_no_config(files, tmp_path):
    """Everything follows from the tensors; the protocol is that of the repository, with Pillow's resize."""
    convert_to_folder(files["probe"], tmp_path / "out", "dinov3", trunk_weights=files["dinov3"])
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out", dtype=torch.float64)
    assert (model.config.window_size, model.config.window_stride) == ([512, 512], [341, 341])
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert processor.resize_method == "pillow" and dict(processor.size)["shortest_edge"] == 512
    backbone = model.config.backbone_config
    assert backbone.trunk == "vit_huge_plus_patch16_dinov3_qkvb" and backbone.padding == "none"
    # the tiny trunk has four heads, the tensors of a released one would show the number
    assert backbone.num_attention_heads == 1
    backbone_arguments = {"num_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps({**DINOV3.config, "backbone": backbone_arguments}))
    convert_to_folder(
        files["probe"], tmp_path / "four", "dinov3", config=str(tmp_path / "config.json"), trunk_weights=files["dinov3"]
    )
    assert_equals(tmp_path / "four", DINOV3)


@pytest.mark.parametrize(
    ("family", "arguments", "message"),
    [
        ("dinov2", ("head", None, "config"), "head without its backbone, .* dinov2_vits14_pretrain.pth"),
        ("dinov3", ("probe", None, None), "head without its backbone, .* give on request"),
        ("dinov2", ("trunk", "head", "config"), "is no backbone of dinov2.*--checkpoint takes the head"),
        ("dinov2", ("head", "dinov3", "config"), "is a backbone of dinov3, expected one of dinov2"),
        ("dinov3", ("probe", "trunk", None), "is a backbone of dinov2, expected one of dinov3"),
        ("segmenter", ("head", "trunk", "config"), "leave it out"),
        ("dinov2", ("head", "nowhere.pth", "config"), "neither a file nor a published config"),
    ],
)
def test_wrong_files_are_refused(files, tmp_path, family, arguments, message):
    checkpoint, trunk, config = (name and files.get(name, name) for name in arguments)
    with pytest.raises(ConversionError, match=message):
        convert_to_folder(checkpoint, tmp_path / "out", family, config=config, trunk_weights=trunk)
    assert not (tmp_path / "out").exists()


def test_names_of_another_data_set_are_refused(files, tmp_path):
    with pytest.raises(ConversionError, match="has 7 outputs, but there are 150 names of ade20k"):
        convert_to_folder(
            files["head"],
            tmp_path / "out",
            "dinov2",
            config=files["config"],
            trunk_weights=files["trunk"],
            dataset="ade20k",
        )


def test_a_whole_checkpoint_needs_no_second_file(files, tmp_path):
    torch.save(fill.state_dict(DINOV2.manifest["state_dict"], torch.float64), tmp_path / "whole.pth")
    convert_to_folder(str(tmp_path / "whole.pth"), tmp_path / "out", "dinov2", config=files["config"])
    assert_equals(tmp_path / "out", DINOV2)
    with pytest.raises(ConversionError, match="holds its backbone already: leave --trunk-weights out"):
        convert_to_folder(
            str(tmp_path / "whole.pth"),
            tmp_path / "again",
            "dinov2",
            config=files["config"],
            trunk_weights=files["trunk"],
        )


def saved(tensors) -> bytes:
    file = io.BytesIO()
    torch.save(tensors, file)
    return file.getvalue()


def test_a_name_downloads_both_files(server, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    head, trunk = parts(DINOV2, "backbone.")
    server.files["/tiny_head.pth"], server.files["/tiny_pretrain.pth"] = saved({"state_dict": head}), saved(trunk)
    real = ROWS["dinov2_vits14_voc2012_linear"]
    row = {**real, "model": DINOV2.config, "download": f"{server.url}/tiny_head.pth"}
    row |= {"trunk_download": f"{server.url}/tiny_pretrain.pth", "dataset": "voc2012"}
    row["model"]["decode_head"]["num_classes"] = 7
    name = "dinov2_stand_in_voc2012_linear"
    monkeypatch.setitem(published_rows("dinov2"), name, row)
    monkeypatch.setattr("segtransformers.conversion.converter.name_classes", lambda *arguments: "no names")
    folder = published_model(name)
    assert_equals(folder, DINOV2)
    assert "licence apache-2.0" in capsys.readouterr().err
    assert [path for path in downloads_folder().iterdir() if not path.name.startswith(".")] == []
    processor = AutoImageProcessor.from_pretrained(folder)
    assert dict(processor.size)["shortest_edge"] == 512 and not dict(processor.size).get("longest_edge")
    assert not processor.do_reduce_labels


def test_published_table_is_complete():
    assert len(ROWS) == 16
    for name, row in ROWS.items():
        fields = [*PUBLISHED_FIELDS, "model", "test_pipeline", "multi_scale_pipeline", "trunk_download"]
        assert list(row) == [*fields, "config_status"], name
        size = name.split("_")[1]
        (trunk,) = trunk_addresses(row)
        assert trunk.endswith(f"dinov2_{size}/dinov2_{size}_pretrain.pth")
        assert row["download"].endswith(f"dinov2_{size}/{name}_head.pth")
        assert row["config_status"] and row["note"]
        assert (row["miou"] is None) == name.endswith("_ms") == (row["miou_ms"] is not None)
        assert row["model"]["decode_head"]["num_classes"] == (21 if row["dataset"] == "voc2012" else 150)


@pytest.mark.parametrize("name", [name for name in ROWS if name.endswith("ade20k_ms")])
def test_published_models_have_the_published_sizes(name):
    model, _, _ = empty_model(ROWS[name]["model"])
    unused = model.config.backbone_config.hidden_size  # mask_token, for pre-training
    assert sum(parameter.numel() for parameter in model.parameters()) + unused == ROWS[name]["num_parameters"]
    assert model.config.inference_mode == "slide" and model.config.window_size == [640, 640]


@pytest.mark.parametrize(
    ("name", "change", "config", "message"),
    [
        ("dinov2", {"backbone.pos_embed": torch.zeros(1, 7, 48)}, {}, "pos_embed is 1x7x48, expected one position for"),
        ("dinov2", {"backbone.register_tokens": torch.zeros(4)}, {}, "'register_tokens' is 4, expected 3 dimensions"),
        ("dinov2", {"backbone.patch_embed.proj.weight": torch.zeros(4)}, {}, "expected 4 dimensions"),
        ("dinov2", {}, {"backbone": {"out_indices": "all"}}, "out_indices is 'all'; expected a list"),
        ("dinov2", {}, {"backbone": {"mlp_ratio": "wide"}}, "impossible model|mlp_ratio"),
        ("dinov2", {}, {"decode_head": {"in_channels": 48}}, "in_channels is 48; expected a list"),
        ("dinov2", {}, {"decode_head": {"input_transform": "multiple_select"}}, "input_transform"),
        ("dinov2", {}, {"decode_head": {"resize_factors": [0]}}, "must be positive"),
        ("dinov3", {}, {"backbone": [1]}, "backbone is .1.; expected a dict"),
        ("dinov3", {}, {"backbone_out_layers": "SOME"}, "backbone_out_layers is 'SOME'; known are LAST"),
        ("dinov3", {}, {"decoder_type": "dpt"}, "decoder_type is 'dpt'; known types are linear"),
        ("dinov3", {}, {"backbone": {"pos_embed_rope_base": 10}}, "pos_embed_rope_base"),
        ("dinov3", {f"{DINOV3_TRUNK}blocks.0.attn.qkv.bias": torch.zeros(4)}, {}, "expected one bias for each query"),
    ],
)
def test_damaged_files_and_configs_are_named(name, change, config, message):
    case = DINOV2 if name == "dinov2" else DINOV3
    tensors = {**fill.state_dict(case.manifest["state_dict"], torch.float64), **change}
    original = case.config
    if name == "dinov2":
        original["backbone"] = {key: original["backbone"][key] for key in ("type", "out_indices", "num_heads")}
    for part, settings in config.items():
        is_change = isinstance(settings, dict) and isinstance(original.get(part), dict)
        original[part] = {**original[part], **settings} if is_change else settings
    with pytest.raises(ConversionError, match=message):
        convert_checkpoint(tensors, original)
