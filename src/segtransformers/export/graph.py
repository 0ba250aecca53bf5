# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Changes of ONNX graphs after PyTorch's exporter wrote them.

This module imports onnx_ir, which comes with the optional package onnxscript.
"""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from .errors import ExportError

MIN_WEIGHTS = 1024  # elements of a tensor that is stored in half precision
# operators that took their axes as an attribute until opset 17
_REDUCTIONS = {"ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare"}
# operators that opset 18 brought
_NEW = {"BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "CenterCropPad", "Col2Im", "GroupNormalization", "Mish"}


def tidy(model: ir.Model) -> None:
    """Remove what the exporter leaves behind: casts of indices, equal computations and equal constants."""
    for node in model.graph:
        _take_int32_indices(node)
    for tidying in (
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
    ):
        tidying(model)


def _take_int32_indices(node: ir.Node) -> None:
    """Give `Gather` the int32 indices that the exporter casts to int64."""
    if node.op_type != "Gather" or node.inputs[1] is None:
        return
    cast = node.inputs[1].producer()
    if cast is not None and cast.op_type == "Cast" and cast.inputs[0] is not None:
        indices = cast.inputs[0]
        if indices.dtype == ir.DataType.INT32:
            node.replace_input_with(1, indices)


def lower_to_opset_17(model: ir.Model) -> None:
    """Write a graph of opset 18 with the operators of opset 17, for older releases of TensorRT and OpenVINO.

    Raises:
        ExportError: if the graph has an operator that opset 17 lacks.
    """
    for node in model.graph:
        if node.op_type in _NEW:
            raise ExportError(f"opset 17 has no operator {node.op_type}: choose opset 18 or newer")
        if node.op_type in _REDUCTIONS and len(node.inputs) > 1 and node.inputs[1] is not None:
            axes = node.inputs[1].const_value
            if axes is None:
                raise ExportError(f"opset 17 needs constant axes for {node.op_type}: choose opset 18 or newer")
            node.attributes["axes"] = ir.AttrInt64s("axes", [int(axis) for axis in axes.numpy().flatten()])
            node.resize_inputs(1)
        if node.op_type == "Resize":
            antialias = node.attributes.get("antialias")
            policy = node.attributes.get("keep_aspect_ratio_policy")
            if (antialias is not None and antialias.as_int()) or (
                policy is not None and policy.as_string() != "stretch"
            ):
                raise ExportError("opset 17 has no antialiased resize: choose opset 18 or newer")
            for name in ("antialias", "keep_aspect_ratio_policy"):
                node.attributes.pop(name, None)
        if node.op_type == "Split" and "num_outputs" in node.attributes:
            del node.attributes["num_outputs"]  # without sizes, opset 17 splits evenly, too
    model.graph.opset_imports[""] = 17
    if "" in model.opset_imports:
        model.opset_imports[""] = 17


def store_half_weights(model: ir.Model) -> None:
    """Store large float32 constants in half precision, with a cast back before their use."""
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if (
            value.name is None
            or tensor is None
            or tensor.dtype != ir.DataType.FLOAT
            or tensor.size < MIN_WEIGHTS
            or not value.uses()
        ):
            continue
        numbers = tensor.numpy()
        if np.abs(numbers).max() > np.finfo(np.float16).max:
            continue
        half = ir.Value(
            name=f"{value.name}_half",
            shape=value.shape,
            type=ir.TensorType(ir.DataType.FLOAT16),
            const_value=ir.tensor(numbers.astype(np.float16), name=f"{value.name}_half"),
        )
        cast = ir.node("Cast", [half], attributes={"to": ir.DataType.FLOAT.value})
        cast.outputs[0].name = f"{value.name}_float"
        cast.outputs[0].shape, cast.outputs[0].type = value.shape, value.type
        first = model.graph[0]
        first.prepend(cast)
        for user, index in list(value.uses()):
            user.replace_input_with(index, cast.outputs[0])
        del model.graph.initializers[value.name]
        model.graph.register_initializer(half)


__all__ = ["lower_to_opset_17", "store_half_weights", "tidy"]
