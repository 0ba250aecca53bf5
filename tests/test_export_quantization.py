# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Nodes of exported graphs that the int8 quantizers change: convolutions and products with constant weights."""

import numpy as np
import pytest
import torch
from export_cases import BACKBONES, SIZE
from model_tests import randomise
from test_seg_linear import small_linear

from segtransformers import SegLinearForSemanticSegmentation, SegmentationImageProcessor
from segtransformers.export import export_model
from segtransformers.export.quantizing import quantize_onnx, quantize_openvino

onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra `export`)")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra `export`)")
pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra `export`)")

# nodes that only change the order of the data, behind which a quantizer may put the rounding of a node's input
ARRANGING = {"Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze", "Split", "Concat", "Pad", "Convert"}


@pytest.fixture(scope="module", params=["vit_adapter", pytest.param("internimage", marks=pytest.mark.slow)])
def file(request, tmp_path_factory):
    """An exported model with deformable layers, as ONNX in float32."""
    torch.manual_seed(0)
    model = randomise(SegLinearForSemanticSegmentation(small_linear(BACKBONES[request.param]()))).eval()
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    export_model(model, SegmentationImageProcessor(), path, size=SIZE)
    return path


def images():
    generator = np.random.default_rng(0)
    return [generator.standard_normal((1, 3, *SIZE), dtype=np.float32) for _ in range(2)]


def between(starts, producers, ends):
    """Return the kinds of nodes from the given values back to nodes of the kinds `ends`, which are left out.

    Args:
        starts: names of values.
        producers: kind and inputs of the node that computes a value, by the name of the value.
        ends: kinds of nodes.
    """
    found, waiting, seen = [], list(starts), set()
    while waiting:
        value = waiting.pop()
        if value in seen or value not in producers:
            continue
        seen.add(value)
        kind, inputs = producers[value]
        if kind not in ends:
            found.append(kind)
            waiting += inputs
    return found


def test_onnxruntime_quantizes_products_with_weights(file, tmp_path):
    target = tmp_path / "int8.onnx"
    quantize_onnx(file, target, "pixel_values", images())
    graph = onnx.load(target).graph
    producers = {name: (node.op_type, list(node.input)) for node in graph.node for name in node.output}
    constants = {tensor.name for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    quantized = [node for node in products if producers.get(node.input[1], ("",))[0] == "DequantizeLinear"]
    weights = [producers[node.input[1]][1][0] for node in quantized]
    assert set(weights) <= constants and len(quantized) > 10
    # products of two activations stay in float32, and so do those with constants that are no weights
    others = [node for node in products if node not in quantized]
    assert not any(name in constants for node in others for name in node.input[:2])
    indices = [node.input[1] for node in graph.node if node.op_type == "Gather" and node.input[1] in producers]
    geometry = between(indices, producers, {"Conv", "Gemm", "MatMul"})
    assert "Floor" in geometry and not {"QuantizeLinear", "DequantizeLinear"} & set(geometry)


def test_nncf_quantizes_products_with_weights(file):
    openvino = pytest.importorskip("openvino", reason="openvino is not installed (extra `openvino`)")
    pytest.importorskip("nncf", reason="nncf is not installed (extra `openvino`)")
    model = quantize_openvino(openvino.Core().read_model(file), images())
    nodes = {node.get_friendly_name(): node for node in model.get_ops()}
    users = {
        name: {target.get_node().get_type_name() for value in node.outputs() for target in value.get_target_inputs()}
        for name, node in nodes.items()
    }
    rounded = [name for name, node in nodes.items() if node.get_type_name() == "FakeQuantize"]
    assert len(rounded) > 10
    assert all(users[name] - ARRANGING <= {"Convolution", "GroupConvolution", "MatMul"} for name in rounded)
    producers = {
        name: (node.get_type_name(), [value.get_node().get_friendly_name() for value in node.input_values()])
        for name, node in nodes.items()
    }
    indices = [producers[name][1][1] for name in nodes if producers[name][0] == "Gather"]
    geometry = between(indices, producers, {"Convolution", "GroupConvolution", "MatMul"})
    assert "Floor" in geometry and "FakeQuantize" not in geometry
