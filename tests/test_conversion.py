# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Conversion scripts: valid checkpoints, and every kind of invalid file, config and option."""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tarfile
import types
import zipfile
from pathlib import Path

import numpy
import pytest
import torch
from reference_cases import ReferenceCase, relative_error
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
from typer.testing import CliRunner

from segtransformers.cli import app
from segtransformers.conversion import ConversionError, convert_checkpoint
from segtransformers.conversion.checkpoint import read_checkpoint
from segtransformers.conversion.cli import main
from segtransformers.conversion.config_text import parse_config
from segtransformers.conversion.pickle_objects import StandIn, numbers_of
from segtransformers.datasets import DATASETS, get_dataset_info
from segtransformers.published import published_rows

SCRIPT = Path(__file__).parent.parent / "conversion_scripts" / "convert_vit_adapter.py"
CASE = ReferenceCase("vit_adapter/tiny-vit-light-upernet")


@pytest.fixture
def checkpoint() -> dict:
    """A checkpoint as mmcv's hook writes it, with best score and random palette."""
    meta = CASE.manifest["meta"]
    return {
        "meta": {
            "CLASSES": tuple(meta["CLASSES"]),
            "PALETTE": numpy.array(meta["PALETTE"], dtype=numpy.uint8),
            "epoch": 1,
            "iter": 160000,
            "hook_msgs": {"best_score": numpy.float64(0.4812), "best_ckpt": "best_mIoU.pth"},
            "env_info": "sys.platform: linux",
        },
        "state_dict": CASE.state_dict(torch.float32),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4}]},
    }


@pytest.fixture
def config_file(tmp_path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CASE.config))
    return path


def convert(capsys, *arguments) -> tuple[int, str, str]:
    """Run the script in this process; return the exit status, stdout and stderr."""
    status = main("vit_adapter", [str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def assert_refused(capsys, tmp_path, message, *arguments):
    output = tmp_path / "converted"
    before = set(tmp_path.rglob("*"))
    status, printed, error = convert(capsys, *arguments, "--output", output)
    assert status == 1 and not printed
    assert error.startswith("error: ") and "Traceback" not in error
    assert message in error, error
    assert set(tmp_path.rglob("*")) == before  # no new file


@pytest.mark.parametrize("suffix", [".pth", ".pth.tar", ".zip"])
def test_converted_model_equals_the_original(tmp_path, capsys, checkpoint, config_file, suffix):
    file = tmp_path / f"original{suffix}"
    torch.save(checkpoint, file if suffix != ".zip" else tmp_path / "best.pth.tar")
    if suffix == ".zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("read me.txt", "weights inside")
            archive.write(tmp_path / "best.pth.tar", "some/folder/best.pth.tar")
    output = tmp_path / "out" / "converted"
    status, printed, error = convert(capsys, "--checkpoint", file, "--config", config_file, "--output", output)
    assert (status, error) == (0, "")
    assert "5 classes (names from the checkpoint;" in printed and str(output) in printed

    model = AutoModelForSemanticSegmentation.from_pretrained(output).double()
    assert model.config.id2label == dict(enumerate(CASE.manifest["meta"]["CLASSES"]))
    assert model.config.palette == CASE.manifest["meta"]["PALETTE"]
    assert (model.config.inference_mode, model.config.window_size, model.config.window_stride) == (
        "slide",
        [64, 64],
        [43, 43],
    )
    model.config.inference_mode = "whole"
    with torch.no_grad():
        logits = model(CASE.pixel_values()).logits
    expected = CASE.outputs()["segmentation_logits"]
    assert relative_error(CASE.sampled("segmentation_logits", logits), expected) < 1e-6


def test_output_for_scripts(tmp_path, capsys, checkpoint, config_file):
    """--json prints the record of the conversion, --quiet the folder."""
    torch.save(checkpoint, tmp_path / "original.pth")
    arguments = ("--checkpoint", tmp_path / "original.pth", "--config", config_file, "--output")
    status, printed, _ = convert(capsys, *arguments, tmp_path / "one", "--json")
    document = json.loads(printed)
    assert status == 0 and document["output"] == str(tmp_path / "one") and document["pushed"] is None
    record = json.loads((tmp_path / "one" / "conversion.json").read_text(encoding="utf-8"))
    assert record.items() <= document.items()
    status, printed, error = convert(capsys, *arguments, tmp_path / "two", "--quiet")
    assert (status, printed, error) == (0, f"written to {tmp_path / 'two'}\n", "")


def test_script_runs_from_the_command_line(tmp_path, checkpoint, config_file):
    torch.save(checkpoint, tmp_path / "original.pth")
    arguments = ["--checkpoint", tmp_path / "original.pth", "--config", config_file, "--output", tmp_path / "converted"]
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = sorted(path.name for path in (tmp_path / "converted").iterdir())
    assert written == [
        "README.md",
        "config.json",
        "conversion.json",
        "model.safetensors",
        "modeling_segtransformers.py",
        "preprocessor_config.json",
    ]
    again = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True)
    assert again.returncode == 1 and "is not a new or empty folder" in again.stderr and "Traceback" not in again.stderr


def test_config_in_the_checkpoint_is_used(tmp_path, capsys, checkpoint):
    pipeline = published_rows("vit_adapter")["upernet_augreg_adapter_base_512_160k_ade20k"]["test_pipeline"]
    checkpoint["meta"]["config"] = (
        f"norm = dict(mean=[1, 2, 3])\nmodel = {CASE.config!r}\ntest_pipeline = {pipeline!r}\n"
        "train_pipeline = [dict(type='LoadAnnotations', reduce_zero_label=True)]\n"
    )
    torch.save(checkpoint, tmp_path / "original.pth")
    arguments = ["--checkpoint", tmp_path / "original.pth", "--output", tmp_path / "converted"]
    status, _, error = convert(capsys, *arguments)
    assert (status, error) == (0, "")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "converted")
    assert dict(processor.size) == {"shortest_edge": 512, "longest_edge": 2048}
    assert (processor.size_divisor, processor.image_mean, processor.do_reduce_labels) == (32, (0.5,) * 3, True)


