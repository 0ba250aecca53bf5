# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Steps and options that several commands share.

Heavy modules are imported inside functions, so that the help and mistyped options cost no time.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..escaping import short_repr
from ..export.options import FORMATS
from ..files import check_folder_readable, check_readable
from ..model_names import model_folder
from ..published.names import similar_names
from .errors import UserError, describe, note

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from transformers import PreTrainedModel

    from ..inference import InferenceProtocol

DeviceOption = Annotated[str | None, typer.Option(help="Such as cpu or cuda; by default a GPU if one is found.")]
MultiScaleOption = Annotated[
    bool, typer.Option("--multi-scale", help="Average over the scales that the checkpoint was tested at.")
]
ScalesOption = Annotated[
    str | None, typer.Option(metavar="S,S,...", help="Average over these factors on the usual image size instead.")
]
FlipOption = Annotated[bool, typer.Option("--flip", help="Average with the mirrored image, too.")]
WindowOption = Annotated[
    str | None,
    typer.Option(
        metavar="PIXELS", help="Run in windows of this side or HEIGHTxWIDTH instead of those of the checkpoint."
    ),
]
StrideOption = Annotated[
    str | None, typer.Option(metavar="PIXELS", help="Step between windows; by default two thirds of --window.")
]

BlendOption = Annotated[
    str | None,
    typer.Option(metavar="WEIGHTS", help="Blend overlapping windows without seams: cosine or gaussian weights."),
]
MarginOption = Annotated[
    int | None,
    typer.Option(metavar="PIXELS", min=0, help="Leave out this border of each window, if others overlap it."),
]
PrecisionOption = Annotated[
    str,
    typer.Option(help="fp32, bf16, fp16 on a GPU, or auto: bf16 where it is fast, else fp32."),
]


def load_model(
    name: str, device: str | None, optimize: bool = False, precision: str = "fp32"
) -> "tuple[PreTrainedModel, Any]":
    """Load a model in float32, whatever dtype its file has, and its image processor.

    Args:
        name: see [`named_model`].
        device: such as cpu or cuda; None takes a GPU if there is one.
        optimize: whether to run `optimize_for_inference` on the model.
        precision: of the optimized model, see [`chosen_dtype`].

    Raises:
        UserError: if the device does not exist, the precision is not possible there, or the model cannot be loaded.
    """
    import torch
    from transformers import AutoImageProcessor
    from transformers.utils import logging

    from ..image_processing import SegmentationImageProcessor
    from ..model_loading import NO_REMOTE_CODE, load_trained_model, our_class

    logging.disable_progress_bar()
    if Path(name).suffix in FORMATS:
        if precision not in ("fp32", "auto"):
            raise UserError(f"--precision {precision}: an exported file keeps the precision of its export")
        return load_exported(Path(name), device)
    folder = named_model(name)
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise UserError(f"--device {device}: torch has no such device; use cpu, cuda or cuda:1, for example") from None
    dtype = chosen_dtype(precision, chosen)
    source = model_source(folder)
    try:
        model = load_trained_model(source, dtype=torch.float32)
        is_stock = our_class(source) is not None
        processor_class: Any = SegmentationImageProcessor if is_stock else AutoImageProcessor
        processor = processor_class.from_pretrained(source, **NO_REMOTE_CODE)
    except Exception as error:  # missing files, no network, another kind of model, too little memory
        raise UserError(f"cannot load the model {name}: {why_not_loaded(name, error)}") from None
    try:
        model = model.to(chosen)  # type: ignore[arg-type]
    except (RuntimeError, AssertionError, ImportError) as error:  # torch has no such device, or it does not exist
        raise UserError(f"--device {device}: {str(error).strip().splitlines()[0]}") from None
    if optimize:
        from ..models.optimize import optimize_if_ours

        model = optimize_if_ours(model, inplace=True, dtype=dtype)
    return model, processor


def chosen_dtype(precision: str, device: "torch.device") -> "torch.dtype":
    """Return the dtype of `--precision` on a device.

    Raises:
        UserError: if the precision is unknown or not possible there.
    """
    from ..inference.precision import inference_dtype

    try:
        return inference_dtype(precision, device)
    except ValueError as error:
        raise UserError(f"--{error}") from None


def network_dtype(name: str, network: Any, precision: str) -> "torch.dtype | None":
    """Return the dtype of `--precision` for a loaded model, or None for an exported file, which has its own."""
    return None if Path(name).suffix in FORMATS else chosen_dtype(precision, network.device)


def load_exported(path: Path, device: str | None) -> tuple[Any, Any]:
    """Load a file of `segtransformers export` in the place of a model, and its image processor.

    Raises:
        UserError: if the file does not exist or cannot be run, or a GPU is asked for.
    """
    from ..export import ExportedModel, ExportError

    if not path.is_file():
        raise UserError(f"there is no file {path}")
    check_readable(path)
    if device not in (None, "cpu"):
        raise UserError(f"--device {device}: exported files run on cpu")
    try:
        model = ExportedModel(path)
    except (ExportError, ImportError) as error:
        raise UserError(str(error)) from None
    return model, model.processor()


def model_source(name: str) -> str:
    """Check that a folder or a model on the Hub exists, before anything is loaded.

    Returns:
        the name, or the folder of its files in the cache if the Hub cannot be reached.

    Raises:
        UserError: if there is no such model, or the folder holds a pipe or device in the place of a file.
    """
    from ..hub_names import cached_folder, check_hub_name

    folder = Path(name)
    try:
        if folder.exists():
            if folder.is_dir():
                check_folder_readable(folder)
        elif not check_hub_name(name, "model"):
            return str(cached_folder(name, "model"))
    except LookupError as error:
        similar = similar_names(name) if "/" not in name else []
        hint = f"; did you mean {' or '.join(similar)}?" if similar else ""
        raise UserError(f"cannot load the model {name}: there is no such folder; {error}{hint}") from None
    except OSError as error:
        raise UserError(f"cannot load the model {name}: {describe(error)}") from None
    return name


