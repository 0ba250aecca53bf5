# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Quantization to int8 by the runtimes' own quantizers."""

import contextlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from .errors import ExportError, reason, require
from .quiet import quiet

QUANTIZED = ("Conv", "Gemm", "MatMul")
QUANTIZED_BY_OPENVINO = ("Convolution", "GroupConvolution", "MatMul")


class _Images:
    """Calibration images as onnxruntime's quantizer reads them."""

    def __init__(self, name: str, images: Iterable[np.ndarray]):
        self.name, self.images = name, iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.images, None)
        return None if image is None else {self.name: image}


def quantize_onnx(source: Path, target: Path, name: str, images: Iterable[np.ndarray]) -> None:
    """Write a quantized ONNX file, with `QuantizeLinear` and `DequantizeLinear` around each quantized operator.

    Convolutions and products with constant weights are quantized, weights by output channel. Products of two
    activations stay in float32, because attention and sampling weights lose too much. So do the results of products,
    some of which are the offsets of deformable layers.

    Args:
        name: of the input.
        images: inputs of the file.

    Raises:
        ExportError: if the quantizer refuses the graph.
    """
    require("onnxruntime")
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = source.with_name("prepared.onnx")
    try:
        with quiet("root"):
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            graph = onnx.load(prepared, load_external_data=False).graph
            constants = {tensor.name for tensor in graph.initializer}
            kept = [
                node.name
                for node in graph.node
                if node.op_type in QUANTIZED and not any(one in constants for one in node.input[:2])
            ]
            quantize_static(
                str(prepared),
                str(target),
                _Images(name, images),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTIZED),
                nodes_to_exclude=kept,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
            )
    except OSError:  # a full disk
        raise
    except Exception as error:  # the quantizer raises errors of many kinds
        raise ExportError(f"onnxruntime cannot quantize the model: {reason(error)}") from error
    finally:
        prepared.unlink(missing_ok=True)


def quantize_openvino(model: Any, images: Iterable[np.ndarray]) -> Any:
    """Return an OpenVINO model that NNCF quantized with calibration images.

    As in [`quantize_onnx`], only convolutions and products with constant weights are quantized. NNCF would quantize
    sums and products of coordinates, too, and with them the packaged model loses 14 points of mean IoU.

    Raises:
        ImportError: if NNCF is not installed.
        ExportError: if it refuses the model.
    """
    require("nncf", extra="openvino")
    import nncf

    kept = [node.get_friendly_name() for node in model.get_ops() if not _has_constant_weights(node)]
    try:
        data = list(images)
        # its progress and its log would mix with the results that a command prints
        with quiet("nncf"), contextlib.redirect_stdout(sys.stderr):
            return nncf.quantize(
                model,
                nncf.Dataset(data),
                subset_size=len(data),
                model_type=nncf.ModelType.TRANSFORMER,
                ignored_scope=nncf.IgnoredScope(names=kept, validate=False),
            )
    except Exception as error:  # NNCF raises errors of many kinds
        raise ExportError(f"NNCF cannot quantize the model: {reason(error)}") from error


def _has_constant_weights(node: Any) -> bool:
    """Return whether an OpenVINO node is a convolution or a product with constant weights."""
    return node.get_type_name() in QUANTIZED_BY_OPENVINO and any(
        _is_constant(value.get_node()) for value in node.input_values()
    )


def _is_constant(node: Any) -> bool:
    """Return whether a node is a constant, perhaps behind nodes that change its dtype or shape only."""
    if node.get_type_name() in ("Convert", "Reshape", "Transpose"):
        return _is_constant(node.input_value(0).get_node())
    return node.get_type_name() == "Constant"


__all__ = ["quantize_onnx", "quantize_openvino"]
