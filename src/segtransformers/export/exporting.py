# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Models as single files that run without this package: programs of `torch.export` (.pt2) and ONNX (.onnx).

While a model is traced, deformable layers and BEiT's attention take forms that every runtime has, by themselves. The
file holds what a user of it has to know as JSON, see [`describe`].
"""

import contextlib
import importlib.util
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from ..operators import compiled_operators

FORMATS = (".onnx", ".pt2")
INPUT, OUTPUT = "pixel_values", "logits"
METADATA = "segmentation.json"  # its name in the file
OLDEST_OPSET = 18  # the exporter writes none below it
TOLERANCE = 1e-4  # between the file and the model, as a share of the largest logit
BATCHES = (1, 3)  # that a file for any batch is tried with


class ExportError(RuntimeError):
    """A model that cannot be exported, or a file that does not compute what the model does."""


class LogitsOnly(nn.Module):
    """A model for semantic segmentation as a function from pixels to logits."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """From `(B, 3, H, W)`, normalised, to `(B, num_labels, H, W)`."""
        return self.model(pixel_values=pixel_values).logits


def export_size(model: PreTrainedModel, processor: Any = None) -> tuple[int, int]:
    """(height, width) that a model is exported at: of its window, or else what its processor resizes to.

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
    raise ValueError("neither the model's window nor its processor says a size to export at: give one")


