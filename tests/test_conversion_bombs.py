# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Configs that would grow when they are read are refused in one line, before they grow."""

import json
import time

import pytest
import torch
from reference_cases import ReferenceCase

from segtransformers.conversion import ConversionError, convert_checkpoint
from segtransformers.conversion.cli import main
from segtransformers.conversion.config_text import DEEPEST, parse_config, parse_variant
from segtransformers.conversion.protocol import read_test_pipeline

CASE = ReferenceCase("vit_adapter/tiny-vit-light-upernet")
VIT = ReferenceCase("segmenter/tiny-mask")
MASK = ReferenceCase("vit_adapter/tiny-beit-mask2former")


@pytest.fixture(autouse=True)
def quickly():
    start = time.monotonic()
    yield
    assert time.monotonic() - start < 30  # seconds, on a busy machine


def laughs(assign: str, reference: str, opening: str, closing: str) -> str:
    """Return variables of which each refers ten times to the previous one."""
    lines = [assign.format(0) + f"{opening}1{closing}"]
    for index in range(1, 12):
        lines.append(assign.format(index) + opening + ",".join([reference.format(index - 1)] * 10) + closing)
    return "\n".join(lines)


PYTHON = [
    laughs("a{} = ", "a{}", "[", "]") + "\nmodel = dict(type='EncoderDecoder', backbone=a11)",
    laughs("a{} = ", "a{}", "(", ",)") + "\nmodel = a11",
    laughs("a{} = ", "dict(x=a{})", "[", "]") + "\nmodel = a11",
    "model = " + "[" * 150 + "]" * 150,
    "model = " + "dict(a=" * 150 + "1" + ")" * 150,
    "a = [b]\nb = [a]\nmodel = b",
    "model = [" + "1," * 200_000 + "]",
    "model = " + "9" * 5000,
    "#" * 2**21,
    "model = a" + ".b" * 50_000,
    "model = " + "not " * 50_000 + "1",
    "model = " + "1+" * 50_000 + "1",
    "model = 'x" * 30_000,
    "model = {" + "{" * 90,
    "\x1b[31mmodel = open('x')",
    "model = \x00",
]
VARIANTS = [
    laughs("a{}: &a{} ".replace("{}", "{0}"), "*a{}", "[", "]") + "\nnet_kwargs: *a11",
    "net_kwargs: &x\n  a: *x\n",
    "net_kwargs: &x [*x]\n",
    "net_kwargs: {<<: &x {<<: *x}}\n",
    "net_kwargs: " + "[" * 5000 + "]" * 5000,
    "net_kwargs: " + "- " * 5000,
    "net_kwargs: {a: &a {b: 1}, " + ",".join(f"c{i}: {{<<: [{'*a,' * 900}]}}" for i in range(120)) + "}",
    "net_kwargs: " + "1:" * 40_000 + "1\n" + "x: " + "a" * 30_000,
    "x" * 10**6,
    "net_kwargs: !!python/object/apply:os.system ['x']",
    "net_kwargs: !!binary '" + "A" * 10 + "'\n",
    "? [a, b]\n: c",
    "? {a: b}\n: c",
    "net_kwargs: 2021-13-45",
    "%YAML 9.9\n---\na",
    "a: *missing",
    "a: \x1b[2J",
]


@pytest.mark.parametrize("text", PYTHON)
def test_python_texts_are_refused(text):
    with pytest.raises(ConversionError) as caught:
        parse_config(text, ["model"])
    assert len(str(caught.value)) < 600 and str(caught.value).isprintable()


@pytest.mark.parametrize("text", VARIANTS)
def test_variants_are_refused_or_small(text):
    try:
        value = parse_variant(text)
    except ConversionError as error:
        assert len(str(error)) < 600 and str(error).isprintable()
    else:
        assert len(repr(value)) < 10**6


def test_configs_of_normal_size_are_read():
    deep = "model = " + "[" * (DEEPEST - 1) + "]" * (DEEPEST - 1)
    assert parse_config(deep, ["model"])["model"]
    shared = "a = dict(x=[1, 2])\nmodel = dict(type='A', one=a, other=a, more=[a] * 1)".replace("[a] * 1", "[a, a]")
    assert parse_config(shared, ["model"])["model"]["more"] == [{"x": [1, 2]}] * 2
    assert parse_variant("a: &a [1]\nb: *a\nc: {<<: {d: 1}}") == {"a": [1], "b": [1], "c": {"d": 1}}


NORMALIZE = {"type": "Normalize", "mean": [1, 2, 3], "std": [1, 2, 3], "to_rgb": True}
AUGMENT = {"type": "MultiScaleFlipAug", "img_scale": (2048, 512)}