def test_old_file_format_and_data_parallel_names(tmp_path):
    state_dict = {f"module.{name}": tensor for name, tensor in CASE.state_dict(torch.float32).items()}
    torch.save({"state_dict": state_dict}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    model = convert_checkpoint(read_checkpoint(tmp_path / "old.pth").state_dict, CASE.config)
    assert model.config.num_labels == 5


def test_missing_batch_norm_counters_are_added():
    state_dict = {k: v for k, v in CASE.state_dict().items() if not k.endswith("num_batches_tracked")}
    model = convert_checkpoint(state_dict, CASE.config)
    assert model.backbone.norms[0].num_batches_tracked == 0


def test_dataset_option_takes_precedence_over_the_checkpoint(tmp_path, capsys, checkpoint):
    config = CASE.config
    for head in ("decode_head", "auxiliary_head"):
        config[head]["num_classes"] = 19
    shapes = [
        [name, [19, *shape[1:]] if "conv_seg" in name else shape, dtype]
        for name, shape, dtype in CASE.manifest["state_dict"]
    ]
    from reference_cases import fill

    checkpoint["state_dict"] = fill.state_dict(shapes, torch.float32)
    torch.save(checkpoint, tmp_path / "original.pth")
    (tmp_path / "config.json").write_text(json.dumps({"model": config}))
    arguments = ["--checkpoint", tmp_path / "original.pth", "--config", tmp_path / "config.json"]
    assert_refused(capsys, tmp_path, "the head has 19 outputs, but there are 5 names from the checkpoint", *arguments)
    status, printed, _ = convert(capsys, *arguments, "--dataset", "cityscapes", "--output", tmp_path / "converted")
    assert status == 0 and "names of cityscapes" in printed
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "converted")
    assert loaded.config.id2label[0] == "road" and loaded.config.palette[0] == [128, 64, 128]


