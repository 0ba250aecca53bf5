# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Export of models to files that run without this package: ONNX (.onnx), OpenVINO (.xml), PyTorch (.pt2).

While a model is traced, deformable layers and BEiT's attention use operators that every runtime has. The file describes
its input and output as JSON, see [`describe`].
"""

import copy
import importlib
import json
import math
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from ..datasets.reading import read_image
from ..files import staging_folder
from ..image_processing import decision_of
from ..models.input_channels import input_channels
from ..operators import compiled_operators, gathers_in_exports
from .description import INPUT, METADATA, describe, export_size
from .errors import ExportError, reason, require
from .layers import replace_layers
from .options import SIZE_MULTIPLE, TOLERANCES, ExportOptions
from .programs import check_compiler, write_compiled_program, write_program
from .quiet import quiet
from .running import runner

EXAMPLE_SIZE = (96, 160)  # torch.export takes equal numbers of steps, or of images, for one number
LARGEST_STEPS = 256  # of 32 pixels along a side of a file with a dynamic size

CHECKED_BATCH_SIZES = (1, 3)  # for files with a dynamic batch
# torch.export and its ONNX exporter change state of the whole process: one export at a time
_EXPORTING = threading.Lock()


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


class Pipeline(nn.Module):
    """The model of an exported file: [`LogitsOnly`] with float32 input and output, and optional steps around it.

    Args:
        model: in evaluation mode.
        description: see [`describe`].
        options: of the export.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, model: PreTrainedModel, description: dict[str, Any], options: ExportOptions):
        super().__init__()
        self.logits, self.dtype, self.options = LogitsOnly(model), model.dtype, options
        self.decision = decision_of(model.config)
        mean, std = (torch.tensor(description[name], dtype=torch.float32) for name in ("mean", "std"))
        self.register_buffer("scale", (description["rescale_factor"] / std)[:, None, None].to(model.device))
        self.register_buffer("shift", (-mean / std)[:, None, None].to(model.device))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Map images to logits `(B, num_labels, H, W)` or label maps `(B, H, W)`."""
        if self.options.takes_pixels:
            # the cast comes first, because TensorRT transposes no 8-bit images
            pixel_values = pixel_values.float().permute(0, 3, 1, 2) * self.scale + self.shift
        logits = self.logits(pixel_values.to(self.dtype))
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self.options.result == "logits":
            return logits
        if self.decision.threshold is not None:
            limit = math.log(self.decision.threshold / (1 - self.decision.threshold))
            return (logits[:, 0] > limit).to(torch.uint8)
        return logits.argmax(dim=1).to(torch.uint8)


@torch.no_grad()
def traced(
    model: PreTrainedModel, size: Sequence[int], dynamic_batch: bool = False, processor: Any = None,
    options: ExportOptions | None = None, sampling: str = "grid_sample", fused_attention: bool = True,
) -> torch.export.ExportedProgram:  # fmt: skip
    """Trace the `torch.export` program from `pixel_values` `(B, channels, *size)` to `logits`.

    The program runs on whole images, also if the model has a sliding window. Other threads may run the model meanwhile;
    deformable operators use plain PyTorch in all threads until the program is traced.

    Args:
        model: in evaluation mode.
        size: (height, width) in pixels, fixed in the program unless `options` say otherwise.
        dynamic_batch: whether the program takes any B instead of only 1.
        processor: the model's image processor, for programs that take pixels.
        options: of the export; None takes the defaults.
        sampling: "gather" or "grid_sample", see [`ExportOptions`].
        fused_attention: whether transformers' own models keep `scaled_dot_product_attention`. ONNX's exporter replaces
            it by operators with another memory layout, so that the layers behind it fail.

    Raises:
        ValueError: if the model is in training mode or does not take images of this size.
    """
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() first")
    options = options or ExportOptions(dynamic_batch=dynamic_batch)
    batch_size = 2 if options.dynamic_batch else 1  # torch.export would fix a batch size of 1
    images = _images(model, batch_size, EXAMPLE_SIZE if options.dynamic_size else size, options)
    dims: dict[int, Any] = {0: torch.export.Dim("batch")} if options.dynamic_batch else {}
    if options.dynamic_size:
        first = 1 if options.takes_pixels else 2
        for axis, name in ((first, "height"), (first + 1, "width")):
            dims[axis] = SIZE_MULTIPLE * torch.export.Dim(f"{name}_steps", min=2, max=LARGEST_STEPS)
    with _EXPORTING, compiled_operators("off"), gathers_in_exports(sampling == "gather"):
        copied = _copy_with_the_same_tensors(model)
        if not fused_attention:
            copied.set_attn_implementation("eager")
        replace_layers(copied, gathers=sampling == "gather", dynamic_size=options.dynamic_size)
        description = describe(model, processor, size, options)
        module = Pipeline(copied, description, options).eval()
        return torch.export.export(module, (images,), dynamic_shapes={INPUT: dims} if dims else None, strict=False)


def _images(model: PreTrainedModel, batch: int, size: Sequence[int], options: ExportOptions) -> torch.Tensor:
    """Return random images as the file takes them, on the model's device."""
    channels, generator = input_channels(model.config), torch.Generator().manual_seed(0)
    if options.takes_pixels:
        images = torch.randint(0, 256, (batch, *size, channels), dtype=torch.uint8, generator=generator)
    else:
        images = torch.randn(batch, channels, *size, generator=generator)
        images = images.double() if model.dtype == torch.float64 else images
    return images.to(model.device)


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
    check: bool = True,
    **options: Any,
) -> float | None:
    """Write a model as one file, with a second one for the weights of OpenVINO and of ONNX of more than 2 GB.

    The second file is `output` with the ending .bin, or `output` + ".data". The files appear when they are complete and
    checked.

    Args:
        model: in evaluation mode, on any device.
        processor: its image processor.
        output: the file, ending in .onnx, .xml (OpenVINO) or .pt2.
        size: (height, width) in pixels; None takes [`export_size`].
        check: whether to run the file, with onnxruntime, OpenVINO or PyTorch, and compare it with the model.
        options: fields of [`ExportOptions`].

    Returns:
        the largest difference from the model's logits, as a share of the largest of them, or the share of pixels with
        another label; None without a check.

    Raises:
        ValueError: if an argument is wrong, or the model does not take images of this size.
        ImportError: if a package that writes or runs the file is not installed.
        ExportError: if the model cannot be exported, or the file computes something else than the model.
    """
    output, chosen = Path(output), ExportOptions(**options)
    chosen.check_format(output.suffix)
    size = tuple(size) if size is not None else export_size(model, processor)
    if chosen.dynamic_size and any(side % SIZE_MULTIPLE for side in size):
        raise ValueError(f"files with a dynamic size need an example size of multiples of {SIZE_MULTIPLE}, got {size}")
    names: Any = model.config.id2label
    if chosen.result == "labels" and len(names) > 256:
        raise ValueError(f"label maps of 8 bits hold 256 classes, but the model has {len(names)}")
    if chosen.result == "labels" and getattr(model.config, "is_multi_label", False):
        raise ValueError("a model of overlapping classes has no label maps: export its logits")
    if check and output.suffix == ".onnx" and chosen.precision == "bfloat16":
        raise ValueError(
            "onnxruntime has no convolutions in bfloat16 on CPUs, so it cannot check the file: leave the check out "
            "(--no-check), or choose float16"
        )
    if output.suffix != ".pt2":
        _check_packages(output.suffix, chosen, check)
    elif chosen.compiled:
        check_compiler()
    for path in chosen.calibration:  # a damaged image is named before minutes of work
        read_image(path, str(path))
    dtype = {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(chosen.precision)
    source = model if dtype is None else copy.deepcopy(model).to(dtype)  # type: ignore[arg-type]
    try:
        program = traced(
            source, size, processor=processor, options=chosen, sampling=chosen.sampling_of(output.suffix),
            fused_attention=output.suffix == ".pt2",
        )  # fmt: skip
    except (ValueError, MemoryError):
        raise
    except Exception as error:  # models of others raise errors of many kinds
        raise ExportError(f"torch.export cannot trace {type(model).__name__}: {reason(error)}") from error
    description = describe(model, processor, size, chosen)
    with staging_folder(output) as folder:
        file = folder / output.name  # ONNX stores the name of the file with the weights
        _write(program, file, description, chosen, size, processor)
        difference = _largest_error(model, file, description, size, chosen) if check else None
        bound = TOLERANCES[chosen.precision]
        if difference is not None and not difference <= bound:
            kind = "in this share of labels" if chosen.result == "labels" else "of the largest logit"
            raise ExportError(f"the exported file differs from the model by {difference:.1e} {kind}, more than {bound}")
        for part in sorted(folder.iterdir(), key=lambda part: part.name == output.name):  # the weights first
            part.replace(output.parent / part.name)
    return difference


def _check_packages(suffix: str, options: ExportOptions, check: bool) -> None:
    """Check that the packages are installed and know the opset, before any work."""
    require("onnx", "onnxscript", *(["onnxruntime"] if suffix == ".onnx" and (check or options.calibration) else []))
    if suffix == ".xml":
        require("openvino", *(["nncf"] if options.calibration else []), extra="openvino")
    newest = importlib.import_module("onnx").defs.onnx_opset_version()
    if options.opset is not None and options.opset > newest:
        raise ValueError(f"opset must be at most {newest}, the newest that the package onnx has, got {options.opset}")


def _write(
    program: torch.export.ExportedProgram,
    file: Path,
    description: dict[str, Any],
    options: ExportOptions,
    size: Sequence[int],
    processor: Any,
) -> None:
    text = json.dumps(description)
    if file.suffix == ".pt2":
        if options.compiled:
            with _EXPORTING, quiet("torch"):
                write_compiled_program(program, file, text)
        else:
            write_program(program, file, text)
        return
    is_quantized = options.precision == "int8"
    with tempfile.TemporaryDirectory(dir=file.parent) as part:
        onnx_file = file if file.suffix == ".onnx" and not is_quantized else Path(part) / "model.onnx"
        _write_onnx(program, onnx_file, text, options)
        if file.suffix == ".xml":
            from .openvino_files import write_openvino

            write_openvino(onnx_file, file, text, options, calibration_inputs(processor, size, options))
        elif is_quantized:
            from .quantizing import quantize_onnx

            quantize_onnx(onnx_file, file, INPUT, calibration_inputs(processor, size, options))


def calibration_inputs(processor: Any, size: Sequence[int], options: ExportOptions) -> Iterator[np.ndarray]:
    """Yield the calibration images as inputs of the file, resized to its size."""
    for path in options.calibration:
        image = read_image(path, str(path)).resize((size[1], size[0]))
        if options.takes_pixels:
            yield np.asarray(image)[None]
        else:
            yield processor(images=image, do_resize=False, return_tensors="np")["pixel_values"].astype(np.float32)


def _write_onnx(program: torch.export.ExportedProgram, file: Path, description: str, options: ExportOptions) -> None:
    with _EXPORTING, quiet("onnxscript", "onnx_ir", "torch.onnx"):
        try:
            exported = torch.onnx.export(
                program,
                dynamo=True,
                input_names=[INPUT],
                output_names=[options.result],
                opset_version=None if options.opset is None else max(options.opset, 18),  # it writes no older one
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ExportError(f"ONNX cannot express the model: {reason(error)}") from error
        assert exported is not None  # None is returned only if the exporter writes the file itself
        from .graph import lower_to_opset_17, store_half_weights, tidy  # need an optional package

        tidy(exported.model)
        if options.opset == 17:
            lower_to_opset_17(exported.model)
        if options.precision == "float16-weights":
            store_half_weights(exported.model)
        exported.model.metadata_props[METADATA] = description
        exported.save(file)


@torch.no_grad()
def _largest_error(
    model: PreTrainedModel, file: Path, description: dict[str, Any], size: Sequence[int], options: ExportOptions
) -> float:
    """Return the largest difference between the outputs of a file and of a model, see [`export_model`]."""
    errors, run = [], runner(file)
    forward = Pipeline(model, description, options)
    sizes = [tuple(size)]
    if options.dynamic_size:  # another one than the program was traced with
        sizes.append((size[0] + SIZE_MULTIPLE, size[1] + 2 * SIZE_MULTIPLE))
    for batch_size in CHECKED_BATCH_SIZES if options.dynamic_batch else (1,):
        for checked in sizes:
            images = _images(model, batch_size, checked, options)
            expected = forward(images).cpu().numpy()
            try:
                found = run(images.cpu().numpy())
            except Exception as error:  # the errors of runtimes have no base class of their own
                shape = f"{batch_size} images of {checked[0]}x{checked[1]} pixels"
                raise ExportError(f"the exported file cannot run {shape}: {reason(error)}") from error
            if options.result == "labels":
                errors.append(float((found != expected).mean()))
            else:
                difference = np.abs(found.astype(np.float32) - expected).max()
                errors.append(float(difference / np.abs(expected).max()))
    return max(errors)


__all__ = [
    "ExportError",
    "LogitsOnly",
    "Pipeline",
    "calibration_inputs",
    "export_model",
    "traced",
]
