# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Options of an export."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FORMATS = (".onnx", ".xml", ".pt2")
RUNTIME_FORMATS = {"onnxruntime": ".onnx", "openvino": ".xml", "torch": ".pt2", "aot-inductor": ".pt2"}
SAMPLINGS = ("gather", "grid_sample")
PRECISIONS = ("float32", "float16", "bfloat16", "float16-weights", "int8")
RESULTS = ("logits", "labels")
OLDEST_OPSET = 17
SIZE_MULTIPLE = 32  # of the sides of a file with a dynamic size

# largest difference between the logits of the file and of the model, as a share of the largest logit; int8 has no
# bound, because the loss depends on the calibration images: its mean IoU has to be measured
TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1, "float16-weights": 1e-2, "int8": float("inf")}


@dataclass(frozen=True)
class ExportOptions:
    """Form of an exported file.

    Attributes:
        dynamic_batch: whether the file takes any number of images at once instead of only one.
        dynamic_size: whether the file takes images of any height and width that are multiples of 32.
        opset: version of the ONNX operators, 17 or newer; None takes the choice of PyTorch.
        sampling: how deformable layers sample. "gather" uses gathers and arithmetic, "grid_sample" the operator
            GridSample, which TensorRT 10.13 to 11.1 computes wrongly in deformable attention. None takes "gather" for
            ONNX and OpenVINO, and "grid_sample" for .pt2.
        precision: dtype of the arithmetic. Input and result stay float32. "float16-weights" stores weights in half
            precision and computes in float32. "int8" quantizes convolutions and matrix products with constant weights.
        calibration: for "int8": paths of images whose activations give the ranges.
        takes_pixels: whether the input is `(B, H, W, channels)` uint8 instead of normalised `(B, channels, H, W)`.
        result: "logits", or "labels" for label maps `(B, H, W)` of uint8.
        compiled: for .pt2: whether AOTInductor compiles the program. The file then runs on the kind of CPU or GPU of
            this machine only, with the version of PyTorch that wrote it.

    Raises:
        ValueError: if an option is not valid or two contradict each other.
    """

    dynamic_batch: bool = False
    dynamic_size: bool = False
    opset: int | None = None
    sampling: str | None = None
    precision: str = "float32"
    calibration: list[Any] = field(default_factory=list)
    takes_pixels: bool = False
    result: str = "logits"
    compiled: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (
            ("sampling", self.sampling or SAMPLINGS[0], SAMPLINGS),
            ("precision", self.precision, PRECISIONS),
            ("result", self.result, RESULTS),
        ):
            if value not in known:
                raise ValueError(f"{name} must be {' or '.join(known)}, got {value}")
        if self.opset is not None and self.opset < OLDEST_OPSET:
            raise ValueError(f"opset must be {OLDEST_OPSET} or newer, got {self.opset}")
        if (self.precision == "int8") != bool(self.calibration):
            raise ValueError(
                "int8 needs calibration images"
                if self.precision == "int8"
                else f"calibration images are for precision int8, got {self.precision}"
            )

    def check_format(self, suffix: str) -> None:
        """Check that a format has these options.

        Raises:
            ValueError: if it does not.
        """
        if suffix not in FORMATS:
            raise ValueError(
                f"the file must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, got {suffix or 'nothing'}"
            )
        if self.opset is not None and suffix != ".onnx":
            raise ValueError(f"opset is an option of ONNX: leave it out for {suffix}")
        if self.compiled and suffix != ".pt2":
            raise ValueError(f"compiled is an option of .pt2: leave it out for {suffix}")
        if suffix == ".pt2" and self.precision in ("float16-weights", "int8"):
            raise ValueError(f"precision {self.precision} is for .onnx and .xml, not for .pt2")
        if suffix == ".xml" and self.precision == "bfloat16":
            raise ValueError("OpenVINO files have no precision bfloat16: choose float16 or float16-weights")

    def sampling_of(self, suffix: str) -> str:
        """Return how deformable layers sample in files that end in `suffix`."""
        return self.sampling or ("grid_sample" if suffix == ".pt2" else "gather")


def files_of(file: Path) -> list[Path]:
    """Return an exported file, and the file of its weights if it has one."""
    weights = file.with_suffix(".bin") if file.suffix == ".xml" else file.with_name(f"{file.name}.data")
    return [file, *([weights] if file.suffix in (".xml", ".onnx") and weights.is_file() else [])]


__all__ = [
    "FORMATS",
    "OLDEST_OPSET",
    "RESULTS",
    "PRECISIONS",
    "RUNTIME_FORMATS",
    "SAMPLINGS",
    "SIZE_MULTIPLE",
    "TOLERANCES",
    "ExportOptions",
    "files_of",
]