@pytest.mark.parametrize(
    "step",
    [
        {**NORMALIZE, "std": "abc"},
        {**NORMALIZE, "std": 0},
        {**NORMALIZE, "std": [0, 0, 0]},
        {**NORMALIZE, "std": [float("nan")] * 3},
        {**NORMALIZE, "mean": [1]},
        {**NORMALIZE, "mean": None},
        {**NORMALIZE, "mean": [[1], 2, 3]},
        {**AUGMENT, "img_ratios": 5},
        {**AUGMENT, "img_ratios": ["a"]},
        {**AUGMENT, "img_ratios": [1.0] * 10**4},
        {**AUGMENT, "img_ratios": [1.0], "flip": "x"},
        {**AUGMENT, "transforms": 5},
        {"type": "SETR_Resize", "scale": (64, 64), "crop_size": "x", "setr_multi_scale": True},
        {"type": "SETR_Resize", "scale": (64, 64), "crop_size": [], "setr_multi_scale": True},
        {"type": "Resize", "scale": (10**9, 0)},
        {"type": "Resize", "scale": (True, False)},
        {"type": "ResizeToMultiple", "size_divisor": "a"},
        {"type": "ResizeToMultiple", "size_divisor": -1},
        {"type": "PadShortSide", "size": 10**9},
        {"type": "PadShortSide", "size": "x"},
        {"type": ["x"]},
    ],
)
def test_nonsense_in_a_test_pipeline_is_refused(step):
    with pytest.raises(ConversionError) as caught:
        read_test_pipeline([step], False)
    assert len(str(caught.value)) < 600 and str(caught.value).isprintable()


HUGE = 10**9
NUMBERS = [
    (CASE, "backbone", {"interaction_indexes": [[0, HUGE]]}),
    (CASE, "backbone", {"interaction_indexes": [[0, HUGE - 1]], "depth": HUGE}),
    (CASE, "backbone", {"interaction_indexes": [[0, 1000 * 1000]]}),
    (CASE, "backbone", {"depth": 10**6}),
    (CASE, "backbone", {"embed_dim": 10**7, "num_heads": 10**7}),
    (CASE, "backbone", {"window_attn": True, "window_size": 14, "depth": 10**8}),
    (CASE, "backbone", {"embed_dim": 10**300}),
    (CASE, "backbone", {"conv_inplane": 10**7}),
    (CASE, "backbone", {"n_points": 10**7}),
    (CASE, "decode_head", {"pool_scales": [1] * 90_000}),
    (CASE, "decode_head", {"pool_scales": [1] * 200_000}),
    (CASE, "decode_head", {"pool_scales": [HUGE]}),
    (CASE, "decode_head", {"num_classes": 10**7}),
    (CASE, "decode_head", {"channels": 10**7}),
    (CASE, "decode_head", {"in_channels": [48] * 90_000}),
    (CASE, "auxiliary_head", {"num_convs": 10**7}),
    (VIT, "backbone", {"num_layers": 10**6}),
    (VIT, "backbone", {"img_size": 10**7}),
    (VIT, "decode_head", {"num_layers": 10**6}),
    (VIT, "decode_head", {"num_classes": 10**6}),
    (MASK, "decode_head", {"num_queries": 10**7}),
    (MASK, "decode_head", {"num_classes": 10**7}),
    (MASK, "decode_head", {"num_things_classes": 10**7}),
    (ReferenceCase("internimage/tiny-t-upernet"), "backbone", {"depths": [HUGE, 1, 1, 1]}),
    (ReferenceCase("internimage/tiny-t-upernet"), "backbone", {"depths": [1] * 90_000}),
    (ReferenceCase("internimage/tiny-t-upernet"), "backbone", {"out_indices": [0] * 90_000}),
]


@pytest.mark.parametrize(("case", "part", "changes"), NUMBERS)
def test_huge_numbers_are_refused(case, part, changes):
    config = case.config
    config[part] |= changes
    if "num_classes" in changes and isinstance(config.get("auxiliary_head"), dict):
        config["auxiliary_head"]["num_classes"] = changes["num_classes"]
    state_dict = {} if "num_classes" in changes or "num_things_classes" in changes else case.state_dict(torch.float32)
    with pytest.raises(ConversionError) as caught:
        convert_checkpoint(state_dict, config)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    "text",
    [
        '{"model":{"type":"EncoderDecoder","x":' + "[" * 900 + "]" * 900 + "}}",
        '{"model":{"type":"EncoderDecoder","x":' + '{"a":' * 900 + "1" + "}" * 900 + "}}",
        "[" * 10**5,
        '{"model":{"type":"EncoderDecoder","x":[' + "1," * 200_000 + "1]}}",
        '{"model":{"type":"\\u001b[31m' + "x" * 5000 + '"}}',
        '{"model":{"type":"EncoderDecoder"}}' + " " * 2**21,
    ],
)
def test_json_files_are_refused(tmp_path, capsys, text):
    (tmp_path / "config.json").write_text(text)
    torch.save({"state_dict": {"a": torch.ones(2)}}, tmp_path / "a.pth")
    arguments = ["--checkpoint", tmp_path / "a.pth", "--config", tmp_path / "config.json", "--output", tmp_path / "out"]
    status, error = main("vit_adapter", list(map(str, arguments))), capsys.readouterr().err
    assert status == 1 and error.startswith("error: ") and error.count("\n") == 1
    assert len(error) < 1000 and error.rstrip("\n").isprintable()


@pytest.mark.parametrize("text", [PYTHON[0], PYTHON[5], "model = " + json.dumps({"type": "\x1b" * 5000})])
def test_configs_in_checkpoints_are_refused(tmp_path, capsys, text):
    torch.save({"state_dict": {"a": torch.ones(2)}, "meta": {"config": text}}, tmp_path / "a.pth")
    arguments = ["--checkpoint", tmp_path / "a.pth", "--output", tmp_path / "out"]
    status, error = main("vit_adapter", list(map(str, arguments))), capsys.readouterr().err
    assert status == 1 and error.count("\n") == 1 and len(error) < 1000 and error.rstrip("\n").isprintable()