class _RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def _truncated(path: Path, checkpoint) -> None:
    torch.save(checkpoint, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _old_truncated(path: Path, checkpoint) -> None:
    torch.save(checkpoint, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _state(change):
    def write(path: Path, checkpoint) -> None:
        change(checkpoint["state_dict"])
        torch.save(checkpoint, path)

    return write


def _tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "inside.pth")


def _set(key, value):
    return lambda state_dict: state_dict.__setitem__(key, value)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path, checkpoint: None, "original.pth is neither a file nor a published config"),
        (lambda path, checkpoint: path.write_bytes(b""), "is damaged or not a PyTorch checkpoint"),
        (
            lambda path, checkpoint: path.write_bytes(b"<html>404</html>" * 100),
            "is damaged or not a PyTorch checkpoint",
        ),
        (_truncated, "is damaged or not a PyTorch checkpoint"),
        (_old_truncated, "is damaged or not a PyTorch checkpoint"),
        (lambda path, checkpoint: torch.save([1, 2], path), "holds a list, not a dict"),
        (lambda path, checkpoint: torch.save({"meta": {}}, path), "holds no weights"),
        (_state(lambda s: s.pop("backbone.level_embed")), "lacks (by their new names): backbone.level_embed"),
        (_state(_set("backbone.cls_token", torch.zeros(1))), "model does not have: backbone.cls_token"),
        (_state(_set("backbone.norm1.weight", torch.zeros(7))), "backbone.norm1.weight is 7, expected 48"),
        (_state(_set("backbone.pos_embed", torch.zeros(5))), "backbone.pos_embed is (5,), expected (1, 1 + positions"),
        (_state(_set("backbone.norm1.weight", torch.zeros(48).int())), "norm1.weight is torch.int32"),
        (_state(_set("backbone.norm1.weight", torch.zeros(48).to_sparse())), "expected a dense tensor"),
        (_state(_set("backbone.norm1.num_batches_tracked", torch.tensor(1.5))), "expected an integer counter"),
        (_state(_set("backbone.norm1.weight", "text")), "holds a str under 'backbone.norm1.weight', not a tensor"),
        (_state(_set(7, torch.zeros(1))), "has a Tensor under 7, expected a tensor under a name"),
        (lambda path, checkpoint: _tar(path), "is a tar archive: unpack it"),
        (lambda path, checkpoint: torch.jit.save(torch.jit.script(torch.nn.ReLU()), path), "is a TorchScript archive"),
        (_state(lambda s: [s.pop(key) for key in list(s)[:60]]), " and 5"),
    ],
)
def test_invalid_checkpoints_are_refused(tmp_path, capsys, checkpoint, config_file, write, message):
    file = tmp_path / "original.pth"
    write(file, checkpoint)
    assert_refused(capsys, tmp_path, message, "--checkpoint", file, "--config", config_file)


