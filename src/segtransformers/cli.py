# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The `segtransformers` command."""

import contextlib
import importlib.metadata
import os
import platform
import warnings
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image, ImageOps
from tqdm import tqdm
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, PreTrainedModel
from transformers.utils import logging

from .image_processing import usual_image
from .operators import hub
from .packaged import example_image_path, packaged_model_path
from .visualization import class_areas, draw_segmentation

READABLE = {extension for extension, kind in Image.registered_extensions().items() if kind in Image.OPEN}
WRITABLE = {extension for extension, kind in Image.registered_extensions().items() if kind in Image.SAVE}
LISTED_CLASSES = 12

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


class UserError(Exception):
    """Something the user can mend; the message is one line."""


@app.callback()
def _main() -> None:
    """Semantic segmentation with ViT-Adapter, ViT-CoMer, InternImage and Segmenter."""
    try:
        hub.default_mode()  # before work is done, and in one line
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


@app.command()
def segment(
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="[IMAGE]...", help="Pictures, or folders of pictures.")
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="DIR_OR_ID", help="A converted folder or a Hub id.")] = None,
    output: Annotated[Path, typer.Option(help="File to write; a folder where there are several pictures.")] = Path(
        "segmentation.png"
    ),
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda; by default a GPU if there is one.")] = None,
) -> None:
    """Lay the predicted classes over pictures, with a legend, and print what they cover.

    Without pictures, the packaged example scene is segmented; without --model, the packaged model, which knows drawn
    scenes only.
    """
    try:
        paths = _expanded(images) if images else [example_image_path()]
        targets = _targets(paths, output, single=not images or (len(images) == 1 and not images[0].is_dir()))
        network, processor = _load(model or str(packaged_model_path()), device)
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    failed = 0
    hidden = True if len(paths) == 1 else None  # None: shown on a terminal only
    for path, target in tqdm(list(zip(paths, targets, strict=True)), unit="picture", disable=hidden):
        try:
            picture = _read(path)
            labels = _predict(network, processor, picture, path)
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


@app.command()
def info() -> None:
    """Print versions, devices, and what serves each operator."""
    typer.echo(f"python          {platform.python_version()}  {platform.platform()}")
    for name in ("segtransformers", "torch", "torchvision", "transformers", "timm", "kernels"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # torchvision may be missing
            typer.echo(f"{name:<15} {importlib.metadata.version(name)}")
    devices = [f"cpu ({torch.get_num_threads()} threads)"]
    devices += [f"cuda:{index} ({torch.cuda.get_device_name(index)})" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    typer.echo(f"devices         {', '.join(devices)}")
    typer.echo(f"operators       {hub.describe()}")


@app.command()
def build_kernels(
    output: Annotated[
        Path | None, typer.Option(help="Folder to write build/ to; by default in your cache folder, where it is found.")
    ] = None,
) -> None:
    """Compile the operators for this machine's torch: needs a C++ compiler (GCC or Clang), no network."""
    try:
        script = hub.build_script()
        folders = script.build((output or hub.cache_folder()).resolve())
    except (RuntimeError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    for folder in folders:
        typer.echo(f"built {folder}")
    hub.forget()
    if output is None:
        typer.echo(hub.describe())
    else:
        typer.echo(f"used where LOCAL_KERNELS={hub.KERNEL_ID}={output.resolve()}")


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
    folder = targets[0].parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"cannot write to {folder}: permission denied")
    return targets


def _load(name: str, device: str | None):
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


def _read(path: Path) -> Image.Image:
    """An RGB picture, turned as its EXIF data says."""
    try:
        with warnings.catch_warnings(), Image.open(path) as opened:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = ImageOps.exif_transpose(opened)
            usual = usual_image(picture)
            return Image.fromarray(usual[0]).convert("RGB") if isinstance(usual, np.ndarray) else usual
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"cannot read {path} as a picture: {reason}") from None


@torch.inference_mode()
def _predict(network: PreTrainedModel, processor, picture: Image.Image, path: Path) -> np.ndarray:
    try:
        inputs = processor(images=picture, return_tensors="pt").to(network.device)
        outputs = network(**inputs)
        (labels,) = processor.post_process_semantic_segmentation(
            outputs, target_sizes=[(picture.height, picture.width)]
        )
        return labels.cpu().numpy()
    except (ValueError, RuntimeError) as error:  # too small a picture, too little memory
        reason = " ".join(str(error).split())
        raise UserError(f"cannot segment {path}: {reason[:300]}") from None


def _save(picture: Image.Image, target: Path) -> None:
    """Write beside the target first, so that a failure leaves no half picture."""
    partial = target.with_name(f".{target.name}.partial{target.suffix}")
    try:
        picture.save(partial)
        partial.replace(target)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot write {target}: {error}") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
