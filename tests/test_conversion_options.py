# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Options of the conversion: reports and checks, precisions, shards; checkpoints of MMSegmentation 1.x."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy
import pytest
import torch
from reference_cases import ReferenceCase, fill, relative_error
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, PreTrainedModel

from segtransformers.conversion import ConversionError, convert_to_folder
from segtransformers.conversion.checkpoint import Checkpoint
from segtransformers.conversion.cli import main
from segtransformers.conversion.convert import convert_with_report

SCRIPTS = Path(__file__).parent.parent / "conversion_scripts"
CASE = ReferenceCase("vit_adapter/tiny-vit-light-upernet")


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = main("vit_adapter", [str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def saved(path: Path, state_dict=None, case=CASE, **more) -> Path:
    meta = {**case.manifest["meta"], "config": f"model = {case.config!r}"}
    torch.save({"meta": meta, "state_dict": state_dict or case.state_dict(torch.float32), **more}, path)
    return path


@pytest.mark.parametrize(("dtype", "bound"), [(None, 1e-6), ("fp32", 1e-6), ("fp16", 1e-2), ("bf16", 5e-2)])
def test_precisions_and_verification(tmp_path, capsys, dtype, bound):
    options = ["--dtype", dtype] if dtype else []
    file = saved(tmp_path / "a.pth", optimizer={"state": {}})
    status, printed, error = run(capsys, "--checkpoint", file, "--output", tmp_path / "out", "--verify", *options)
    assert (status, error) == (0, "")
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    error, same = record["verification"]["relative_error"], record["verification"]["same_class"]
    assert error < bound and same > 0.98 and f"relative error {error:.1e} after a reload in float32" in printed
    assert (error > 1e-5) == (dtype in ("fp16", "bf16"))  # rounding to half precision is visible
    stored = load_file(tmp_path / "out" / "model.safetensors")
    expected = {None: torch.float32, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    assert {tensor.dtype for tensor in stored.values() if tensor.is_floating_point()} == {expected}
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out")
    assert loaded.dtype == expected and record["dtype"] == str(expected).removeprefix("torch.")
    assert f"{len(stored)} tensors read back" in printed and "left behind: optimizer" in printed
    assert record["tensors"]["left_behind"] == ["optimizer"] and "optimizer" not in record["tensors"]["unused"]


def test_sharded_weights(tmp_path, capsys):
    options = ["--max-shard-size", "200KB", "--verify"]
    file = saved(tmp_path / "a.pth")
    status, _, error = run(capsys, "--checkpoint", file, "--output", tmp_path / "out", *options)
    assert (status, error) == (0, "")
    files = list((tmp_path / "out").glob("model-*.safetensors"))
    assert len(files) > 1 and (tmp_path / "out" / "model.safetensors.index.json").is_file()
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out").double()
    model.config.inference_mode = "whole"
    with torch.no_grad():
        logits = model(CASE.pixel_values()).logits
    assert relative_error(CASE.sampled("segmentation_logits", logits), CASE.outputs()["segmentation_logits"]) < 1e-6


@pytest.mark.parametrize("options", [["--max-shard-size", "2 GB"], ["--dtype", "int8"], ["--sha256", "abc"]])
def test_invalid_option_values_are_refused(tmp_path, capsys, options):
    with pytest.raises(SystemExit):
        run(capsys, "--checkpoint", "x.pth", "--output", tmp_path / "out", *options)
    assert options[0] in capsys.readouterr().err


def test_local_file_with_another_sha256_is_refused(tmp_path, capsys):
    options = ["--sha256", "0" * 64]
    file = saved(tmp_path / "a.pth")
    status, _, error = run(capsys, "--checkpoint", file, "--output", tmp_path / "out", *options)
    assert status == 1 and f"expected {'0' * 64}" in error and not (tmp_path / "out").exists()


def _damaging(change):
    """Return a `save_pretrained` that changes the tensors in the file it has written."""
    original = PreTrainedModel.save_pretrained

    def save(self, folder, *args, **kwargs):
        original(self, folder, *args, **kwargs)
        path = Path(folder) / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return save


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors["decode_head.classifier.bias"].add_(1), "classifier.bias differs from the converted"),
        (lambda tensors: tensors.pop("decode_head.classifier.bias"), "lacks the tensor decode_head.classifier.bias"),
    ],
)
def test_wrong_file_is_detected_and_removed(tmp_path, capsys, monkeypatch, change, message):
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", _damaging(change))
    file = saved(tmp_path / "a.pth")
    status, _, error = run(capsys, "--checkpoint", file, "--output", tmp_path / "out")
    assert status == 1 and message in error
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_verify_detects_a_wrong_config(tmp_path, capsys, monkeypatch):
    """The weights are right, but the config in the folder is not."""
    original = PreTrainedModel.save_pretrained

    def save(self, folder, *args, **kwargs):
        original(self, folder, *args, **kwargs)
        description = json.loads((Path(folder) / "config.json").read_text())
        description["backbone_config"]["layer_norm_eps"] = 0.5
        (Path(folder) / "config.json").write_text(json.dumps(description))

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save)
    file = saved(tmp_path / "a.pth")
    status, _, error = run(capsys, "--checkpoint", file, "--output", tmp_path / "out", "--verify")
    assert status == 1 and "the written model differs from the converted one: relative error" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (OSError(28, "No space left on device"), ConversionError),
        (SafetensorError("I/O error: No space left on device"), ConversionError),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), ConversionError),
        (OSError(12, "Cannot allocate memory"), ConversionError),
        (MemoryError(), ConversionError),
        (RuntimeError("a mistake in the code"), RuntimeError),
        (ValueError("a mistake in the code"), ValueError),
    ],
)
def test_only_errors_of_writing_are_reported_as_such(tmp_path, monkeypatch, raised, seen):
    def save(self, folder, *args, **kwargs):
        (Path(folder) / "config.json").write_text("{}")
        raise raised

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save)
    file = saved(tmp_path / "a.pth")
    message = r"cannot write .*out: .*No space left" if "No space" in str(raised) else "the memory does not suffice"
    with pytest.raises(seen, match=message if seen is ConversionError else str(raised)):
        convert_to_folder(str(file), tmp_path / "out", "vit_adapter")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_overflow_in_half_precision_is_an_error(tmp_path, capsys):
    state_dict = CASE.state_dict(torch.float32)
    state_dict["backbone.norm1.weight"][3] = 1e6
    file = saved(tmp_path / "a.pth", state_dict)
    status, _, error = run(capsys, "--checkpoint", file, "--output", tmp_path / "out", "--dtype", "fp16")
    assert status == 1 and "backbone.norms.0.weight overflows in torch.float16: choose --dtype bf16" in error


