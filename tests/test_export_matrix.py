# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Exported files of each family with each of its heads, in each shape and precision, beside the model.

onnxruntime and OpenVINO run the ONNX files, and PyTorch those of torch.export. All but one model for each test are slow
tests, because an export takes seconds.
"""

import importlib.util

import pytest
import torch
from export_cases import MODELS, ONE_LAYER, SIZE, allowed_norms, assert_close, expected, run_onnx, small, upernet
from model_tests import randomise
from tensorrt_support import refusals
from test_combinations import MAPS
from test_vit_adapter import small_config

from segtransformers import SegmentationImageProcessor, SegSwinConfig
from segtransformers.export import ExportedModel, ExportOptions, describe, export_model, read_description, traced
from segtransformers.export.options import TOLERANCES
from segtransformers.export.running import runner
from segtransformers.packaged import example_image_path

onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra `export`)")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra `export`)")
pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra `export`)")


LARGE_WINDOWS = {
    "vit_adapter": lambda: small_config(window_sizes=[14], use_prefix_tokens=False, **ONE_LAYER),
    "swin": lambda: SegSwinConfig(
        embed_dim=16, depths=[2, 2, 2, 2], num_heads=[2, 2, 2, 2], window_size=7, out_features=MAPS
    ),
}


def run_by_openvino(file, model, images):
    """Compare the ONNX file in OpenVINO with the model, where OpenVINO is installed."""
    if importlib.util.find_spec("openvino") is not None:
        assert_close(torch.from_numpy(runner(file, "openvino")(images.numpy())), expected(model, images))


def in_turn(quick):
    """Return all models as parameters. Those not in `quick` are slow tests, because each export takes seconds."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in MODELS]


@pytest.mark.parametrize("name", in_turn(["vit_adapter-upernet"]))
def test_onnx_with_any_number_of_images(name, tmp_path):
    model, processor = small(name)
    file = tmp_path / "model.onnx"
    error = export_model(model, processor, file, size=SIZE, dynamic_batch=True)
    assert error < 1e-4 and [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert model.config.inference_mode == "slide"
    assert refusals(onnx.load(file)) == []
    for batch in (1, 2, 5):
        images = torch.randn(batch, 3, *SIZE)
        assert_close(run_onnx(file, images), expected(model, images))
    run_by_openvino(file, model, torch.randn(3, 3, *SIZE))


@pytest.mark.parametrize("name", in_turn(["internimage-upernet"]))
def test_onnx_of_one_image(name, tmp_path):
    model, processor = small(name)
    file = tmp_path / "model.onnx"
    assert export_model(model, processor, file, size=SIZE) < 1e-4
    images = torch.randn(1, 3, *SIZE)
    assert_close(run_onnx(file, images), expected(model, images))
    run_by_openvino(file, model, images)
    assert refusals(onnx.load(file)) == []
    operators = {node.op_type for node in onnx.load(file).graph.node}
    assert not operators & {"GridSample", "BatchNormalization", "Dropout", "EyeLike"} - allowed_norms(model)
    assert onnxruntime.InferenceSession(file).get_inputs()[0].shape == [1, 3, *SIZE]


@pytest.mark.parametrize("dynamic_batch", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("name", in_turn(["segmenter-mask_transformer"]))
def test_torch_export(name, dynamic_batch, tmp_path):
    model, processor = small(name)
    file = tmp_path / "model.pt2"
    assert export_model(model, processor, file, size=SIZE, dynamic_batch=dynamic_batch) < 1e-4
    program = torch.export.load(file)
    images = torch.randn(3 if dynamic_batch else 1, 3, *SIZE)
    with torch.no_grad():
        assert_close(program.module()(images), expected(model, images))
    assert not [node for node in program.graph.nodes if "segtransformers" in str(node.target)]  # no custom operator
    assert read_description(file) == describe(model, processor, SIZE, ExportOptions(dynamic_batch=dynamic_batch))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "vit_adapter-upernet",
        "vit_adapter_windowed-upernet",
        "vit_comer-upernet",
        "internimage-mask2former",
        "flash_internimage-upernet",
        "segmenter-mask_transformer",
        "dinov2-linear",
        "dinov3-linear",
        "eva02-upernet",
        "swin-upernet",
    ],
)
def test_dynamic_height_and_width(name, tmp_path):
    model, processor = small(name)
    model.config.inference_mode = "whole"
    file = tmp_path / "model.onnx"
    assert export_model(model, processor, file, size=SIZE, dynamic_size=True, dynamic_batch=True) < 1e-4
    for batch, *size in ((1, 64, 64), (2, 128, 160), (3, 192, 96)):
        images = torch.randn(batch, 3, *size)
        assert_close(run_onnx(file, images), expected(model, images))
    run_by_openvino(file, model, torch.randn(2, 3, 96, 128))


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize("name", LARGE_WINDOWS)
def test_any_number_of_windows(name, suffix, tmp_path):
    """A grid may be smaller than a window, fill it, or have several. The windows have the published models' sizes."""
    model = randomise(upernet(LARGE_WINDOWS[name])).eval()
    file = tmp_path / f"model{suffix}"
    options = {"dynamic_size": True, "dynamic_batch": True}
    assert export_model(model, SegmentationImageProcessor(), file, size=(256, 288), **options) < 1e-4
    run = runner(file)
    for batch, *size in ((1, 64, 64), (1, 224, 224), (2, 448, 224), (2, 96, 256)):
        images = torch.randn(batch, 3, *size)
        assert_close(torch.from_numpy(run(images.numpy())), expected(model, images))


