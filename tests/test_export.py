# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Options and description of exported files, and what stops an export. `test_export_matrix.py` has all models."""

import importlib.util
import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from export_cases import SIZE, assert_close, expected, run_onnx, small
from tensorrt_support import refusals
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor
from typer.testing import CliRunner

from segtransformers.cli import app
from segtransformers.export import (
    ExportedModel,
    ExportError,
    describe,
    export_model,
    export_size,
    read_description,
    traced,
)
from segtransformers.export.options import TOLERANCES
from segtransformers.export.running import runner
from segtransformers.inference import InferenceProtocol, segment_image
from segtransformers.packaged import example_image_path

onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra `export`)")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra `export`)")
pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra `export`)")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model with names and colours of its classes, its processor, and its file for any number of images."""
    model, processor = small("segmenter-linear")
    model.config.id2label = dict(enumerate(["sky", "sea", "sand", "shell", "gull"]))
    model.config.palette = [[index, 0, 255] for index in range(5)]
    file = tmp_path_factory.mktemp("exported") / "model.onnx"
    assert export_model(model, processor, file, size=SIZE, dynamic_batch=True) < 1e-4
    return model, processor, file


def test_beit_is_exported_without_fused_attention():
    model, _ = small("vit_adapter_beit-upernet")
    program = traced(model, SIZE)
    assert not [node for node in program.graph.nodes if "scaled_dot_product" in str(node.target)]


# slow: torch.export takes seconds
@pytest.mark.slow
def test_attention_in_windows_has_four_dimensions_for_onnx():
    model, _ = small("vit_adapter_windowed-upernet")
    program = traced(model, SIZE, dynamic_batch=True)
    queries = [node.args[0] for node in program.graph.nodes if "scaled_dot_product" in str(node.target)]
    assert queries and all(query.meta["val"].dim() == 4 for query in queries)


def shapes_of(model, sizes):
    return [torch.randn(1, 3, *size) for size in sizes]


@pytest.mark.parametrize("name", [pytest.param("vit_adapter-upernet", marks=pytest.mark.slow), "segmenter-linear"])
def test_dynamic_size_runs_through_the_commands(name, tmp_path):
    """One file takes any multiples of 32; as a model it takes any size, and predicts what the model predicts."""
    model, processor = small(name)
    model.config.inference_mode = "whole"
    file = tmp_path / "model.onnx"
    assert export_model(model, processor, file, size=SIZE, dynamic_size=True, dynamic_batch=True, opset=17) < 1e-4
    assert {entry.domain: entry.version for entry in onnx.load(file).opset_import}[""] == 17
    assert refusals(onnx.load(file)) == []
    for images in shapes_of(model, [(64, 64), (128, 160)]):
        assert_close(run_onnx(file, images), expected(model, images))
    exported = ExportedModel(file)
    image = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    protocol = InferenceProtocol(window=(64, 64), flip=True)
    labels = segment_image(exported, exported.processor(), image, protocol)
    assert (labels == segment_image(model, processor, image, protocol)).float().mean() > 0.999
    with pytest.raises(ValueError, match="multiples of 32"):
        export_model(model, processor, file, size=(64, 80), dynamic_size=True)


