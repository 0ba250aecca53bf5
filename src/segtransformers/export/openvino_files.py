# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""OpenVINO's files (.xml and .bin), converted from ONNX."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from .errors import ExportError, reason
from .options import ExportOptions


def write_openvino(
    source: Path, target: Path, description: str, options: ExportOptions, images: Iterable[np.ndarray]
) -> None:
    """Convert an ONNX file.

    Args:
        description: JSON that the file holds as `rt_info/segmentation`.
        images: inputs for the calibration of int8.

    Raises:
        ExportError: if OpenVINO cannot convert the file.
    """
    import openvino

    try:
        model = openvino.convert_model(str(source))
    except Exception as error:  # its errors have no base class of their own
        raise ExportError(f"OpenVINO cannot convert the model: {reason(error)}") from error
    if options.precision == "int8":
        from .quantizing import quantize_openvino

        model = quantize_openvino(model, images)
    model.set_rt_info(description, ["segmentation"])
    openvino.save_model(model, str(target), compress_to_fp16=options.precision == "float16-weights")


__all__ = ["write_openvino"]
