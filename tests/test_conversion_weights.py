# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Weights as users have them: averages, wrappers, other numbers of classes, one output for two classes, NaN."""

import json

import pytest
import torch
from reference_cases import ReferenceCase, fill
from safetensors.torch import load_file

from segtransformers.conversion import ConversionError, convert_checkpoint
from segtransformers.conversion.cli import main
from segtransformers.conversion.convert import convert_with_report

CASE = ReferenceCase("vit_adapter/tiny-vit-light-upernet")


def run(capsys, tmp_path, state_dict, *options, config=None, **more) -> tuple[int, str, str]:
    torch.save({"meta": {}, "state_dict": state_dict, **more}, tmp_path / "a.pth")
    (tmp_path / "config.json").write_text(json.dumps(config or CASE.config))
    files = ["--checkpoint", tmp_path / "a.pth", "--config", tmp_path / "config.json", "--output", tmp_path / "out"]
    status = main("vit_adapter", [str(argument) for argument in (*files, *options)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def with_averages(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Add the buffers of mmcv's EMAHook, which averages parameters only."""
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    averages = {
        f"ema_{name.replace('.', '_')}": 0.5 * tensor
        for name, tensor in state_dict.items()
        if not name.endswith(buffers)
    }
    return {**state_dict, **averages}


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "model.module."])
@pytest.mark.parametrize("ema", [False, True])
def test_averages_of_mmcv_are_kept_apart(tmp_path, capsys, ema, prefix):
    plain = CASE.state_dict(torch.float32)
    saved = {prefix + name: tensor for name, tensor in with_averages(plain).items()}
    status, printed, error = run(capsys, tmp_path, saved, *["--ema"] * ema)
    assert (status, error) == (0, "")
    assert ("ema_backbone_pos_embed and " in printed) != ema and ("averaged weights" in printed) == ema
    stored = load_file(tmp_path / "out" / "model.safetensors")
    factor = 0.5 if ema else 1.0
    assert torch.equal(stored["backbone.norms.0.weight"], factor * plain["backbone.norm1.weight"])
    assert torch.equal(stored["backbone.norms.0.running_var"], plain["backbone.norm1.running_var"])


@pytest.mark.parametrize("key", ["model_ema", "state_dict_ema"])
def test_averages_of_other_trainers(tmp_path, capsys, key):
    plain = CASE.state_dict(torch.float32)
    averages = {f"module.{name}": tensor + 1 for name, tensor in plain.items()}
    assert run(capsys, tmp_path, plain, "--ema", **{key: averages})[0] == 0
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(stored["backbone.norms.0.weight"], plain["backbone.norm1.weight"] + 1)


def test_missing_averages_are_an_error(tmp_path, capsys):
    plain = CASE.state_dict(torch.float32)
    assert "has no averaged weights: neither buffers ema_*" in run(capsys, tmp_path, plain, "--ema")[2]
    error = run(capsys, tmp_path, plain, "--ema", ema_state_dict=dict(plain))[2]
    assert "mmengine saves the averaged weights as the checkpoint's weights: leave --ema out" in error


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "student.model.module."])
def test_any_prefix_of_all_names_is_removed(prefix):
    state_dict = {prefix + name: tensor for name, tensor in CASE.state_dict().items()}
    assert convert_checkpoint(state_dict, CASE.config).config.num_labels == 5
    state_dict["other.weight"] = torch.zeros(1)
    with pytest.raises(ConversionError, match=r"does not have: .*other\.weight|and \d+ more"):
        convert_checkpoint(state_dict, CASE.config)


@pytest.mark.parametrize(
    "name",
    [
        "vit_adapter/tiny-vit-light-upernet",
        "vit_adapter/tiny-beit-mask2former",
        "internimage/tiny-l-segformer",
        "internimage/tiny-h-mask2former-slide",
        "segmenter/tiny-mask",
    ],
)
def test_number_of_classes_is_that_of_the_tensors(name, caplog):
    case = ReferenceCase(name)
    config = case.config
    expected = convert_checkpoint(case.state_dict(), case.config).config.num_labels
    for head in ("decode_head", "auxiliary_head"):
        if isinstance(config.get(head), dict):
            config[head]["num_classes"] = 150
    assert convert_checkpoint(case.state_dict(), config).config.num_labels == expected
    assert f"num_classes is 150, but the checkpoint's classifier has {expected} outputs" in caplog.text


def test_things_and_stuff_are_replaced_by_the_number_of_the_tensors():
    case = ReferenceCase("vit_adapter/tiny-beit-mask2former")
    config, head = case.config, case.config["decode_head"]
    config["decode_head"].pop("num_classes", None)
    config["decode_head"] |= {"num_things_classes": 100, "num_stuff_classes": 50}
    expected = len(case.state_dict()["decode_head.cls_embed.weight"]) - 1
    assert head["type"].endswith("Mask2FormerHead")
    assert convert_checkpoint(case.state_dict(), config).config.num_labels == expected


def binary(threshold, dtype=torch.float64) -> tuple[dict, dict]:
    """Return the state dict and config of a model with one output for two classes."""
    shapes = [
        [name, [1, *shape[1:]] if "conv_seg" in name else shape, kind]
        for name, shape, kind in CASE.manifest["state_dict"]
    ]
    config = CASE.config
    for head in ("decode_head", "auxiliary_head"):
        loss = {"type": "CrossEntropyLoss", "use_sigmoid": True}
        config[head].update(num_classes=2, out_channels=1, loss_decode=loss)
        if threshold is not None:
            config[head]["threshold"] = threshold
    return fill.state_dict(shapes, dtype), config