@pytest.mark.parametrize(
    ("operator", "dtype", "expected"),
    [
        ("Add", "FLOAT", []),
        ("Add", "INT64", ["int64 arithmetic: Add"]),
        ("BitwiseAnd", "INT32", ["BitwiseAnd"]),
        ("MatMul", "INT32", ["MatMul of INT32"]),
        ("MatMul", "DOUBLE", ["MatMul of DOUBLE"]),
    ],
)
def test_the_check_for_tensorrt_finds_what_it_does_not_support(operator, dtype, expected):
    kind = onnx.TensorProto.DataType.Value(dtype)
    values = [onnx.helper.make_tensor_value_info(name, kind, [2, 2]) for name in "abc"]
    node = onnx.helper.make_node(operator, ["a", "b"], ["c"])
    graph = onnx.helper.make_graph([node], "graph", values[:2], values[2:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    assert refusals(model) == expected
    model.opset_import[0].version = 25
    assert "opset 25" in refusals(model)


def test_pixels_in_and_labels_out(tmp_path):
    model, processor = small("segmenter-linear")
    file = tmp_path / "model.onnx"
    share = export_model(model, processor, file, size=SIZE, takes_pixels=True, result="labels")
    assert share < 1e-3
    assert refusals(onnx.load(file)) == []
    image = np.random.default_rng(0).integers(0, 256, (1, *SIZE, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(file)
    (labels,) = session.run(None, {"pixel_values": image})
    pixels = processor(list(image), do_resize=False, return_tensors="pt")["pixel_values"]
    wanted = expected(model, pixels).argmax(1).numpy()
    assert labels.dtype == np.uint8 and (labels == wanted).mean() > 0.999 and len(np.unique(wanted)) > 1
    with pytest.raises(ExportError, match="takes pixels or writes label maps"):
        ExportedModel(file)


@pytest.mark.parametrize(
    "precision", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("float16-weights", "float16")), "int8"]
)
def test_precisions(precision, exported, tmp_path):
    model, processor, float32 = exported
    options = {"precision": precision}
    if precision == "int8":
        options["calibration"] = [example_image_path()]
    error = export_model(model, processor, tmp_path / "small.onnx", size=SIZE, **options)
    assert error < (0.5 if precision == "int8" else 2e-2)
    assert (tmp_path / "small.onnx").stat().st_size < 0.75 * float32.stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["small.onnx"]


def test_openvino(tmp_path):
    pytest.importorskip("openvino", reason="openvino is not installed (extra `openvino`)")
    model, processor = small("segmenter-linear")
    file = tmp_path / "model.xml"
    assert export_model(model, processor, file, size=SIZE) < 1e-4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    assert read_description(file) == describe(model, processor, SIZE)
    images = torch.randn(1, 3, *SIZE)
    assert_close(ExportedModel(file)(images, sliding_window=False).logits, expected(model, images))


def test_the_file_describes_its_use(exported):
    """The description is read here without this package."""
    model, processor, file = exported
    session = onnxruntime.InferenceSession(file)
    said = json.loads(session.get_modelmeta().custom_metadata_map["segmentation.json"])
    assert said["classes"] == ["sky", "sea", "sand", "shell", "gull"] and said["palette"] == model.config.palette
    assert (said["input"], said["output"]) == (session.get_inputs()[0].name, session.get_outputs()[0].name)
    assert (said["batch"], said["height"], said["width"]) == (None, *SIZE)
    assert read_description(file) == said

    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    pixels = (image * said["rescale_factor"] - said["mean"]) / said["std"]
    pixels = pixels.transpose(2, 0, 1)[None].astype(np.float32)
    own = processor(image, do_resize=False, return_tensors="pt")["pixel_values"]
    np.testing.assert_allclose(pixels, own.numpy(), rtol=1e-5, atol=1e-5)


def test_other_threads_run_the_model_while_it_is_exported(tmp_path):
    """torch.export exchanges the parameters of the module that it traces, and changes state of the whole process."""
    model, processor = small("segmenter-linear")  # the smallest: threads share the cores with two exports
    model.config.window_batch_size = 2
    before = model.config.to_dict()
    image = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    protocols = [
        InferenceProtocol(),
        InferenceProtocol(window=(48, 48)),
        InferenceProtocol(window=(32, 64), flip=True),
        InferenceProtocol(scales=[0.75, 1.0]),
    ]
    expected = [segment_image(model, processor, image, protocol) for protocol in protocols]
    assert len({labels.numpy().tobytes() for labels in expected}) == len(protocols)
    done = threading.Event()

    def run(protocol):
        found = []
        while not done.is_set():
            found.append(segment_image(model, processor, image, protocol))
        return found

    with ThreadPoolExecutor(len(protocols) + 2) as pool:
        running = [pool.submit(run, protocol) for protocol in protocols]
        try:
            files = [tmp_path / "one.pt2", tmp_path / "two.pt2"]
            exports = [pool.submit(export_model, model, processor, file, size=SIZE) for file in files]
            assert all(export.result() < 1e-4 for export in exports)
        finally:
            done.set()
        for wanted, thread in zip(expected, running, strict=True):
            assert thread.result() and all(torch.equal(wanted, labels) for labels in thread.result())
    assert model.config.to_dict() == before


def test_weights_of_two_gigabytes_get_a_file_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.onnx._internal.exporter._onnx_program, "_LARGE_MODEL_THRESHOLD", 0)
    model, processor = small("segmenter-linear")
    export_model(model, processor, tmp_path / "model.onnx", size=SIZE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    images = torch.randn(1, 3, *SIZE)
    assert_close(run_onnx(tmp_path / "model.onnx", images), expected(model, images))


def test_size_of_the_export():
    model, processor = small("segmenter-linear")
    assert export_size(model, processor) == (32, 32)  # its window
    model.config.window_size = None
    assert export_size(model, processor) == (512, 512)  # the processor's short side
    processor.size = {"height": 48, "width": 80}
    assert export_size(model, processor) == (48, 80)
    with pytest.raises(ValueError, match="neither the model's window nor its processor"):
        export_size(model, None)


def test_a_file_with_wrong_logits_does_not_appear(tmp_path, monkeypatch):
    monkeypatch.setitem(TOLERANCES, "float32", -1.0)
    model, processor = small("segmenter-linear")
    with pytest.raises(ExportError, match=r"differs from the model by .* of the largest logit"):
        export_model(model, processor, tmp_path / "model.pt2", size=SIZE)
    assert not list(tmp_path.iterdir())


def test_an_operator_that_onnx_lacks_is_named(tmp_path):
    model, processor = small("segmenter-linear")
    last = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    last.register_forward_hook(lambda module, arguments, output: output + torch.special.bessel_j1(output))
    with pytest.raises(ExportError, match=r"^ONNX cannot express the model: .*bessel_j1") as failure:
        export_model(model, processor, tmp_path / "model.onnx", size=SIZE)
    assert "\n" not in str(failure.value) and not list(tmp_path.iterdir())


def test_an_operation_that_pt2_lacks_is_named(tmp_path):
    model, processor = small("segmenter-linear")
    last = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    last.register_forward_hook(lambda module, arguments, output: output * math.ceil(output.shape[1] / 7))
    with pytest.raises(ExportError, match=r"^torch.export cannot save the model: .*ceil") as failure:
        export_model(model, processor, tmp_path / "model.pt2", size=SIZE, dynamic_size=True)
    assert "\n" not in str(failure.value) and not list(tmp_path.iterdir())


def test_models_of_transformers(tmp_path):
    config = SegformerConfig(
        hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 1, 1], decoder_hidden_size=8
    )
    model, processor = SegformerForSemanticSegmentation(config).eval(), SegformerImageProcessor()
    assert export_model(model, processor, tmp_path / "model.pt2", size=(64, 64)) < 1e-4
    assert read_description(tmp_path / "model.pt2")["classes"] == ["LABEL_0", "LABEL_1"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": "model.pth"}, r"must end in .onnx, .xml or .pt2, got .pth"),
        ({"output": "model.pt2", "opset": 20}, "opset is an option of ONNX"),
        ({"precision": "int4"}, "precision must be float32 or .*, got int4"),
        ({"precision": "int8"}, "int8 needs calibration images"),
        ({"calibration": ["image.png"]}, "calibration images are for precision int8, got float32"),
        ({"output": "model.pt2", "precision": "float16-weights"}, "is for .onnx and .xml, not for .pt2"),
        ({"precision": "bfloat16"}, "no convolutions in bfloat16 on CPUs.*leave the check out"),
        ({"result": "masks"}, "result must be logits or labels, got masks"),
        ({"sampling": "nearest"}, "sampling must be gather or grid_sample, got nearest"),
        ({"opset": 11}, "opset must be 17 or newer, got 11"),
        ({"opset": 999}, "opset must be at most [0-9]+, the newest that the package onnx has, got 999"),
        ({"size": (0, 64)}, "pixel_values must"),
    ],
)
def test_wrong_arguments(changes, message, tmp_path):
    model, processor = small("segmenter-linear")
    arguments = {"output": "model.onnx", "size": SIZE, **changes}
    with pytest.raises(ValueError, match=message):
        export_model(model, processor, tmp_path / arguments.pop("output"), **arguments)
    with pytest.raises(ValueError, match="training mode"):
        export_model(model.train(), processor, tmp_path / "model.pt2", size=SIZE)
    assert not list(tmp_path.iterdir())


