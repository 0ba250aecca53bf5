# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Conversion of InternImage's checkpoints, and the table of the published ones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from reference_cases import ReferenceCase, fill, relative_error
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, PreTrainedConfig

from segtransformers import InternImageBackbone, SegUperNetForSemanticSegmentation
from segtransformers.conversion import ConversionError
from segtransformers.conversion.cli import main
from segtransformers.conversion.convert import empty_model
from segtransformers.conversion.protocol import read_test_pipeline
from segtransformers.datasets import get_dataset_info
from segtransformers.published import PUBLISHED_FIELDS, published_outputs, published_rows

SCRIPT = Path(__file__).parent.parent / "conversion_scripts" / "convert_internimage.py"
ROWS = published_rows("internimage")


def convert(capsys, *arguments) -> tuple[int, str, str]:
    """Run the script in this process; return the exit status, stdout and stderr."""
    status = main("internimage", [str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_script_runs_from_the_command_line(tmp_path):
    case = ReferenceCase("internimage/tiny-l-segformer")
    torch.save({"meta": case.manifest["meta"], "state_dict": case.state_dict(torch.float32)}, tmp_path / "original.pth")
    (tmp_path / "config.json").write_text(json.dumps(case.config))
    arguments = ["--checkpoint", "original.pth", "--config", "config.json", "--output", "converted"]
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "SegSegformerForSemanticSegmentation" in done.stdout and "7 classes" in done.stdout
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "converted").double()
    with torch.no_grad():
        logits = case.sampled("segmentation_logits", model(case.pixel_values()).logits)
    assert relative_error(logits, case.outputs()["segmentation_logits"]) < 1e-6


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_classifier_from_the_hub_becomes_a_backbone(tmp_path, capsys, suffix):
    case = ReferenceCase("internimage/tiny-hub-t")
    file = tmp_path / f"model.{suffix}"
    state_dict = case.state_dict(torch.float32)
    if suffix == "bin":
        torch.save(state_dict, file)
    else:
        save_file({name: tensor.contiguous().clone() for name, tensor in state_dict.items()}, file)
    (tmp_path / "config.json").write_text(json.dumps(case.config))
    arguments = ["--checkpoint", file, "--config", tmp_path / "config.json", "--output", tmp_path / "converted"]
    status, printed, error = convert(capsys, *arguments)
    assert (status, error) == (0, "") and "InternImageBackbone" in printed and "a backbone without a head" in printed

    backbone = InternImageBackbone.from_pretrained(tmp_path / "converted").double()
    with torch.no_grad():
        feature_maps = backbone(case.pixel_values()).feature_maps
    for level, feature_map in enumerate(feature_maps):
        expected = case.outputs()[f"feature_{level}"]
        assert relative_error(case.sampled(f"feature_{level}", feature_map), expected) < 1e-6
    model = SegUperNetForSemanticSegmentation.from_pretrained(tmp_path / "converted", num_labels=3).double().eval()
    with torch.no_grad():
        for feature_map, other in zip(model.backbone(case.pixel_values()).feature_maps, feature_maps, strict=True):
            torch.testing.assert_close(feature_map, other)
    AutoImageProcessor.from_pretrained(tmp_path / "converted")


def test_fields_of_transformers_in_a_hub_config_are_ignored():
    config = ReferenceCase("internimage/tiny-hub-t").config
    expected = empty_model(config)[0].config.to_dict()
    config |= PreTrainedConfig(num_labels=10, problem_type="multi_label_classification", return_dict=False).to_dict()
    config |= {"model_type": "internimage", "dtype": "float16", "initializer_range": 0.02, "output_attentions": True}
    assert config["id2label"] and empty_model(config)[0].config.to_dict() == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"surprise": 1}, "unknown settings: surprise"),
        ({"use_cache": True}, "unknown settings: use_cache"),
        *(
            ({"out_indices": stages}, f"backbone.out_indices is {stages!r}; expected a list of stages from 0 to 3")
            for stages in ([], [True], [[0], [1]], [0, 4], [0.0], None, 3, "0123")
        ),
    ],
)
def test_invalid_configs_are_refused(changes, message):
    with pytest.raises(ConversionError) as caught:
        empty_model(ReferenceCase("internimage/tiny-hub-t").config | changes)
    assert message in str(caught.value)


def test_damaged_safetensors_file_is_refused(tmp_path, capsys):
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    (tmp_path / "config.json").write_text(json.dumps(ReferenceCase("internimage/tiny-hub-t").config))
    arguments = ["--checkpoint", tmp_path / "model.safetensors", "--config", tmp_path / "config.json"]
    status, _, error = convert(capsys, *arguments, "--output", tmp_path / "converted")
    assert status == 1 and "is damaged or not a safetensors file" in error and error.count("\n") == 1