def test_losses_of_the_config_are_kept(caplog):
    config = CASE.config
    weights = [1.0] * (config["decode_head"]["num_classes"] - 1) + [5.0]
    config["decode_head"]["loss_decode"] = [
        {"type": "CrossEntropyLoss", "class_weight": weights, "loss_name": "loss_ce"},
        {"type": "DiceLoss", "loss_weight": 3.0, "loss_name": "loss_dice"},
    ]
    config["decode_head"]["sampler"] = {"type": "OHEMPixelSampler", "thresh": 0.7, "min_kept": 100}
    config["auxiliary_head"]["loss_decode"] = {"type": "CrossEntropyLoss", "loss_weight": 0.4}
    model = convert_checkpoint(CASE.state_dict(), config)
    assert not caplog.text
    assert model.config.losses == [
        {
            "name": "ohem_cross_entropy",
            "min_kept": 100,
            "class_weights": weights,
            "definition": "mmseg",
        },
        {"name": "dice", "weight": 3.0, "definition": "mmseg"},
    ]
    assert model.config.auxiliary_losses == [{"name": "cross_entropy", "average_over": "all_pixels"}]
    assert model.config.auxiliary_loss_weight == 0.4

    config["decode_head"]["loss_decode"] = {"type": "HausdorffLoss"}
    model = convert_checkpoint(CASE.state_dict(), config)
    assert "the loss 'HausdorffLoss' is not one of" in caplog.text and "plain cross entropy" in caplog.text
    assert model.config.losses is None


@pytest.mark.parametrize("threshold", [None, 0.3, 0.5, 0.95])
def test_one_output_with_a_threshold_becomes_two_classes(threshold):
    state_dict, config = binary(threshold)
    model, report = convert_with_report(state_dict, config)
    assert model.config.num_labels == 2 and "decode_head.conv_seg.weight" in report.changed
    assert model.config.losses is None  # softmax over the logits 0 and z is sigmoid(z)
    one = CASE.config
    for head in ("decode_head", "auxiliary_head"):
        one[head]["num_classes"] = 1
    original = convert_checkpoint(state_dict, one)
    for part in (model, original):
        part.config.inference_mode = "whole"
    pixels = CASE.pixel_values()
    with torch.no_grad():
        score, logits = original(pixels).logits[:, 0], model(pixels).logits
    limit = 0.3 if threshold is None else threshold
    assert not logits[:, 0].any()
    assert torch.equal(logits.argmax(1), (score.sigmoid() > limit).long())
    assert torch.allclose(logits[:, 1].sigmoid(), (score - torch.tensor(limit).double().logit()).sigmoid(), atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": 1.5}, "decode_head.threshold is 1.5; expected a number between 0 and 1"),
        ({"threshold": "x"}, "decode_head.threshold is 'x'"),
        ({"out_channels": 7}, "decode_head.out_channels is 7; expected num_classes, or 1 of 2 classes"),
    ],
)
def test_impossible_binary_heads_are_refused(changes, message):
    state_dict, config = binary(0.3)
    config["decode_head"] |= changes
    with pytest.raises(ConversionError, match=message):
        convert_checkpoint(state_dict, config)
    state_dict, config = CASE.state_dict(), binary(0.3)[1]
    with pytest.raises(
        ConversionError, match=r"decode_head.conv_seg.weight is 5x\w+, but decode_head.out_channels is 1"
    ):
        convert_checkpoint(state_dict, config)


def test_models_of_one_class_warn(tmp_path, capsys):
    state_dict, config = binary(None, torch.float32)
    for head in ("decode_head", "auxiliary_head"):
        config[head] |= {"num_classes": 1, "out_channels": 1}
    status, printed, _ = run(capsys, tmp_path, state_dict, config=config)
    assert status == 0 and "note: the model has one class: where the sigmoid of its logit exceeds" in printed

    for head, weight in (("decode_head", 1.0), ("auxiliary_head", 0.4)):  # constant losses, written by mistake
        config[head] |= {"loss_decode": {"type": "CrossEntropyLoss", "avg_non_ignore": True, "loss_weight": weight}}
    assert convert_checkpoint(state_dict, config).config.losses == [{"name": "binary_cross_entropy"}]


def test_tensors_with_nan_are_named(tmp_path, capsys, caplog):
    state_dict = CASE.state_dict(torch.float32)
    state_dict["backbone.norm1.weight"][3] = float("nan")
    state_dict["decode_head.conv_seg.bias"][0] = float("-inf")
    message = "NaN or infinity in 2 of its tensors, so the model may output NaN: "
    status, printed, _ = run(capsys, tmp_path, state_dict)
    names = ["backbone.norm1.weight", "decode_head.conv_seg.bias"]
    assert status == 0 and message in printed and all(name in printed for name in names)
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert sorted(record["tensors"]["not_finite"]) == names
    convert_checkpoint(state_dict, CASE.config)
    assert message in caplog.text

    for path in (tmp_path / "out").iterdir():
        path.unlink()
    status, _, error = run(capsys, tmp_path, state_dict, "--verify")
    assert status == 1 and "outputs infinity or NaN: as the checkpoint has in " in error and names[0] in error