def test_functions_in_a_checkpoint_are_named_and_not_called(tmp_path, capsys, caplog, checkpoint, config_file):
    file = tmp_path / "original.pth"
    torch.save({**checkpoint, "extra": _RunsCode(tmp_path / "was-run")}, file)
    output = tmp_path / "converted"
    assert convert(capsys, "--checkpoint", file, "--config", config_file, "--output", output)[0] == 0
    assert ".system, which weights do not need: nothing of it was built or called" in caplog.text
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize(
    ("members", "message"),
    [([], "found none"), (["a.pth", "b.pth"], "found a.pth, b.pth"), (["broken.pth"], "is damaged or not a PyTorch")],
)
def test_invalid_archives_are_refused(tmp_path, capsys, config_file, members, message):
    with zipfile.ZipFile(tmp_path / "original.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
        for name in members:
            archive.writestr(name, b"not a checkpoint")
    assert_refused(capsys, tmp_path, message, "--checkpoint", tmp_path / "original.zip", "--config", config_file)


def test_archives_with_damaged_members_are_refused(tmp_path, capsys, checkpoint, config_file):
    torch.save(checkpoint, tmp_path / "original.pth")
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(tmp_path / "original.zip", "w", method) as archive:
            archive.write(tmp_path / "original.pth", "original.pth")
        damaged = bytearray((tmp_path / "original.zip").read_bytes())
        damaged[2000:2100] = b"x" * 100
        (tmp_path / "original.zip").write_bytes(damaged)
        arguments = ["--checkpoint", tmp_path / "original.zip", "--config", config_file]
        assert_refused(capsys, tmp_path, "is damaged", *arguments)


def test_archives_of_macos(tmp_path, checkpoint):
    torch.save(checkpoint, tmp_path / "best.pth")
    with zipfile.ZipFile(tmp_path / "original.zip", "w") as archive:
        archive.write(tmp_path / "best.pth", "best.pth")
        archive.writestr("__MACOSX/._best.pth", b"shadow")
    assert read_checkpoint(tmp_path / "original.zip").meta["iter"] == 160000


def test_file_that_is_no_archive_is_refused(tmp_path, capsys, config_file):
    (tmp_path / "original.zip").write_bytes(b"x" * 1000)
    assert_refused(
        capsys, tmp_path, "not a zip archive", "--checkpoint", tmp_path / "original.zip", "--config", config_file
    )


def _config(**changes):
    """Return the case's config with replaced values; `__` separates the keys of a path, None removes a key."""
    config = CASE.config
    for path, value in changes.items():
        *parents, key = path.split("__")
        part = config
        for parent in parents:
            part = part[parent]
        if value is None:
            del part[key]
        else:
            part[key] = value
    return config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (_config(type="CascadeEncoderDecoder"), "type is 'CascadeEncoderDecoder'; known types are EncoderDecoder"),
        (_config(backbone__type="ResNetV1c"), "backbone is 'ResNetV1c'; this script converts ViTAdapter"),
        (_config(backbone__type=["ViTAdapter"]), "backbone is ['ViTAdapter']; this script converts ViTAdapter"),
        (_config(backbone__type={"a": 1}), "backbone is {'a': 1}; this script converts ViTAdapter"),
        (_config(type=["EncoderDecoder"]), "type is ['EncoderDecoder']; known types are EncoderDecoder"),
        (_config(decode_head__type="ASPPHead"), "decode_head.type is 'ASPPHead'; known types are UPerHead"),
        (_config(auxiliary_head__type="PSPHead"), "auxiliary_head.type is 'PSPHead'; known types are FCNHead"),
        (_config(backbone__surprise=1), "backbone has unknown settings: surprise"),
        (_config(surprise=1), "the model config has unknown settings: surprise"),
        (_config(neck={"type": "FPN"}), "has a neck"),
        (_config(backbone__patch_size=14), "backbone.patch_size is 14; only 16 can be converted"),
        (_config(decode_head__align_corners=True), "auxiliary_head.align_corners is False; only True can be converted"),
        (
            _config(decode_head__norm_cfg={"type": "GN", "num_groups": 32}),
            "decode_head.norm_cfg.type is 'GN'; only 'BN' or 'SyncBN'",
        ),
        (_config(decode_head__num_classes=None), "decode_head has no setting 'num_classes'"),
        (_config(decode_head__num_classes=7), "auxiliary_head.num_classes differs"),
        (_config(backbone__interaction_indexes=[[0, 1]]), "describes an impossible model: interaction_indexes"),
        (_config(backbone__embed_dim="wide"), "describes an impossible model"),
        (_config(backbone__embed_dim=96), "wrong shapes: backbone.pos_embed is 1x196x48, expected 1x196x96"),
        (_config(test_cfg__mode="tiles"), "test_cfg.mode is 'tiles'"),
        (_config(test_cfg__stride=[128, 128]), "must not exceed window_size"),
        (_config(test_cfg__flip=True), "test_cfg has unknown settings: flip"),
        (_config(decode_head__norm_cfg={"type": "BN", "eps": 1e-3}), "norm_cfg.eps is 0.001; only 1e-05"),
        (_config(decode_head__in_channels=48), "decode_head.in_channels is 48; expected one number for each"),
        (_config(decode_head__type=["UPerHead"]), "decode_head.type is ['UPerHead']"),
        (_config(backbone__depth="4"), "backbone.depth is '4'"),
        (_config(backbone__deform_num_heads=0), "deformable_num_heads must be a whole number from 1"),
        ({"model": 3}, "has no model dict with a type"),
        ([1], "has no model dict with a type"),
    ],
)
def test_invalid_configs_are_refused(tmp_path, capsys, checkpoint, config, message):
    torch.save(checkpoint, tmp_path / "original.pth")
    (tmp_path / "config.json").write_text(json.dumps(config))
    arguments = ["--checkpoint", tmp_path / "original.pth", "--config", tmp_path / "config.json"]
    assert_refused(capsys, tmp_path, message, *arguments)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", '{"model": ' + "9" * 5000 + "}", "config.json cannot be read as a config: Exceeds the limit"),
        ("config.JSON", "{", "config.JSON cannot be read as a config: Expecting"),
        ("config.txt", '{"model": true}', "a file with JSON must be named .json"),
    ],
)
def test_unreadable_config_files_are_refused(tmp_path, capsys, checkpoint, name, text, message):
    torch.save(checkpoint, tmp_path / "original.pth")
    (tmp_path / name).write_text(text)
    arguments = ["--checkpoint", tmp_path / "original.pth", "--config", tmp_path / name]
    assert_refused(capsys, tmp_path, message, *arguments)


