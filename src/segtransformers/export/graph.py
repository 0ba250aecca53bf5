# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Changes of ONNX graphs after PyTorch's exporter wrote them.

This module imports onnx_ir, which comes with the optional package onnxscript.
"""

import onnx_ir as ir
from onnx_ir.passes import common


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


__all__ = ["tidy"]