def describe(model: PreTrainedModel, processor: Any, size: Sequence[int], dynamic_batch: bool) -> dict[str, Any]:
    """What the user of an exported file has to know, as JSON.

    Returns:
        `input`, `output`: their names. `batch`: 1, or None for any. `height`, `width`: of the input, in pixels.
        `rescale_factor`, `mean`, `std`: `(pixels * rescale_factor - mean) / std` of RGB pixels 0 ... 255 is the input,
        `(batch, 3, height, width)`. `classes`: the names in the order of the output's channels. `palette`: their
        colours, red, green, blue, or None.
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
    """[`describe`] of an exported file. (It needs no more than these lines, so it works without this package, too.)"""
    if Path(path).suffix == ".onnx":
        import onnx

        proto = onnx.load(path, load_external_data=False)
        return json.loads({entry.key: entry.value for entry in proto.metadata_props}[METADATA])
    files = {METADATA: ""}
    torch.export.load(path, extra_files=files)
    return json.loads(files[METADATA])


@torch.no_grad()
def traced(model: PreTrainedModel, size: Sequence[int], dynamic_batch: bool = False) -> torch.export.ExportedProgram:
    """The `torch.export` program from `pixel_values` `(B, 3, *size)` to `logits`.

    The model runs on whole images, whatever its `inference_mode` says.

    Args:
        model: in evaluation mode.
        size: (height, width) in pixels, fixed in the program.
        dynamic_batch: whether the program takes any B, or only 1.

    Raises:
        ValueError: if the model is in training mode or does not take images of this size.
    """
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() first")
    # 1 would be taken for a constant
    images = torch.zeros(2 if dynamic_batch else 1, 3, *size, dtype=model.dtype, device=model.device)
    shapes = {INPUT: {0: torch.export.Dim("batch")}} if dynamic_batch else None
    with _whole_images(model), compiled_operators("off"):
        return torch.export.export(LogitsOnly(model).eval(), (images,), dynamic_shapes=shapes, strict=False)


def export_model(
    model: PreTrainedModel,
    processor: Any,
    output: str | os.PathLike,
    *,
    size: Sequence[int] | None = None,
    dynamic_batch: bool = False,
    opset: int | None = None,
    check: bool = True,
) -> float | None:
    """Write a model as one file (ONNX of more than 2 GB: two, the weights in `output` + ".data").

    The file appears when it is complete and checked.

    Args:
        model: in evaluation mode, on any device.
        processor: its image processor.
        output: the file, ending in .onnx or .pt2.
        size: (height, width) in pixels; None takes [`export_size`].
        dynamic_batch: whether the file takes any number of images at once, or one.
        opset: of ONNX, 18 or newer; None takes PyTorch's choice.
        check: run the file, with onnxruntime or PyTorch, and compare with the model.

    Returns:
        the largest difference from the model's logits, as a share of the largest of them; None if not checked.

    Raises:
        ValueError: for a wrong argument, or a model that does not take images of this size.
        ImportError: if what writes or runs ONNX is not installed.
        ExportError: if the model cannot be exported, or the file does not compute what the model does.
    """
    output = Path(output)
    if output.suffix not in FORMATS:
        raise ValueError(f"the file must end in {' or '.join(FORMATS)}, got {output.name}")
    if opset is not None and output.suffix != ".onnx":
        raise ValueError("an opset is ONNX's: leave it out for .pt2")
    if opset is not None and opset < OLDEST_OPSET:
        raise ValueError(f"opset must be {OLDEST_OPSET} or newer, got {opset}")
    if output.suffix == ".onnx":
        _require("onnx", "onnxscript", *(["onnxruntime"] if check else []))
    size = tuple(size) if size is not None else export_size(model, processor)
    try:
        program = traced(model, size, dynamic_batch)
    except (ValueError, MemoryError):
        raise
    except Exception as error:  # of many kinds, from a model that is not ours
        raise ExportError(f"torch.export cannot trace {type(model).__name__}: {_reason(error)}") from error
    description = json.dumps(describe(model, processor, size, dynamic_batch))
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
        file = Path(folder) / output.name  # the name of a file of weights beside it is written into it
        if output.suffix == ".pt2":
            torch.export.save(program, file, extra_files={METADATA: description})
        else:
            _write_onnx(program, file, description, opset)
        difference = _largest_error(model, file, size, dynamic_batch) if check else None
        if difference is not None and not difference <= TOLERANCE:
            raise ExportError(
                f"the exported file differs from the model by {difference:.1e} of the largest logit, more than "
                f"{TOLERANCE}"
            )
        for part in sorted(Path(folder).iterdir(), key=lambda part: part.name == output.name):  # itself comes last
            part.replace(output.parent / part.name)
    return difference


def _require(*packages: str) -> None:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ImportError(
            f"this needs {' and '.join(missing)}, which is not installed: pip install 'segtransformers[export]'"
        )


def _write_onnx(program: torch.export.ExportedProgram, file: Path, description: str, opset: int | None) -> None:
    with _quiet("onnxscript", "onnx_ir", "torch.onnx"):
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
        assert exported is not None  # it is for files only
        exported.model.metadata_props[METADATA] = description
        exported.save(file)


@torch.no_grad()
def _largest_error(model: PreTrainedModel, file: Path, size: Sequence[int], dynamic_batch: bool) -> float:
    """The largest difference between the logits of a file and a model, as a share of the largest logit."""
    errors = []
    run = _runner(file)
    generator = torch.Generator().manual_seed(0)
    with _whole_images(model):
        for batch in BATCHES if dynamic_batch else (1,):
            images = torch.randn(batch, 3, *size, generator=generator).to(model.dtype)
            expected = model(pixel_values=images.to(model.device)).logits.float().cpu().numpy()
            difference = np.abs(run(images).astype(np.float32) - expected).max()
            errors.append(float(difference / np.abs(expected).max()))
    return max(errors)


def _runner(file: Path):
    """A function from pixels to logits, that of an exported file."""
    if file.suffix == ".onnx":
        import onnxruntime

        try:
            session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        except Exception as error:  # its kinds have nothing in common
            raise ExportError(
                f"onnxruntime {onnxruntime.__version__} cannot load the file, perhaps for its opset: {_reason(error)}"
            ) from error
        return lambda images: session.run([OUTPUT], {INPUT: images.numpy()})[0]
    program = torch.export.load(file)
    place = next(iter(program.state_dict.values())).device
    return lambda images: program.module()(images.to(place)).float().cpu().numpy()


@contextlib.contextmanager
def _whole_images(model: PreTrainedModel) -> Iterator[None]:
    """No sliding windows for a while: a file has one size, and whoever uses it cuts the windows."""
    config: Any = model.config
    if not hasattr(config, "inference_mode"):
        yield
        return
    before = config.inference_mode
    try:
        config.inference_mode = "whole"
        yield
    finally:
        config.inference_mode = before


@contextlib.contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """No warnings from exporters: they tell how they work, and the file is checked anyway."""
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
    """The first line of what began it: exporters put their own advice in front."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


__all__ = ["ExportError", "LogitsOnly", "describe", "export_model", "export_size", "read_description", "traced"]
