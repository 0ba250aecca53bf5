# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""What several commands do: load a model, read a picture, and say in one line what the user can mend."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
import typer
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
from transformers.utils import logging

from ..datasets.reading import DataError, read_image


class UserError(Exception):
    """Something the user can mend; the message is one line."""


@contextlib.contextmanager
def one_line_errors(*others: type[Exception]) -> Iterator[None]:
    """Ends the command with the message of a [`UserError`], or of the errors named, and exit status 1."""
    kinds: tuple[type[Exception], ...] = (UserError, *others)
    try:
        yield
    except kinds as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


def load_model(name: str, device: str | None):
    logging.disable_progress_bar()
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        network = AutoModelForSemanticSegmentation.from_pretrained(name, dtype=torch.float32).to(place).eval()
        processor = AutoImageProcessor.from_pretrained(name)
    except Exception as error:  # missing files, no network, another kind of model, no such device: all are one line
        reason = " ".join(str(error).split())
        if "Unrecognized configuration class" in reason:
            reason = "it is no semantic segmentation model"
        elif "Repo id must" in reason:
            reason = "there is no such folder, and it is no name on the Hub"
        raise UserError(f"cannot load the model {name}: {reason[:300]}") from None
    return network, processor


def read_picture(path: Path) -> Image.Image:
    """An RGB picture, turned as its EXIF data says."""
    try:
        return read_image(path, str(path))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except DataError as error:
        raise UserError(str(error)) from None
