# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`segtransformers segment`: pictures in, pictures with classes out."""

import contextlib
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image
from tqdm import tqdm
from transformers import PreTrainedModel

from ..inference.segmentation import segment_image
from ..packaged import example_image_path
from ..visualization import class_areas, draw_segmentation
from .common import (
    Flip,
    MultiScale,
    Scales,
    Stride,
    UserError,
    Window,
    check_folder,
    load_model,
    one_line_errors,
    read_picture,
    view_options,
)

READABLE = {extension for extension, kind in Image.registered_extensions().items() if kind in Image.OPEN}
WRITABLE = {extension for extension, kind in Image.registered_extensions().items() if kind in Image.SAVE}
LISTED_CLASSES = 12


def segment(
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="[IMAGE]...", help="Pictures, or folders of pictures.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="DIR_OR_ID", help="A converted folder, a Hub id, or packaged.")
    ] = None,
    output: Annotated[Path, typer.Option(help="File to write; a folder where there are several pictures.")] = Path(
        "segmentation.png"
    ),
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda; by default a GPU if there is one.")] = None,
    multi_scale: MultiScale = False,
    scales: Scales = None,
    flip: Flip = False,
    window: Window = None,
    stride: Stride = None,
) -> None:
    """Lay the predicted classes over pictures, with a legend, and print what they cover.

    Without pictures, the packaged example scene is segmented; without --model, the packaged model, which knows drawn
    scenes only. Pictures may be huge: a model that runs in windows takes them in bands of rows.
    """
    with one_line_errors():
        paths = _expanded(images) if images else [example_image_path()]
        targets = _targets(paths, output, single=not images or (len(images) == 1 and not images[0].is_dir()))
        network, processor = load_model(model or "packaged", device)
        options = view_options(processor, multi_scale, scales, flip, window, stride)
    failed = 0
    hidden = True if len(paths) == 1 else None  # None: shown on a terminal only
    for path, target in tqdm(list(zip(paths, targets, strict=True)), unit="picture", disable=hidden):
        try:
            picture = read_picture(path)
            labels = _predict(network, processor, picture, path, options)
            palette = getattr(network.config, "palette", None)  # other people's models have none
            _save(draw_segmentation(picture, labels, network.config.id2label, palette), target)
        except UserError as error:
            tqdm.write(f"error: {error}", file=typer.get_text_stream("stderr"))
            failed += 1
            continue
        areas = class_areas(labels)
        lines = [
            f"  {100 * areas[index]:5.1f} %  {network.config.id2label[index]}" for index in list(areas)[:LISTED_CLASSES]
        ]
        if len(areas) > LISTED_CLASSES:
            lines.append(f"  and {len(areas) - LISTED_CLASSES} more classes")
        tqdm.write("\n".join([f"{path} -> {target}", *lines]))
    if failed and len(paths) > 1:
        typer.echo(f"error: {failed} of {len(paths)} pictures failed", err=True)
    if failed:
        raise typer.Exit(1)


def _expanded(images: list[Path]) -> list[Path]:
    """Folders replaced by the pictures in them."""
    paths: list[Path] = []
    for path in images:
        if not path.is_dir():
            paths.append(path)
            continue
        found = sorted(item for item in path.iterdir() if item.suffix.lower() in READABLE and item.is_file())
        if not found:
            raise UserError(f"the folder {path} holds no pictures")
        paths.extend(found)
    return paths


def _targets(paths: list[Path], output: Path, single: bool) -> list[Path]:
    """Where each picture goes: checked before any work is done."""
    if single and not output.is_dir():
        if output.suffix.lower() not in WRITABLE:
            raise UserError(f"--output {output} must end like a picture, for example in .png")
        targets = [output]
    else:
        if (output.exists() and not output.is_dir()) or (not output.exists() and output.suffix.lower() in WRITABLE):
            raise UserError(f"--output {output} must be a folder, because there are several pictures")
        targets = [output / f"{path.stem}.png" for path in paths]
        if len(set(targets)) < len(targets):
            targets = [output / f"{path.stem}-{index}.png" for index, path in enumerate(paths, start=1)]
    inputs = {path.resolve() for path in paths}
    for target in targets:
        if target.resolve() in inputs:
            raise UserError(f"{target} would overwrite one of the pictures: choose another --output")
    check_folder(targets[0].parent, f"--output {output}")
    return targets


def _predict(
    network: PreTrainedModel, processor: Any, picture: Image.Image, path: Path, options: dict[str, Any]
) -> np.ndarray:
    try:
        return segment_image(network, processor, picture, **options).cpu().numpy()
    except (ValueError, RuntimeError) as error:  # too small a picture, too little memory
        reason = " ".join(str(error).split())
        raise UserError(f"cannot segment {path}: {reason[:300]}") from None


def _save(picture: Image.Image, target: Path) -> None:
    """Write beside the target first, so that a failure leaves no half picture."""
    partial = target.with_name(f".{target.name}.partial{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        picture.save(partial)
        partial.replace(target)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot write {target}: {error}") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