def has_position_tables(name):
    """Return whether a model has tables of relative positions, which are resized outside of the graph."""
    return any(word in name for word in ("beit", "eva01", "one_peace"))


@pytest.mark.parametrize(
    "name",
    [case for case in in_turn(["segmenter-linear", "dinov2-linear"]) if not has_position_tables(case.values[0])],
)
def test_a_program_takes_any_size(name, tmp_path):
    """Also those at which the model takes another path: its own token grid, and sides that need no padding."""
    model, _ = small(name)
    model.config.inference_mode = "whole"
    file = tmp_path / "model.pt2"
    torch.export.save(traced(model, SIZE, options=ExportOptions(dynamic_batch=True, dynamic_size=True)), file)
    program = torch.export.load(file).module()
    for batch, *size in ((1, 64, 64), (2, 128, 160), (1, 224, 224)):
        images = torch.randn(batch, 3, *size)
        with torch.no_grad():
            assert_close(program(images), expected(model, images))


@pytest.mark.parametrize(
    "name", [case for case in in_turn(["vit_adapter_beit-upernet"]) if has_position_tables(case.values[0])]
)
def test_tables_of_positions_need_one_size(name, tmp_path):
    model, processor = small(name)
    with pytest.raises(ValueError, match="is exported for images of one size: leave out dynamic_size"):
        export_model(model, processor, tmp_path / "model.onnx", size=SIZE, dynamic_size=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "precision"),
    [
        (".onnx", "float16"),
        (".onnx", "float16-weights"),
        (".onnx", "int8"),
        (".xml", "float16"),
        (".xml", "float16-weights"),
        (".xml", "int8"),
        (".pt2", "float16"),
        (".pt2", "bfloat16"),
    ],
)
@pytest.mark.parametrize(
    "name", ["vit_adapter-upernet", "internimage-upernet", "vit_adapter-mask2former", "dinov3-linear"]
)
def test_precisions_of_families(name, suffix, precision, tmp_path):
    for package in {".xml": ("openvino", "nncf")}.get(suffix, ()):
        pytest.importorskip(package, reason=f"{package} is not installed (extra `openvino`)")
    model, processor = small(name)
    file = tmp_path / f"model{suffix}"
    calibration = [example_image_path()] if precision == "int8" else []
    error = export_model(model, processor, file, size=SIZE, precision=precision, calibration=calibration)
    assert error <= min(TOLERANCES[precision], 1.0)
    images = torch.randn(1, 3, *SIZE)
    found, wanted = ExportedModel(file)(images, sliding_window=False).logits, expected(model, images)
    assert found.shape == wanted.shape and found.dtype == torch.float32
    agreement = (found.argmax(1) == wanted.argmax(1)).float().mean()
    assert agreement > (0.8 if precision in ("int8", "bfloat16") else 0.97)