def test_every_tensor_is_reported():
    cases = [
        "vit_adapter/tiny-beit-mask2former",
        "vit_adapter/tiny-uniperceiver-upernet",
        "vit_comer/tiny-upernet-no-tov",
        "internimage/tiny-t-upernet",
        "segmenter/tiny-official-mask",
    ]
    reports = {}
    for name in cases:
        case = ReferenceCase(name)
        state_dict = case.state_dict(torch.float32)
        model, report = convert_with_report(state_dict, case.config)
        placed = [new for names in report.used.values() for new in names]
        assert set(placed) | set(report.made) == set(model.state_dict())
        assert report.used.keys() | report.unused.keys() == state_dict.keys()
        assert not report.used.keys() & report.unused.keys() and all(report.unused.values())
        assert report.changed <= report.used.keys()
        reports[name.partition("/")[2]] = report
    assert "follows from the grid" in reports["tiny-beit-mask2former"].unused.values()
    joined = reports["tiny-uniperceiver-upernet"]
    time, space = (f"backbone.visual_embed.patch_embed.{kind}_pos_embed.weight" for kind in ("temporal", "spatial"))
    assert joined.used[time] == joined.used[space] == ["backbone.trunk.embeddings.pos_embed"]
    assert {time, space} <= joined.changed
    assert any("does not use it" in why for why in reports["tiny-upernet-no-tov"].unused.values())
    lines = reports["tiny-beit-mask2former"].summary()
    assert lines[0].startswith("tensors: ") and any("(follows from the grid)" in line for line in lines)


def test_added_tensors_are_reported():
    state_dict = {k: v for k, v in CASE.state_dict().items() if not k.endswith("num_batches_tracked")}
    _, report = convert_with_report(state_dict, CASE.config)
    assert report.made and all(name.endswith("num_batches_tracked") for name in report.made)
    assert "a counter that the checkpoint lacks" in report.summary()[-1]


def newer_config(case: ReferenceCase) -> dict:
    """Return the case's config as ports to MMSegmentation 1.x write it, with names of registries."""
    config = case.config
    training = config.pop("train_cfg", {})
    config["data_preprocessor"] = {
        "type": "mmseg.SegDataPreProcessor",
        "mean": [123.675, 116.28, 103.53],
        "std": [58.395, 57.12, 57.375],
        "bgr_to_rgb": True,
        "pad_val": 0,
        "seg_pad_val": 255,
        "size": (64, 64),
    }
    config["type"] = "EncoderDecoder"
    config["backbone"]["_scope_"] = "mmsegextension"
    config["decode_head"] |= {"type": "AdapterMask2FormerHead", "_scope_": "mmsegextension", "train_cfg": training}
    config["decode_head"]["positional_encoding"]["_scope_"] = "mmdet"
    return config


