# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Check of ONNX graphs against the operators that TensorRT's documentation lists (`tensorrt_operators.json`)."""

import json
from pathlib import Path

import pytest

onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra `export`)")
TensorProto = onnx.TensorProto

SUPPORT = json.loads(Path(__file__).with_name("tensorrt_operators.json").read_text())
TYPES = {
    TensorProto.FLOAT: "FP32", TensorProto.FLOAT16: "FP16", TensorProto.BFLOAT16: "BF16", TensorProto.INT8: "INT8",
    TensorProto.INT32: "INT32", TensorProto.INT64: "INT64", TensorProto.BOOL: "BOOL",
}  # fmt: skip
ARITHMETIC = {"Abs", "Add", "Div", "Max", "Min", "Mod", "Mul", "Neg", "Pow", "Sub", "Sum"}


def refusals(model):
    """Return what TensorRT is not documented to support in a graph, as sorted lines without repetitions.

    int64 arithmetic is refused unless it computes a shape.
    """
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output, *graph.value_info)}
    types.update({tensor.name: tensor.data_type for tensor in graph.initializer})
    shapes = {tensor.name for tensor in graph.initializer}  # values that depend on shapes and constants only
    ends = {value.name for value in (*graph.input, *graph.output)}
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    found = {f"opset {version}" for version in versions if not SUPPORT["opsets"][0] <= version <= SUPPORT["opsets"][1]}
    for node in graph.node:
        operator, inputs = node.op_type, [name for name in node.input if name]
        if operator not in SUPPORT["operators"] or node.domain not in ("", "ai.onnx"):
            found.add(f"{node.domain}.{operator}".strip("."))
            continue
        is_shape = operator in ("Shape", "Size", "Constant") or shapes.issuperset(inputs)
        if is_shape:
            shapes.update(node.output)
        # the types in the list are those of the data, which come first; sizes and axes are int64
        for name in [*inputs[:1], *node.output[:1]]:
            kind = TYPES.get(types[name], TensorProto.DataType.Name(types[name]))
            known = SUPPORT["operators"][operator].split()
            is_comparison = name in node.output and kind == "BOOL"
            is_size = name in node.output and kind == "INT64" and operator in ("Shape", "Size", "ArgMax", "ArgMin")
            is_end = kind == "UINT8" and name in ends
            is_quantizing = (operator, kind) in (("QuantizeLinear", "INT8"), ("DequantizeLinear", "FP32"))
            if kind not in known and not (is_comparison or is_size or is_end or is_quantizing):
                found.add(f"{operator} of {kind}")
        if operator in ARITHMETIC and not is_shape and any(types[name] == TensorProto.INT64 for name in inputs):
            found.add(f"int64 arithmetic: {operator}")
        for attribute in node.attribute:
            allowed = SUPPORT["restrictions"].get(operator, {}).get(attribute.name)
            value = onnx.helper.get_attribute_value(attribute)
            value = value.decode() if isinstance(value, bytes) else value
            if allowed is not None and value not in allowed:
                found.add(f"{operator} with {attribute.name} {value}")
    return sorted(found)