def named_model(name: str) -> str:
    """Return the folder or Hub id that the text of `--model` stands for, see [`model_folder`].

    Raises:
        UserError: if it may be several published models, or the published model cannot be downloaded or converted.
    """
    try:
        return model_folder(name)
    except ValueError as error:  # a ConversionError, too
        raise UserError(f"--model {name}: {error}") from None


def why_not_loaded(name: str, error: Exception) -> str:
    """Return the reason why a folder or a model of the Hub was not loaded, from an error of transformers."""
    reason = " ".join(str(error).split())
    if "Unrecognized configuration class" in reason:
        return "it is no semantic segmentation model"
    if "Repo id must" in reason:
        return "there is no such folder, and it is no name on the Hub"
    if not Path(name).exists() and ("offline mode" in reason or "couldn't connect" in reason):
        return "there is no such folder, and the Hub, which may have a model of that name, cannot be reached"
    return reason[:300]


def check_input_file(file: Path, option: str, expected: str = "an existing file") -> None:
    """Refuse a file to read that does not exist, a folder, and a pipe or device, which may never end.

    Args:
        option: what the user typed, for the message.
        expected: what the option takes.

    Raises:
        UserError: if it is no file.
    """
    try:
        check_readable(file)
        is_file = file.is_file()
    except (OSError, ValueError) as error:  # a path that is too long, or has a zero byte
        raise UserError(f"{option}: {getattr(error, 'strerror', None) or error}") from None
    if not is_file:
        raise UserError(f"{option}: expected {expected}")


def check_folder(folder: Path, option: str) -> None:
    """Refuse a folder that cannot be created or written to. Nothing is created yet.

    Args:
        folder: for files that the command will write. Missing parents are created with it.
        option: what the user typed, for the message.

    Raises:
        UserError: if a file is in its place, the path is too long, or permission is denied.
    """
    try:
        existing = next(path for path in (folder, *folder.parents) if path.exists() or path == path.parent)
    except OSError as error:
        raise UserError(f"{option}: {error.strerror}") from None
    if not existing.is_dir():
        raise UserError(f"{option}: {existing} is a file, where a folder is needed")
    if not os.access(existing, os.W_OK):
        raise UserError(f"{option}: cannot write to {existing}, permission denied")


def check_file(file: Path, option: str) -> None:
    """Refuse a file that cannot be written, and say on standard error if it will be replaced. Nothing is written yet.

    Raises:
        UserError: if a folder is in its place, or as [`check_folder`].
    """
    check_folder(file.parent, option)
    try:
        if file.is_dir():
            raise UserError(f"{option} is a folder, where a file is needed")
        if file.exists():
            check_readable(file)
            note(f"{file} is replaced")
    except OSError as error:
        raise UserError(f"{option}: {error.strerror or error}") from None


def inference_protocol(
    processor: Any,
    multi_scale: bool,
    scales: str | None,
    flip: bool,
    window: str | None,
    stride: str | None,
    blend: str | None = None,
    margin: int | None = None,
) -> "InferenceProtocol":
    """Return the inference options that the command's options describe.

    Raises:
        UserError: if an option cannot be understood, or two of them contradict each other.
    """
    from ..inference import InferenceProtocol

    if multi_scale and scales is not None:
        raise UserError("--multi-scale and --scales exclude each other: the first takes the checkpoint's own scales")
    if stride is not None and window is None:
        raise UserError("--stride needs --window, whose step it is")
    factors = None
    if multi_scale:
        try:
            factors = InferenceProtocol.multi_scale(processor).scales
        except ValueError as error:
            raise UserError(f"--multi-scale: {error}") from None
    elif scales is not None:
        factors = _numbers("--scales", scales, ",", float)
    size = None if window is None else sides("--window", window)
    step = None if stride is None else sides("--stride", stride)
    if size is not None and step is not None and any(a > b for a, b in zip(step, size, strict=True)):
        raise UserError("--stride must not exceed --window: pixels would be left out")
    try:
        return InferenceProtocol(
            scales=factors, flip=flip, window=size, stride=step, blend=blend or "mean", margin=margin or 0
        )
    except ValueError as error:
        option = str(error).partition(" ")[0]
        option = f"--{option}" if option in ("scales", "blend", "margin") else "--window"
        raise UserError(f"{option}: {error}") from None


def sides(option: str, text: str) -> tuple[int, int]:
    """Return (height, width) in pixels from the text of an option: one side, or HEIGHTxWIDTH."""
    found = _numbers(option, text, "x", int)
    if len(found) > 2:
        raise UserError(f"{option} must be one side or HEIGHTxWIDTH in pixels, got {text}")
    return found[0], found[-1]


def _numbers(option: str, text: str, separator: str, kind: type) -> tuple:
    try:
        numbers = tuple(kind(part) for part in text.lower().split(separator))
    except ValueError:
        numbers = ()
    if not numbers or not all(0 < number < 1e6 for number in numbers):
        example = "0.75,1,1.5" if separator == "," else "512 or 512x1024"
        raise UserError(f"{option} must be positive numbers, such as {example}, got {short_repr(text)}")
    return numbers


def read_image_file(path: Path) -> "Image.Image":
    """Read an RGB image, turned as its EXIF data say.

    Raises:
        UserError: if the file does not exist, or is no image.
    """
    from ..datasets.reading import DataError, read_image

    try:
        return read_image(path, str(path))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except DataError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(describe(error)) from None