def test_config_of_a_segmentor_also_describes_its_classifier(tmp_path, capsys):
    """For example `--config upernet_internimage_t_512_160k_ade20k` for internimage_t_1k_224.pth."""
    case = ReferenceCase("internimage/tiny-hub-t")
    torch.save({"model": {k.removeprefix("model."): v for k, v in case.state_dict().items()}}, tmp_path / "file.pth")
    config = ReferenceCase("internimage/tiny-plain-upernet").config
    (tmp_path / "config.json").write_text(json.dumps(config))
    arguments = ["--checkpoint", tmp_path / "file.pth", "--config", tmp_path / "config.json"]
    status, printed, error = convert(capsys, *arguments, "--output", tmp_path / "converted")
    assert (status, error) == (0, "") and "InternImageBackbone" in printed


@pytest.mark.parametrize(("outputs", "names"), [(19, 19), (150, 19), (19, 66)])
def test_published_checkpoint_whose_names_do_not_match_its_outputs(tmp_path, capsys, monkeypatch, outputs, names):
    """Cityscapes configs have 150 outputs; a Mapillary checkpoint has 66 names, but the outputs are of Cityscapes."""
    case, name = ReferenceCase("internimage/tiny-t-upernet"), "upernet_internimage_t_512x1024_160k_cityscapes"
    model = case.config
    for head in ("decode_head", "auxiliary_head"):
        model[head]["num_classes"] = ROWS[name]["model"][head]["num_classes"]
    row = {**ROWS[name], "model": model}
    monkeypatch.setattr("segtransformers.conversion.converter.published_rows", lambda family: {name: row})
    state_dict = fill.state_dict(
        [
            [key, [outputs, *shape[1:]] if "conv_seg" in key else shape, dtype]
            for key, shape, dtype in case.manifest["state_dict"]
        ],
        torch.float32,
    )
    meta = {"CLASSES": [f"c{index}" for index in range(names)]}
    torch.save({"meta": meta, "state_dict": state_dict}, tmp_path / "original.pth")
    arguments = ["--checkpoint", tmp_path / "original.pth", "--config", name, "--output", tmp_path / "converted"]
    status, printed, _ = convert(capsys, *arguments)
    assert status == 0 and f"{outputs} classes" in printed
    config = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "converted").config
    assert len(config.id2label) == outputs
    assert config.id2label[18] == ("c18" if names == outputs else "bicycle")
    if outputs == 150:
        assert config.id2label[19] == "unused 19" and config.palette[18:21] == [[119, 11, 32], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("name", ROWS)
def test_published_row_describes_a_model(name):
    row = ROWS[name]
    info = get_dataset_info(row["dataset"])
    outputs = published_outputs(row)
    assert outputs == len(info.classes) or (outputs == 150 and row["dataset"] == "cityscapes" and row["note"])
    processor = read_test_pipeline(row["test_pipeline"], info.reduce_zero_label)
    is_rounded = row["dataset"] != "cityscapes" or name.startswith("mask2former")
    assert processor.size_divisor == (32 if is_rounded else 0)
    assert dict(processor.size).keys() == {"shortest_edge", "longest_edge"}
    assert processor.do_normalize and processor.image_mean[0] == pytest.approx(0.485)
    model, _, _ = empty_model(row["model"])
    assert model.config.num_labels == outputs
    assert sum(parameter.numel() for parameter in model.parameters()) == row["num_parameters"]
    if row["parameters"] is not None:
        number, unit = float(row["parameters"][:-1]), {"M": 1e6, "B": 1e9}[row["parameters"][-1]]
        assert number * unit == pytest.approx(row["num_parameters"], rel=0.03)


def test_published_table():
    assert len(ROWS) == 28
    for name, row in ROWS.items():
        assert list(row) == [*PUBLISHED_FIELDS, "model", "test_pipeline", "multi_scale_pipeline"]
        assert row["num_parameters"] > 5e7
        if row["miou"] is not None:
            assert 40 < row["miou"] < 90 and (row["miou_ms"] is None or row["miou"] < row["miou_ms"] < 90)
        assert (row["download"] is None) == (name == "upernet_internimage_g_896_160k_ade20k")
    assert (
        ROWS["upernet_internimage_t_512_160k_ade20k"]["miou"],
        ROWS["mask2former_internimage_h_480_40k_nyu"]["miou"],
    ) == (
        47.9,
        67.1,
    )
