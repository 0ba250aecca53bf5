# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`segtransformers autolabel`: label maps that a model is sure of, as data to train on."""

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..escaping import one_line
from ..files import complete_file
from ..freed_memory import keep_freed_memory
from ..terminal import progress_bar
from .common import (
    BlendOption,
    DeviceOption,
    FlipOption,
    MarginOption,
    MultiScaleOption,
    ScalesOption,
    StrideOption,
    WindowOption,
    check_folder,
    inference_protocol,
    load_model,
    read_image_file,
)
from .errors import UserError, error_line, note, one_line_errors
from .image_files import find_images, result_names
from .output import document, result

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MANIFEST = "manifest.json"
IMAGES_PER_WRITE = 100  # of the manifest, which is written whole; after a kill, fewer images are labelled again
NO_CLASS = 255
# Functions import torch, transformers and the parts of this package that load them, so that --help is fast.


def autolabel(
    model: Annotated[str, typer.Option(metavar="DIR_OR_NAME", help="The model, as of `segment`.")],
    images: Annotated[list[Path], typer.Option(metavar="DIR", help="Images, or folders of images.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the data set.")],
    min_confidence: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Pixels whose class has a lower probability get no class (255).")
    ] = 0.8,
    device: DeviceOption = None,
    multi_scale: MultiScaleOption = False,
    scales: ScalesOption = None,
    flip: FlipOption = False,
    window: WindowOption = None,
    stride: StrideOption = None,
    blend: BlendOption = None,
    margin: MarginOption = None,
) -> None:
    """Label images with a model, as data for `train --pseudo-labels`.

    The folder gets `images` (hard links, or copies on another disk), `masks`, `classes.txt` and `manifest.json`, which
    has the model, the confidence and the share of labelled pixels of each image. Images that are in the folder already
    are left out, so a command that was stopped can be repeated.
    """
    keep_freed_memory()
    with one_line_errors(ValueError):
        found = find_images(images, [output])
        for path, _ in found:
            if not os.path.lexists(path):
                raise UserError(f"--images: there is no file or folder {path}")
        check_folder(output, f"--output {output}")
        network, processor = load_model(model, device, optimize=True)
        protocol = inference_protocol(processor, multi_scale, scales, flip, window, stride, blend, margin)
        protocol.sliding_window(network)  # a margin that does not fit the windows of the model is an error
        if getattr(network.config, "is_multi_label", False):
            raise UserError("autolabel needs a model with one class for each pixel, and this one is multi-label")
        count = len(network.config.id2label or ())
        if count > NO_CLASS:
            raise UserError(f"the model has {count} classes; masks of 8 bits hold {NO_CLASS}")
        manifest = _begin(output, model, network, min_confidence)
    done = {entry["source"] for entry in manifest["images"].values()}
    todo = [(path, relative) for path, relative in found if os.path.abspath(path) not in done]
    names = result_names([relative for _, relative in todo], manifest["images"])
    try:
        failed = _label_all(network, processor, todo, names, output, min_confidence, protocol, manifest)
    finally:  # also after Ctrl-C and SIGTERM
        _write_manifest(output, manifest)
    shares = [entry["labelled"] for entry in manifest["images"].values()]
    mean = sum(shares) / max(len(shares), 1)
    result(f"{len(shares)} images, {100 * mean:.1f} % of their pixels labelled, in {output}")
    document({"output": str(output), "images": len(shares), "labelled": mean, "failed": failed})
    if failed:
        error_line(f"{failed} of {len(found)} images failed")
        raise typer.Exit(1)


def _label_all(network, processor, todo, names, output: Path, min_confidence: float, protocol, manifest: dict) -> int:
    """Label all images, add them to the manifest, and return the number of those that failed."""
    failed = 0
    with progress_bar(len(todo), "image") as bar:
        for (path, _), name in zip(todo, names, strict=True):
            try:
                share = _label(network, processor, path, name, output, min_confidence, protocol)
                manifest["images"][name.as_posix()] = {"source": os.path.abspath(path), "labelled": round(share, 4)}
                if len(manifest["images"]) % IMAGES_PER_WRITE == 0:
                    _write_manifest(output, manifest)
            except (UserError, ValueError, OSError) as error:
                error_line(error)
                failed += 1
            bar.update()
    return failed


def _begin(output: Path, model: str, network: "PreTrainedModel", min_confidence: float) -> dict:
    """Create the folder, or read the manifest of a run that is repeated.

    Raises:
        UserError: if the folder is of another model, confidence or classes.
    """
    from ..image_processing import label_map_classes

    classes = list(label_map_classes(network.config).values())
    head = {"model": model, "min_confidence": min_confidence, "classes": classes}
    try:
        manifest = json.loads((output / MANIFEST).read_text(encoding="utf-8"))
        before = {name: manifest[name] for name in head}
        for entry in manifest["images"].values():
            if not isinstance(entry["source"], str) or not isinstance(entry["labelled"], int | float):
                raise TypeError
    except FileNotFoundError:
        if output.is_dir() and any(output.iterdir()):
            raise UserError(f"--output {output} is not empty: choose another folder") from None
        with complete_file(output / "classes.txt") as file:
            file.write_text("".join(f"{one_line(name)}\n" for name in classes), encoding="utf-8")
        manifest = head | {"images": {}}
        _write_manifest(output, manifest)
        return manifest
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{output / MANIFEST} is damaged: choose another folder") from None
    if before != head:
        different = [name for name in head if before[name] != head[name]]
        raise UserError(f"--output {output} was labelled with another {' and '.join(different)}: choose another folder")
    note(f"{len(manifest['images'])} images in {output} are labelled already")
    return manifest


def _label(network, processor, path: Path, name: Path, output: Path, min_confidence: float, protocol) -> float:
    """Write image and mask of one sample, and return the share of labelled pixels."""
    import numpy as np
    import torch
    from PIL import Image

    from ..image_processing import processor_bands
    from ..inference import segment_with_confidence
    from ..rasters import read_band_image

    bands = processor_bands(processor)
    image: Any = read_image_file(path) if bands is None else read_band_image(path, bands)
    labels, confidence = segment_with_confidence(network, processor, image, protocol)
    known = confidence >= min_confidence
    if bands is not None and image.valid is not None:
        known &= torch.from_numpy(image.valid).to(known.device)
    mask = labels.masked_fill(~known, NO_CLASS).cpu().numpy().astype(np.uint8)
    with complete_file(output / "masks" / name) as file:
        Image.fromarray(mask).save(file)
    target = output / "images" / name.with_suffix(path.suffix)
    with complete_file(target) as file:
        try:
            os.link(path.resolve(), file)
        except OSError:  # another disk, or a file system without hard links
            shutil.copyfile(path, file)
    return known.float().mean().item()


def _write_manifest(output: Path, manifest: dict) -> None:
    with complete_file(output / MANIFEST) as file:
        file.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