def run(*arguments):
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def test_command(tmp_path):
    model, processor = small("segmenter-linear")
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    file = tmp_path / "small.onnx"
    words = ("--size", 48, 64, "--dynamic-batch", "--opset", 18, "--runtime", "onnxruntime")
    done = run("--model", tmp_path / "model", "--output", file.with_suffix(""), *words)
    assert done.exit_code == 0, done.output
    assert (
        f"{file}: any number of images of 48x64 pixels" in done.stdout
        and "checked: largest difference of logits" in done.stdout
    )
    assert onnxruntime.InferenceSession(file).get_inputs()[0].shape[2:] == [48, 64]


def test_command_without_onnxruntime(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    model, processor = small("segmenter-linear")
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    done = run("--model", tmp_path / "model", "--output", tmp_path / "small.onnx")
    assert done.exit_code == 0 and "not checked: onnxruntime is not installed" in done.stdout, done.output
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    done = run("--model", tmp_path / "model", "--output", tmp_path / "other.onnx")
    assert done.exit_code == 1 and "pip install 'segtransformers[export]'" in done.stderr
    assert not (tmp_path / "other.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "file/model.onnx"], "file is a file, where a folder is needed"),
        (["--output", "."], "is a folder, where a file is needed"),
        (["--output", "model.txt"], "must end in .onnx, .xml or .pt2"),
        (["--output", "model.pt2", "--model", "nothing-here"], "cannot load the model nothing-here"),
    ],
)
def test_errors_of_the_command_are_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    done = run(*arguments)
    assert done.exit_code == 1 and done.stderr.startswith("error: ") and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_that_onnxruntime_cannot_load_is_an_export_error(tmp_path):
    file = tmp_path / "model.onnx"
    file.write_bytes(b"no graph")
    with pytest.raises(ExportError, match="cannot load the file, perhaps because of its opset"):
        runner(file)
