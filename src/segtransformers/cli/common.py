# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""What several commands do: load a model, read a picture, and say in one line what the user can mend."""

import os
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
from transformers.utils import logging

from ..datasets.reading import DataError, read_image
from ..inference.segmentation import multi_scale_options
from ..packaged import known_model
from .errors import UserError as UserError
from .errors import one_line_errors as one_line_errors

# how a picture is looked at: options that several commands have
MultiScale = Annotated[
    bool, typer.Option("--multi-scale", help="Average the scales that the checkpoint was tested at.")
]
Scales = Annotated[str | None, typer.Option(metavar="S,S,...", help="Average these factors on the usual size instead.")]
Flip = Annotated[bool, typer.Option("--flip", help="Average with the mirror image, too.")]
Window = Annotated[
    str | None,
    typer.Option(metavar="PIXELS", help="Run in windows of this side or HEIGHTxWIDTH; not the checkpoint's."),
]
Stride = Annotated[
    str | None, typer.Option(metavar="PIXELS", help="Step between windows; by default two thirds of --window.")
]


def load_model(name: str, device: str | None):
    """A model in float32, whatever its file holds, and its image processor.

    Args:
        name: a folder, a Hub id, or packaged.
        device: such as cpu or cuda; None takes a GPU if there is one.
    """
    logging.disable_progress_bar()
    folder = known_model(name)
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise UserError(
            f"--device {device}: torch knows no such device; say cpu, cuda or cuda:1, for example"
        ) from None
    try:
        network = AutoModelForSemanticSegmentation.from_pretrained(folder, dtype=torch.float32).to(place).eval()
        processor = AutoImageProcessor.from_pretrained(folder)
    except Exception as error:  # missing files, no network, another kind of model, too little memory: all are one line
        raise UserError(f"cannot load the model {name}: {why_not_loaded(name, error)}") from None
    return network, processor


def why_not_loaded(name: str, error: Exception) -> str:
    """What transformers' error means for somebody who named a folder, or a model on the Hub."""
    reason = " ".join(str(error).split())
    if "Unrecognized configuration class" in reason:
        return "it is no semantic segmentation model"
    if "Repo id must" in reason:
        return "there is no such folder, and it is no name on the Hub"
    if not Path(name).exists() and ("offline mode" in reason or "couldn't connect" in reason):
        return "there is no such folder, and the Hub, where a model may be called so, cannot be reached"
    return reason[:300]


def check_folder(folder: Path, option: str) -> None:
    """Refuses a folder that cannot be written to, or be made, before any work is done; nothing is made yet.

    Args:
        folder: that files shall go to.
        option: what the user said, for the message.
    """
    there = next(path for path in (folder, *folder.parents) if os.path.exists(path) or path == path.parent)
    if not there.is_dir():
        raise UserError(f"{option}: {there} is a file, where a folder is needed")
    if not os.access(there, os.W_OK):
        raise UserError(f"{option}: cannot write to {there}, permission denied")


def view_options(
    processor: Any, multi_scale: bool, scales: str | None, flip: bool, window: str | None, stride: str | None
) -> dict[str, Any]:
    """What the options above say, as [`~inference.segment_image`] takes it."""
    if multi_scale and scales is not None:
        raise UserError("--multi-scale and --scales exclude each other: the first takes the checkpoint's own scales")
    if stride is not None and window is None:
        raise UserError("--stride needs --window, whose step it is")
    factors = None
    if multi_scale:
        try:
            factors = multi_scale_options(processor)["scales"]
        except ValueError as error:
            raise UserError(f"--multi-scale: {error}") from None
    elif scales is not None:
        factors = _numbers("--scales", scales, ",", float)
    size, steps = (
        None if text is None else sides(name, text) for name, text in (("--window", window), ("--stride", stride))
    )
    if size is not None and steps is not None and any(a > b for a, b in zip(steps, size, strict=True)):
        raise UserError("--stride must not exceed --window: pixels would be left out")
    return {"scales": factors, "flip": flip, "window": size, "stride": steps}


def sides(name: str, text: str) -> tuple[int, int]:
    """(height, width) in pixels of an option that is one side, or HEIGHTxWIDTH."""
    found = _numbers(name, text, "x", int)
    if len(found) > 2:
        raise UserError(f"{name} is one side or HEIGHTxWIDTH in pixels, got {text}")
    return found[0], found[-1]


def _numbers(name: str, text: str, separator: str, kind: type) -> tuple:
    try:
        numbers = tuple(kind(part) for part in text.lower().split(separator))
    except ValueError:
        numbers = ()
    if not numbers or not all(0 < number < 1e6 for number in numbers):
        raise UserError(f"{name} must be positive numbers with {separator!r} between them, got {text!r}")
    return numbers


def read_picture(path: Path) -> Image.Image:
    """An RGB picture, turned as its EXIF data says."""
    try:
        return read_image(path, str(path))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except DataError as error:
        raise UserError(str(error)) from None
