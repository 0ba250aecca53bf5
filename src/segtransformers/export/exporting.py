# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Export of models to single files that run without this package: `torch.export` programs (.pt2) and ONNX (.onnx).

While a model is traced, deformable layers and BEiT's attention use operators that every runtime has. The file describes
its input and output as JSON, see [`describe`].
"""

import contextlib
import copy
import importlib.util
import io
import json
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from ..files import staging_folder
from ..models.input_channels import input_channels
from ..operators import compiled_operators, gathers_in_exports
from .layers import replace_layers

FORMATS = (".onnx", ".pt2")
SAMPLINGS = ("gather", "grid_sample")
INPUT, OUTPUT = "pixel_values", "logits"
METADATA = "segmentation.json"  # name of the description in the file
OLDEST_OPSET = 18  # PyTorch's exporter writes no older version
TOLERANCE = 1e-4  # largest difference between logits of the file and of the model, as a share of the largest logit
CHECKED_BATCH_SIZES = (1, 3)  # for files with a dynamic batch
# torch.export and its ONNX exporter change state of the whole process: one export at a time
_EXPORTING = threading.Lock()


class ExportError(RuntimeError):
    """The model cannot be exported, or the file computes something else than the model."""


class LogitsOnly(nn.Module):
    """Wrap a model for semantic segmentation as a function from pixels to logits, on whole images."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        # a file has one input size, so whoever runs it cuts larger images into windows
        self.options = {"sliding_window": False} if hasattr(model.config, "sliding_window") else {}

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Map normalised images `(B, channels, H, W)` to logits `(B, num_labels, H, W)`."""
        return self.model(pixel_values=pixel_values, **self.options).logits


def export_size(model: PreTrainedModel, processor: Any = None) -> tuple[int, int]:
    """Return the (height, width) that a model is exported at: its window, or else the size its processor resizes to.

    Raises:
        ValueError: if neither is fixed.
    """
    window = getattr(model.config, "window_size", None)
    if window is not None:
        return int(window[0]), int(window[1])
    size = dict(getattr(processor, "size", None) or {})
    if size.get("height") and size.get("width"):
        return int(size["height"]), int(size["width"])
    if size.get("shortest_edge"):
        return int(size["shortest_edge"]), int(size["shortest_edge"])
    raise ValueError("neither the model's window nor its processor has a size to export at: pass size=(height, width)")


def describe(model: PreTrainedModel, processor: Any, size: Sequence[int], dynamic_batch: bool) -> dict[str, Any]:
    """Describe the input and output of an exported file.

    Returns:
        a dict that JSON can hold.
        `input`, `output`: their names.
        `batch`: 1, or None for any number of images.
        `height`, `width`: of the input, in pixels.
        `rescale_factor`, `mean`, `std`: for RGB pixels from 0 to 255, `(pixels * rescale_factor - mean) / std` is the
        input `(batch, channels, height, width)`.
        `classes`: their names in the order of the output's channels.
        `palette`: `[red, green, blue]` of each class, or None.
    """
    rescale = getattr(processor, "rescale_factor", 1 / 255) if getattr(processor, "do_rescale", True) else 1.0
    normalised = getattr(processor, "do_normalize", False)
    names: Any = model.config.id2label
    return {
        "input": INPUT,
        "output": OUTPUT,
        "batch": None if dynamic_batch else 1,
        "height": size[0],
        "width": size[1],
        "rescale_factor": rescale,
        "mean": list(processor.image_mean) if normalised else [0.0] * 3,
        "std": list(processor.image_std) if normalised else [1.0] * 3,
        "classes": [names[index] for index in sorted(names)],
        "palette": getattr(model.config, "palette", None),
    }


def read_description(path: str | os.PathLike) -> dict[str, Any]:
    """Read the description of an exported file, see [`describe`].

    These lines need nothing of this package, so users of a file may copy them.
    """
    if Path(path).suffix == ".onnx":
        import onnx

        proto = onnx.load(path, load_external_data=False)
        return json.loads({entry.key: entry.value for entry in proto.metadata_props}[METADATA])
    files = {METADATA: ""}
    torch.export.load(path, extra_files=files)
    return json.loads(files[METADATA])


@torch.no_grad()
def traced(
    model: PreTrainedModel, size: Sequence[int], dynamic_batch: bool = False, sampling: str = "grid_sample"
) -> torch.export.ExportedProgram:
    """Trace the `torch.export` program from `pixel_values` `(B, channels, *size)` to `logits`.

    The program runs on whole images, also if the model has a sliding window. Other threads may run the model meanwhile;
    deformable operators use plain PyTorch in all threads until the program is traced.

    Args:
        model: in evaluation mode.
        size: (height, width) in pixels, fixed in the program.
        dynamic_batch: whether the program takes any B instead of only 1.
        sampling: "gather" or "grid_sample", see [`export_model`].

    Raises:
        ValueError: if the model is in training mode or does not take images of this size.
    """
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() first")
    batch_size = 2 if dynamic_batch else 1  # torch.export would fix a batch size of 1
    images = torch.zeros(batch_size, input_channels(model.config), *size, dtype=model.dtype, device=model.device)
    shapes = {INPUT: {0: torch.export.Dim("batch")}} if dynamic_batch else None
    with _EXPORTING, compiled_operators("off"), gathers_in_exports(sampling == "gather"):
        copied = _copy_with_the_same_tensors(model)
        replace_layers(copied, gathers=sampling == "gather")
        module = LogitsOnly(copied).eval()
        return torch.export.export(module, (images,), dynamic_shapes=shapes, strict=False)


def _copy_with_the_same_tensors(model: PreTrainedModel) -> PreTrainedModel:
    """Copy the modules of a model, but neither its parameters nor its buffers.

    While torch.export traces a module it exchanges the parameters, which other threads would see.
    """
    tensors: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, tensors)


def export_model(
    model: PreTrainedModel,
    processor: Any,
    output: str | os.PathLike,
    *,
    size: Sequence[int] | None = None,
    dynamic_batch: bool = False,
    opset: int | None = None,
    sampling: str | None = None,
    check: bool = True,
) -> float | None:
    """Write a model as one file. ONNX of more than 2 GB gets a second file, `output` + ".data", with the weights.

    The file appears when it is complete and checked.

    Args:
        model: in evaluation mode, on any device.
        processor: its image processor.
        output: the file, ending in .onnx or .pt2.
        size: (height, width) in pixels; None takes [`export_size`].
        dynamic_batch: whether the file takes any number of images at once instead of only one.
        opset: version of the ONNX operators, 18 or newer; None takes the choice of PyTorch.
        sampling: how deformable layers sample. "gather" uses gathers and arithmetic, "grid_sample" the operator
            GridSample, which TensorRT 10.13 to 11.1 computes wrongly in deformable attention. None takes "gather" for
            ONNX, and "grid_sample" for .pt2.
        check: whether to run the file, with onnxruntime or PyTorch, and compare its logits with the model's.

    Returns:
        the largest difference from the model's logits, as a share of the largest of them; None without a check.

    Raises:
        ValueError: if an argument is wrong, or the model does not take images of this size.
        ImportError: if a package that writes or runs ONNX is not installed.
        ExportError: if the model cannot be exported, or the file computes something else than the model.
    """
    output = Path(output)
    if output.suffix not in FORMATS:
        raise ValueError(f"the file must end in {' or '.join(FORMATS)}, got {output.name}")
    sampling = sampling or ("gather" if output.suffix == ".onnx" else "grid_sample")
    if sampling not in SAMPLINGS:
        raise ValueError(f"sampling must be {' or '.join(SAMPLINGS)}, got {sampling}")
    if opset is not None and output.suffix != ".onnx":
        raise ValueError("opset is an option of ONNX: leave it out for .pt2")
    if opset is not None and opset < OLDEST_OPSET:
        raise ValueError(f"opset must be {OLDEST_OPSET} or newer, got {opset}")
    if output.suffix == ".onnx":
        _require("onnx", "onnxscript", *(["onnxruntime"] if check else []))
        newest = importlib.import_module("onnx").defs.onnx_opset_version()
        if opset is not None and opset > newest:
            raise ValueError(f"opset must be at most {newest}, the newest that the package onnx has, got {opset}")
    size = tuple(size) if size is not None else export_size(model, processor)
    try:
        program = traced(model, size, dynamic_batch, sampling)
    except (ValueError, MemoryError):
        raise
    except Exception as error:  # models of others raise errors of many kinds
        raise ExportError(f"torch.export cannot trace {type(model).__name__}: {_reason(error)}") from error
    description = json.dumps(describe(model, processor, size, dynamic_batch))
    with staging_folder(output) as folder:
        file = folder / output.name  # ONNX stores the name of the file with the weights
        if output.suffix == ".pt2":
            _write_program(program, file, description)
        else:
            _write_onnx(program, file, description, opset)
        difference = _largest_error(model, file, size, dynamic_batch) if check else None
        if difference is not None and not difference <= TOLERANCE:
            raise ExportError(
                f"the exported file differs from the model by {difference:.1e} of the largest logit, more than "
                f"{TOLERANCE}"
            )
        for part in sorted(folder.iterdir(), key=lambda part: part.name == output.name):  # the weights first
            part.replace(output.parent / part.name)
    return difference


def _require(*packages: str) -> None:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ImportError(
            f"this needs {' and '.join(missing)}, which is not installed: pip install 'segtransformers[export]'"
        )


class _WriteErrorsKept(io.BufferedIOBase):
    """A file for PyTorch's archive writer, which aborts the process if a write raises an error.

    Attributes:
        error: the first error. What is written after it is dropped.
    """

    def __init__(self, file: BinaryIO):
        self.file = file
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self.file.seekable()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes


def _write_program(program: torch.export.ExportedProgram, path: Path, description: str) -> None:
    with open(path, "wb") as file:
        kept: Any = _WriteErrorsKept(file)
        torch.export.save(program, kept, extra_files={METADATA: description})
        if kept.error is not None:
            raise kept.error


def _write_onnx(program: torch.export.ExportedProgram, file: Path, description: str, opset: int | None) -> None:
    with _EXPORTING, _quiet("onnxscript", "onnx_ir", "torch.onnx"):
        try:
            exported = torch.onnx.export(
                program,
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=opset,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ExportError(f"ONNX cannot express the model: {_reason(error)}") from error
        assert exported is not None  # None is returned only if the exporter writes the file itself
        from .graph import tidy  # needs an optional package

        tidy(exported.model)
        exported.model.metadata_props[METADATA] = description
        exported.save(file)


@torch.no_grad()
def _largest_error(model: PreTrainedModel, file: Path, size: Sequence[int], dynamic_batch: bool) -> float:
    """Return the largest difference between the logits of a file and of a model, as a share of the largest logit."""
    errors = []
    run, forward = _runner(file), LogitsOnly(model)
    generator = torch.Generator().manual_seed(0)
    for batch_size in CHECKED_BATCH_SIZES if dynamic_batch else (1,):
        images = torch.randn(batch_size, input_channels(model.config), *size, generator=generator).to(model.dtype)
        expected = forward(images.to(model.device)).float().cpu().numpy()
        difference = np.abs(run(images).astype(np.float32) - expected).max()
        errors.append(float(difference / np.abs(expected).max()))
    return max(errors)


def _runner(file: Path) -> Callable[[torch.Tensor], np.ndarray]:
    """Load an exported file as a function from pixels to logits."""
    if file.suffix == ".onnx":
        import onnxruntime

        try:
            session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        except Exception as error:  # the errors of onnxruntime have no base class of their own
            raise ExportError(
                f"onnxruntime {onnxruntime.__version__} cannot load the file, perhaps because of its opset: "
                f"{_reason(error)}"
            ) from error
        return lambda images: session.run([OUTPUT], {INPUT: images.numpy()})[0]
    program = torch.export.load(file)
    device = next(iter(program.state_dict.values())).device
    return lambda images: program.module()(images.to(device)).float().cpu().numpy()


@contextlib.contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Hide the warnings of exporters, which are about their own code. The file is checked anyway."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _reason(error: BaseException) -> str:
    """Return the first line of the original error: exporters wrap it in errors with general advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


__all__ = ["ExportError", "LogitsOnly", "describe", "export_model", "export_size", "read_description", "traced"]