def test_invalid_class_names_are_refused(tmp_path, capsys, checkpoint, config_file):
    file = tmp_path / "original.pth"
    for meta, message in (
        ({"CLASSES": ["a", "b"]}, "the head has 5 outputs, but there are 2 names from the checkpoint (a, b, ...)"),
        ({"CLASSES": 5}, "CLASSES must be a list"),
        ({"CLASSES": list("abcde"), "PALETTE": [[0, 0]] * 5}, "PALETTE must have 5 colours"),
        ({"CLASSES": list("abcde"), "PALETTE": "red"}, "PALETTE is not a list of colours"),
    ):
        torch.save({**checkpoint, "meta": meta}, file)
        assert_refused(capsys, tmp_path, message, "--checkpoint", file, "--config", config_file)


def test_advice_depends_on_the_options(tmp_path, capsys, checkpoint, config_file):
    torch.save(checkpoint, tmp_path / "original.pth")
    arguments = ["--checkpoint", tmp_path / "original.pth", "--config"]
    message = "(wall, building, sky, floor, ...). Choose another --dataset, or leave it out"
    assert_refused(capsys, tmp_path, message, *arguments, config_file, "--dataset", "ade20k")
    (tmp_path / "variant.yml").write_text("net_kwargs: {n_cls: 5}")
    message = (
        "an official Segmenter's variant.yml, which convert_segmenter.py converts; this script converts ViTAdapter"
    )
    assert_refused(capsys, tmp_path, message, *arguments, tmp_path / "variant.yml")
    status = main("segmenter", [*map(str, arguments), str(config_file), "--output", "x"])
    error = capsys.readouterr().err
    assert status == 1 and "converts VisionTransformer, an official Segmenter with its variant.yml" in error


def test_missing_config_is_an_error(tmp_path, capsys, checkpoint):
    torch.save(checkpoint, tmp_path / "original.pth")
    arguments = ["--checkpoint", tmp_path / "original.pth"]
    assert_refused(capsys, tmp_path, "does not hold its config: add --config", *arguments)
    assert_refused(capsys, tmp_path, "neither a file nor a published config", *arguments, "--config", "upernet_x")


def test_existing_output_is_not_changed(tmp_path, capsys, checkpoint, config_file):
    torch.save(checkpoint, tmp_path / "original.pth")
    (tmp_path / "converted").mkdir()
    (tmp_path / "converted" / "precious").write_text("data")
    arguments = ["--checkpoint", tmp_path / "original.pth", "--config", config_file]
    assert_refused(capsys, tmp_path, "is not a new or empty folder", *arguments)
    for odd, message in (
        (".", "is not a new or empty folder"),
        ("x" * 300, "is not a valid path"),
        ("a\0b", "is not a valid path"),
    ):
        status, _, error = convert(capsys, *arguments, "--output", odd)
        assert status == 1 and message in error and error.count("\n") == 1
    (tmp_path / "file").write_text("data")
    status, _, error = convert(capsys, *arguments, "--output", tmp_path / "file" / "below")
    assert status == 1 and "cannot write" in error


def test_objects_of_the_training_state_are_not_built(tmp_path):
    saved = {
        "args": argparse.Namespace(lr=0.1),
        "scores": numpy.arange(3.0),
        "table": numpy.arange(6, dtype=numpy.uint8).reshape(2, 3),
        "best": numpy.float64(0.5),
        "step": numpy.int64(-7),
        "flag": numpy.bool_(True),
        "objects": numpy.array([None]),
    }
    torch.save({"state_dict": {"a": torch.ones(2)}, "meta": saved}, tmp_path / "file.pth")
    meta = read_checkpoint(tmp_path / "file.pth").meta
    assert (meta["best"], meta["step"], meta["flag"]) == (0.5, -7, True)
    assert {type(meta[name]) for name in ("args", "scores", "table", "objects")} == {StandIn}
    assert meta["args"].name == "argparse.Namespace" and meta["args"].state == {"lr": 0.1}
    assert numbers_of(meta["scores"]) == [0, 1, 2] and numbers_of(meta["table"]) == [[0, 1, 2], [3, 4, 5]]
    assert numbers_of(meta["objects"]) is None and numbers_of(meta["args"]) is None and numbers_of([1]) is None