@pytest.mark.parametrize("places", ["variables", "data sets"])
def test_checkpoints_of_mmsegmentation_1(tmp_path, capsys, places):
    case = ReferenceCase("vit_adapter/tiny-beit-mask2former")
    old = case.manifest["meta"]
    steps = "[dict(type='LoadImageFromFile'), dict(type='Resize', scale=(2048, 512), keep_ratio=True), "
    steps += "dict(type='LoadAnnotations', reduce_zero_label=True), dict(type='PackSegInputs')]"
    text = f"default_scope = 'mmseg'\nmodel = {newer_config(case)!r}\n"
    if places == "variables":
        text += f"train_pipeline = {steps}\ntest_pipeline = {steps}\n"
    else:
        text += f"test_dataloader = dict(batch_size=1, dataset=dict(type='ADE20KDataset', pipeline={steps}))\n"
    meta = {
        "cfg": text,
        "dataset_meta": {
            "classes": tuple(old["CLASSES"]),
            "palette": numpy.array(old["PALETTE"]).tolist(),
            "reduce_zero_label": True,
            "label_map": None,
        },
        "mmengine_version": "0.10.4",
    }
    message_hub = {"runtime_info": {"iter": 160000}, "resumed_keys": {}}
    state_dict = case.state_dict(torch.float32)
    torch.save({"meta": meta, "state_dict": state_dict, "message_hub": message_hub}, tmp_path / "iter_160000.pth")
    arguments = ["--checkpoint", tmp_path / "iter_160000.pth", "--output", tmp_path / "out"]
    status, printed, error = run(capsys, *arguments)
    assert (status, error) == (0, "") and "names from the checkpoint" in printed
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out").double()
    assert list(model.config.id2label.values()) == list(old["CLASSES"]) and model.config.palette == old["PALETTE"]
    model.config.inference_mode = "whole"
    with torch.no_grad():
        logits = model(case.pixel_values()).logits
    assert relative_error(case.sampled("segmentation_logits", logits), case.outputs()["segmentation_logits"]) < 1e-5
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert processor.do_normalize and processor.do_reduce_labels and processor.size_divisor == 0
    assert dict(processor.size) == {"shortest_edge": 512, "longest_edge": 2048}
    assert processor.image_mean == pytest.approx([0.485, 0.456, 0.406])


def test_checkpoint_with_own_classes_and_window(tmp_path, capsys):
    """A checkpoint with three classes, another window, no colours, and options that no published config has."""
    config = CASE.config
    for head in ("decode_head", "auxiliary_head"):
        config[head]["num_classes"] = 3
    config["test_cfg"] = {"mode": "slide", "crop_size": (96, 128), "stride": (64, 96)}
    shapes = [
        [name, [3, *shape[1:]] if "conv_seg" in name else shape, dtype]
        for name, shape, dtype in CASE.manifest["state_dict"]
    ]
    text = f"""
classes = ('intact', 'cracked', 'rusty')
img_norm_cfg = dict(mean=[10, 20, 30], std=[40.5, 50, 60], to_rgb=True)
model = {config!r}
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=(640, 320), flip=False, transforms=[
        dict(type='Resize', keep_ratio=False), dict(type='RandomFlip'), dict(type='Normalize', **img_norm_cfg),
        dict(type='ImageToTensor', keys=['img']), dict(type='Collect', keys=['img'])])]
data = dict(train=dict(type='MyBridges', pipeline=[]), workers_per_gpu=some_function())
"""
    text = text.replace("**img_norm_cfg", "mean=[10, 20, 30], std=[40.5, 50, 60], to_rgb=True")
    meta = {"config": text, "CLASSES": ("intact", "cracked", "rusty"), "PALETTE": None, "seed": 7}
    torch.save({"meta": meta, "state_dict": fill.state_dict(shapes, torch.float32)}, tmp_path / "latest.pth")
    status, printed, error = run(capsys, "--checkpoint", tmp_path / "latest.pth", "--output", tmp_path / "out")
    assert (status, error) == (0, "") and "3 classes (names from the checkpoint)" in printed
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {0: "intact", 1: "cracked", 2: "rusty"} and model.config.palette is None
    assert (model.config.window_size, model.config.window_stride) == ([96, 128], [64, 96])
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert dict(processor.size) == {"height": 320, "width": 640} and processor.size_divisor == 0
    assert processor.image_std == pytest.approx([40.5 / 255, 50 / 255, 60 / 255])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Reported by the authors: none" in card and "96x128" in card and "rusty" in card


