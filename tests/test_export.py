# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Exported files of each family with each of its heads, run by onnxruntime and by the loader of torch.export."""

import importlib.util
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from model_tests import randomise
from tensorrt_support import refusals
from test_dino_mask2former import frozen_config, native_config
from test_eva01 import eva_config
from test_flash_internimage import small_flash
from test_internimage import small_internimage
from test_seg_linear import small_linear, small_plain_vit
from test_segmenter import small_segmenter, small_vit
from test_vit_adapter import small_config
from test_vit_comer import small_comer
from test_vit_simple_pyramid import small_pyramid
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor
from typer.testing import CliRunner

from segtransformers import (
    SegLinearForSemanticSegmentation,
    SegMask2FormerConfig,
    SegMask2FormerForSemanticSegmentation,
    SegmentationImageProcessor,
    SegmenterForSemanticSegmentation,
    SegSegformerConfig,
    SegSegformerForSemanticSegmentation,
    SegUperNetConfig,
    SegUperNetForSemanticSegmentation,
)
from segtransformers.cli import app
from segtransformers.export import (
    ExportedModel,
    ExportError,
    ExportOptions,
    describe,
    export_model,
    export_size,
    read_description,
    traced,
)
from segtransformers.export.options import TOLERANCES
from segtransformers.export.running import runner
from segtransformers.inference import InferenceProtocol, segment_image
from segtransformers.models.pyramid.modeling_pyramid import PyramidBackbone
from segtransformers.packaged import example_image_path

onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra `export`)")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra `export`)")
pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra `export`)")

SIZE = (64, 96)
ONE_LAYER = {"num_hidden_layers": 1, "interaction_indexes": [[0, 0]], "add_trunk_features": False}
BACKBONES = {
    "vit_adapter": lambda: small_config(**ONE_LAYER),
    "vit_adapter_beit": lambda: small_config(trunk="beitv2_base_patch16_224", **ONE_LAYER),
    "vit_adapter_dinov3": lambda: small_config(trunk="vit_small_patch16_dinov3", **ONE_LAYER),
    "vit_adapter_windowed": lambda: small_config(window_sizes=[3], use_prefix_tokens=False, **ONE_LAYER),
    "vit_comer": lambda: small_comer(**ONE_LAYER),
    "internimage": lambda: small_internimage(depths=[1, 1, 1, 1]),
}


def upernet(backbone):
    config = SegUperNetConfig(backbone_config=backbone(), hidden_size=16, auxiliary_channels=8, num_labels=5)
    return SegUperNetForSemanticSegmentation(config)


def mask2former(backbone, **changes):
    config = SegMask2FormerConfig(
        backbone_config=backbone(),
        hidden_dim=16,
        mask_feature_size=16,
        num_attention_heads=2,
        encoder_layers=1,
        encoder_feedforward_dim=24,
        encoder_attention_heads=2,
        norm_groups=4,
        decoder_layers=2,
        dim_feedforward=24,
        num_queries=7,
        num_labels=5,
        **changes,
    )
    return SegMask2FormerForSemanticSegmentation(config)


def segformer(backbone):
    config = SegSegformerConfig(backbone_config=backbone(), hidden_size=16, num_labels=5)
    return SegSegformerForSemanticSegmentation(config)


def linear(**changes):
    backbone = small_plain_vit(num_hidden_layers=2, out_indices=[1, 2], **changes)
    return SegLinearForSemanticSegmentation(small_linear(backbone))


def segmenter(**changes):
    vit = small_vit(num_hidden_layers=1)
    return SegmenterForSemanticSegmentation(small_segmenter(vit, decoder_num_hidden_layers=1, **changes))


MODELS = {
    **{f"{name}-upernet": (lambda backbone=backbone: upernet(backbone)) for name, backbone in BACKBONES.items()},
    **{
        f"{name}-mask2former": (lambda backbone=backbone: mask2former(backbone)) for name, backbone in BACKBONES.items()
    },
    "dinov2_adapter-mask2former": lambda: mask2former(lambda: native_config(**ONE_LAYER)),
    "dinov3_adapter-mask2former": lambda: mask2former(lambda: frozen_config(**ONE_LAYER), resize_mask_logits=True),
    "one_peace-upernet": lambda: upernet(lambda: small_config(trunk="one_peace_giant_patch16", **ONE_LAYER)),
    "eva01-upernet": lambda: upernet(lambda: eva_config(**ONE_LAYER)),
    "eva02-upernet": lambda: upernet(lambda: small_pyramid(num_hidden_layers=2)),
    "flash_internimage-upernet": lambda: upernet(lambda: small_flash(depths=[1, 1, 1, 1])),
    "internimage-segformer": lambda: segformer(BACKBONES["internimage"]),
    "dinov2-linear": lambda: SegLinearForSemanticSegmentation(
        small_linear(small_plain_vit(num_hidden_layers=2, out_indices=[1, 2]))
    ),
    "dinov2-registers-linear": lambda: SegLinearForSemanticSegmentation(
        small_linear(
            small_plain_vit(
                trunk="vit_small_patch14_reg4_dinov2",
                position_interpolation_offset=0,
                position_interpolation_antialias=True,
                num_hidden_layers=1,
                out_indices=[1],
            )
        )
    ),
    "segmenter-mask_transformer": segmenter,
    "segmenter-linear": lambda: segmenter(decoder_type="linear"),
}


def small(name):
    """Return a small model that runs in windows, and its processor."""
    model = randomise(MODELS[name]()).eval()
    model.config.inference_mode, model.config.window_size, model.config.window_stride = "slide", [32, 32], [32, 32]
    return model, SegmentationImageProcessor()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model with names and colours of its classes, its processor, and its file for any number of images."""
    model, processor = small("segmenter-linear")
    model.config.id2label = dict(enumerate(["sky", "sea", "sand", "shell", "gull"]))
    model.config.palette = [[index, 0, 255] for index in range(5)]
    file = tmp_path_factory.mktemp("exported") / "model.onnx"
    assert export_model(model, processor, file, size=SIZE, dynamic_batch=True) < 1e-4
    return model, processor, file


def expected(model, images):
    options = {"sliding_window": False} if hasattr(model.config, "sliding_window") else {}
    with torch.no_grad():
        return model(images, **options).logits


def run_onnx(path, images):
    session = onnxruntime.InferenceSession(path)
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return torch.from_numpy(logits)


def assert_close(actual, wanted):
    assert actual.shape == wanted.shape and wanted.abs().max() > 1e-2
    torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-4)


def allowed_norms(model):
    """Return the operators of norms that follow a sum instead of a convolution, so that nothing can take them over."""
    follows_sum = any(isinstance(module, PyramidBackbone) for module in model.modules())
    return {"BatchNormalization"} if follows_sum or isinstance(model, SegLinearForSemanticSegmentation) else set()


def in_turn(quick):
    """Return all models as parameters. Those not in `quick` are slow tests, because each export takes seconds."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in MODELS]


@pytest.mark.parametrize("name", in_turn(["segmenter-mask_transformer"]))
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


@pytest.mark.parametrize("name", in_turn(["internimage-upernet"]))
def test_onnx_of_one_image(name, tmp_path):
    model, processor = small(name)
    file = tmp_path / "model.onnx"
    assert export_model(model, processor, file, size=SIZE) < 1e-4
    images = torch.randn(1, 3, *SIZE)
    assert_close(run_onnx(file, images), expected(model, images))
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
    done = run("--model", tmp_path / "model", "--output", file, "--size", 48, 64, "--dynamic-batch", "--opset", 18)
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