NUMBERS = {
    "single": torch.arange(12.0).reshape(3, 4) / 7,
    "half": torch.arange(5).half(),
    "brain": torch.tensor(2.5).bfloat16(),
    "double": torch.arange(3).double() / 3,
    "complex": torch.complex(torch.arange(2.0), torch.arange(2.0) / 3),
    "counter": torch.arange(4),
    "bytes": torch.arange(3, dtype=torch.uint8),
    "flags": torch.tensor([True, False]),
    "view": torch.arange(16.0).reshape(4, 4).t()[1:],
    "empty": torch.empty(0, 3),
    "expanded": torch.ones(1).expand(3),
    "parameter": torch.nn.Parameter(torch.ones(2)),
}


def assert_equal_numbers(read):
    assert list(read) == list(NUMBERS)
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in NUMBERS.items())


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_are_read_exactly(tmp_path, is_new, protocol):
    shared = {**NUMBERS, "again": NUMBERS["view"]}
    file = tmp_path / "a.pth"
    torch.save(shared, file, _use_new_zipfile_serialization=is_new, pickle_protocol=protocol)
    read = read_checkpoint(file).state_dict
    assert read["view"].untyped_storage().data_ptr() == read.pop("again").untyped_storage().data_ptr()
    assert_equal_numbers(read)


def test_files_of_machines_with_another_byte_order_and_alignment(tmp_path):
    numbers = {name: tensor.detach().clone() for name, tensor in NUMBERS.items() if name != "empty"}
    torch.save(numbers, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as little, zipfile.ZipFile(tmp_path / "b.pth", "w") as big:
        for name in little.namelist():
            content = little.read(name)
            if name.endswith("byteorder"):
                content = b"big"
            elif "/data/" in name:
                tensor = list(numbers.values())[int(name.rpartition("/")[2])]
                width = tensor.itemsize // (2 if tensor.is_complex() else 1)
                content = numpy.frombuffer(content, f"u{width}").byteswap().tobytes()
            big.writestr(name, content)
    read = read_checkpoint(tmp_path / "b.pth").state_dict
    assert all(torch.equal(read[name], tensor) for name, tensor in numbers.items())


# A config as mmcv 1.4 writes it; most of them contain the line with gpu_ids.
DUMPED = """norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    head=dict(norm_cfg=norm_cfg, stride=(-1, 2.5), more={'a': [None, True]}))
optimizer = dict(
    type='AdamW', lr=6e-05, paramwise_cfg=dict(custom_keys=dict({'backbone.x': dict(lr_mult=0.1)})))
work_dir = './work_dirs/upernet'
gpu_ids = range(0, 8)
auto_resume = False
"""


def test_config_text_is_parsed_without_executing_it():
    assert parse_config("\ufeff" + DUMPED, ["model", "optimizer", "absent"]) == {
        "model": {
            "type": "EncoderDecoder",
            "head": {
                "norm_cfg": {"type": "SyncBN", "requires_grad": True},
                "stride": (-1, 2.5),
                "more": {"a": [None, True]},
            },
        },
        "optimizer": {
            "type": "AdamW",
            "lr": 6e-05,
            "paramwise_cfg": {"custom_keys": {"backbone.x": {"lr_mult": 0.1}}},
        },
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import os\nmodel = os.getcwd()", r"line 2 .*os\.getcwd\(\)"),
        ("a = 1\nmodel = open('x')", r"line 2 .*open\('x'\)"),
        ("model = dict(**other)", "cannot be parsed"),
        ("model = unknown", "cannot be parsed: unknown"),
        ("model = dict()\nmodel['type'] = 'x'", r"line 2 .*model\['type'\] = 'x'"),
        ("model = dict()\nmodel.update(a=1)", r"line 2 .*model\.update"),
        ("model = [1]\nmodel += [2]", "line 2"),
        ("if True:\n    model = dict()", "line 1"),
        ("_base_ = ['x.py']", "inherits from _base_"),
        ("model = (", "not Python text"),
        ("model = model", "cannot be parsed"),
        ("model = {[1]: 2}", "cannot be parsed"),
        ("model = " + "-" * 100000 + "1", "not Python text|cannot be parsed"),
    ],
)
def test_invalid_config_text_is_refused(text, message):
    with pytest.raises(ConversionError, match=message):
        parse_config(text, ["model"])