# ru_maxrss does not help: it starts with the peak of the parent process
MEASURED = """
import re, runpy, sys
sys.argv = sys.argv[1:]
import segtransformers.conversion.converter


def mebibytes(field):
    return int(re.search(rf"{field}:\\s+([0-9]+) kB", open("/proc/self/status").read())[1]) / 1024


before = mebibytes("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # resets the peak
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert end.code == 0
print("PEAK", mebibytes("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc to measure peaks")
@pytest.mark.parametrize("options", [[], ["--verify"], ["--dtype", "fp16", "--verify"]])
@pytest.mark.parametrize("form", [".pth", ".zip"])
def test_peak_memory_is_at_most_two_copies_of_the_weights(tmp_path, form, options):
    """The optimizer's state, twice as large as the weights, is not read."""
    name = "upernet_deit_adapter_tiny_512_160k_ade20k"
    case = ReferenceCase(f"vit_adapter/full-{name}")
    weights = case.state_dict(torch.float32)
    size = sum(tensor.nbytes for tensor in weights.values()) / 2**20
    file = tmp_path / "original.pth"
    state = {index: (tensor.clone(), tensor.clone()) for index, tensor in enumerate(weights.values())}
    torch.save({"meta": {}, "state_dict": weights, "optimizer": {"state": state}}, file)
    if form == ".zip":
        with zipfile.ZipFile(tmp_path / "original.zip", "w") as archive:
            archive.write(file, "original.pth")
        file = tmp_path / "original.zip"
    arguments = [SCRIPTS / "convert_vit_adapter.py", "--checkpoint", file, "--config", name, *options]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *arguments, "--output", tmp_path / "out"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    peak = float(done.stdout.rpartition("PEAK ")[2])
    print(f"{form} {options}: weights {size:.0f} MiB, peak {peak:.0f} MiB")
    allowance = 220 if "--verify" in options else 100  # MiB for modules imported later, and feature maps
    assert peak < 2 * size + allowance


@pytest.fixture
def two_files(tmp_path) -> dict[str, Path]:
    """The head and the backbone of a DINOv3 linear probe, 219 MiB together."""
    case, prefix = ReferenceCase("dinov3_segmentors/tiny-linear-last"), "segmentation_model.0.feature_model."
    weights = {
        name: torch.full([12 * side if side % 64 == 0 else side for side in shape], 0.01) if shape else torch.tensor(0)
        for name, shape, _ in case.manifest["state_dict"]
        if name not in case.manifest["derived"]
    }
    trunk = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    torch.save({name: tensor for name, tensor in weights.items() if not name.startswith(prefix)}, tmp_path / "head.pth")
    torch.save(trunk, tmp_path / "trunk.pth")
    return {name: tmp_path / f"{name}.pth" for name in ("head", "trunk")}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc to measure peaks")
@pytest.mark.parametrize("options", [[], ["--dtype", "bf16"]])
def test_peak_memory_is_at_most_one_shard_above_the_files(tmp_path, two_files, options):
    """Slow, because another process converts 219 MiB."""
    arguments = [
        SCRIPTS / "convert_dinov3.py",
        "--checkpoint",
        two_files["head"],
        "--trunk-weights",
        two_files["trunk"],
    ]
    arguments += ["--output", tmp_path / "out", "--max-shard-size", "100MB", *options]
    done = subprocess.run([sys.executable, "-c", MEASURED, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    peak = float(done.stdout.rpartition("PEAK ")[2])
    size = sum(path.stat().st_size for path in two_files.values()) / 2**20
    print(f"{options}: files {size:.0f} MiB, peak {peak:.0f} MiB")
    assert peak < size + 100e6 / 2**20


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("vit_adapter/tiny-beit-mask2former", "vit_adapter"),
        ("vit_adapter/tiny-uniperceiver-upernet", "vit_adapter"),
        ("internimage/tiny-t-upernet", "internimage"),
    ],
)
def test_conversion_does_not_write_into_the_mapped_file(tmp_path, monkeypatch, name, family):
    """Otherwise, pages that are dropped and read again would lose what was written."""
    checkpoints = []
    monkeypatch.setattr(Checkpoint, "drop_read_pages", lambda self: checkpoints.append(self))
    file = saved(tmp_path / "a.pth", case=ReferenceCase(name))
    convert_to_folder(str(file), tmp_path / "out", family, dtype=torch.bfloat16, verify=True)
    assert len(checkpoints) > 20 and [mapped[:] for mapped in checkpoints[-1].maps] == [file.read_bytes()]