def test_dumped_config_file(tmp_path, capsys, checkpoint):
    torch.save(checkpoint, tmp_path / "original.pth")
    text = f"gpu_ids = range(0, 8)\nmodel = {CASE.config!r}\ndevice = 'cuda'\n"
    (tmp_path / "config.py").write_text(text, encoding="utf-8-sig")
    arguments = ["--checkpoint", tmp_path / "original.pth", "--config", tmp_path / "config.py"]
    assert convert(capsys, *arguments, "--output", tmp_path / "converted")[0] == 0


def test_mixed_dtypes_become_the_widest_and_shared_memory_is_copied(tmp_path):
    state_dict = CASE.state_dict(torch.float32)
    state_dict["backbone.level_embed"] = state_dict["backbone.level_embed"].half()
    state_dict["backbone.norm2.bias"] = state_dict["backbone.norm1.bias"]
    model = convert_checkpoint(state_dict, CASE.config)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    model.save_pretrained(tmp_path)


def test_training_state_of_many_kinds_is_read(tmp_path):
    class ConfigDict(dict):
        pass

    ConfigDict.__module__, ConfigDict.__qualname__ = "mmcv.utils.config", "ConfigDict"
    module = types.ModuleType("mmcv.utils.config")
    module.ConfigDict = ConfigDict
    names = {
        "mmcv": types.ModuleType("mmcv"),
        "mmcv.utils": types.ModuleType("mmcv.utils"),
        "mmcv.utils.config": module,
    }
    sys.modules.update(names)
    try:
        meta = {
            "cfg": ConfigDict(a=1),
            "when": datetime.datetime(2022, 1, 1),
            "dir": Path("x"),
            "names": numpy.array(["a"]),
        }
        torch.save({"meta": meta, "state_dict": {"a": torch.ones(1)}}, tmp_path / "file.pth")
    finally:
        for name in names:
            del sys.modules[name]
    read = read_checkpoint(tmp_path / "file.pth")
    assert read.meta["cfg"] == {"a": 1} and "a" in read.state_dict
    assert [read.meta[name].name for name in ("when", "names")] == [
        "datetime.datetime",
        "numpy.core.multiarray._reconstruct",
    ]


@pytest.mark.parametrize("name", DATASETS)
def test_known_data_sets(name):
    info = get_dataset_info(name)
    assert len(info.classes) == len(set(info.classes)) == len(info.palette)
    assert all(len(colour) == 3 and 0 <= min(colour) <= max(colour) <= 255 for colour in info.palette)


def test_unknown_data_set_is_an_error():
    with pytest.raises(ValueError, match="choose one of ade20k"):
        get_dataset_info("imagenet")


def test_convert_command(tmp_path):
    """`segtransformers convert FAMILY` runs the script of the family."""
    runner = CliRunner()
    done = runner.invoke(app, ["convert", "vit_comer", "--help"])
    assert done.exit_code == 0 and "upernet_vit_comer_tiny_512_160k_ade20k" in done.stdout
    assert "usage: segtransformers convert vit_comer" in done.stdout
    for option in ("-h", "--help"):
        done = runner.invoke(app, ["convert", option])
        assert done.exit_code == 0 and "vit_adapter|internimage" in done.stdout
    for arguments in ([], ["vit"]):
        done = runner.invoke(app, ["convert", *arguments])
        assert done.exit_code == 1 and "vit_adapter, internimage" in done.stderr and done.stderr.count("\n") == 1
    done = runner.invoke(app, ["convert", "segmenter", "--checkpoint", str(tmp_path / "no.pth"), "--output", "out"])
    assert done.exit_code == 1 and "no.pth" in done.stderr


def test_float8_is_refused(tmp_path, capsys, checkpoint, config_file):
    """Its values need scales, and it cannot be mixed with other types."""
    name = next(name for name, tensor in checkpoint["state_dict"].items() if tensor.dim() == 2)
    checkpoint["state_dict"][name] = checkpoint["state_dict"][name].to(torch.float8_e4m3fn)
    torch.save(checkpoint, tmp_path / "original.pth")
    arguments = ("--checkpoint", tmp_path / "original.pth", "--config", config_file)
    assert_refused(capsys, tmp_path, f"{name} is torch.float8_e4m3fn: save the checkpoint in float32", *arguments)
