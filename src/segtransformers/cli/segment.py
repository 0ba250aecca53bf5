# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`segtransformers segment`: images with their classes drawn over them.

Heavy modules are imported inside functions, so that the help and mistyped options cost no time.
"""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..packaged import example_image_path
from .common import (
    DeviceOption,
    FlipOption,
    MultiScaleOption,
    ScalesOption,
    StrideOption,
    WindowOption,
    check_folder,
    inference_protocol,
    load_model,
    read_image_file,
)
from .errors import UserError, one_line_errors

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from transformers import PreTrainedModel

    from ..inference import InferenceProtocol

LISTED_CLASSES = 12


def segment(
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="[IMAGE]...", help="Images, or folders of images.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="DIR_OR_ID", help="A converted folder, a Hub id, or packaged.")
    ] = None,
    output: Annotated[Path, typer.Option(help="File to write; a folder for several images.")] = Path(
        "segmentation.png"
    ),
    device: DeviceOption = None,
    multi_scale: MultiScaleOption = False,
    scales: ScalesOption = None,
    flip: FlipOption = False,
    window: WindowOption = None,
    stride: StrideOption = None,
) -> None:
    """Draw the predicted classes over images, with a legend, and print the share of each class.

    Without images, the packaged example scene is segmented; without --model, the packaged model, which knows drawn
    scenes only. Images may be huge: a model that runs in windows segments them in bands of rows.
    """
    from tqdm import tqdm

    from ..visualization import class_areas, draw_segmentation

    with one_line_errors():
        paths = _with_contents_of_folders(images) if images else [example_image_path()]
        targets = _targets(paths, output, single=not images or (len(images) == 1 and not images[0].is_dir()))
        network, processor = load_model(model or "packaged", device, optimize=True)
        protocol = inference_protocol(processor, multi_scale, scales, flip, window, stride)
    names: Any = network.config.id2label
    palette = getattr(network.config, "palette", None)  # models of others have none
    failed = 0
    hidden = True if len(paths) == 1 else None  # None shows the bar on a terminal only
    for path, target in tqdm(list(zip(paths, targets, strict=True)), unit="image", disable=hidden):
        try:
            image = read_image_file(path)
            labels = _predict(network, processor, image, path, protocol)
            _save(draw_segmentation(image, labels, names, palette), target)
        except UserError as error:
            tqdm.write(f"error: {error}", file=typer.get_text_stream("stderr"))
            failed += 1
            continue
        areas = class_areas(labels)
        lines = [f"  {100 * areas[index]:5.1f} %  {names[index]}" for index in list(areas)[:LISTED_CLASSES]]
        if len(areas) > LISTED_CLASSES:
            lines.append(f"  and {len(areas) - LISTED_CLASSES} more classes")
        tqdm.write("\n".join([f"{path} -> {target}", *lines]))
    if failed and len(paths) > 1:
        typer.echo(f"error: {failed} of {len(paths)} images failed", err=True)
    if failed:
        raise typer.Exit(1)


def _extensions(operation: str) -> set[str]:
    """Return the file name extensions that Pillow can OPEN or SAVE."""
    from PIL import Image

    return {extension for extension, kind in Image.registered_extensions().items() if kind in getattr(Image, operation)}


def _with_contents_of_folders(images: list[Path]) -> list[Path]:
    """Replace folders by the images in them."""
    readable = _extensions("OPEN")
    paths: list[Path] = []
    for path in images:
        if not path.is_dir():
            paths.append(path)
            continue
        found = sorted(item for item in path.iterdir() if item.suffix.lower() in readable and item.is_file())
        if not found:
            raise UserError(f"the folder {path} holds no images")
        paths.extend(found)
    return paths


def _targets(paths: list[Path], output: Path, single: bool) -> list[Path]:
    """Return the output file of each image.

    Raises:
        UserError: if the outputs cannot be written. Nothing is written yet.
    """
    writable = _extensions("SAVE")
    if single and not output.is_dir():
        if output.suffix.lower() not in writable:
            raise UserError(f"--output {output} must end like an image, for example in .png")
        targets = [output]
    else:
        if (output.exists() and not output.is_dir()) or (not output.exists() and output.suffix.lower() in writable):
            raise UserError(f"--output {output} must be a folder, because there are several images")
        targets = [output / f"{path.stem}.png" for path in paths]
        if len(set(targets)) < len(targets):
            targets = [output / f"{path.stem}-{index}.png" for index, path in enumerate(paths, start=1)]
    inputs = {path.resolve() for path in paths}
    for target in targets:
        if target.resolve() in inputs:
            raise UserError(f"{target} would overwrite one of the images: choose another --output")
    check_folder(targets[0].parent, f"--output {output}")
    return targets


def _predict(
    model: "PreTrainedModel", processor: Any, image: "Image.Image", path: Path, protocol: "InferenceProtocol"
) -> "np.ndarray":
    from ..inference import segment_image

    try:
        return segment_image(model, processor, image, protocol).cpu().numpy()
    except (ValueError, RuntimeError) as error:  # such as an image that is too small, or too little memory
        reason = " ".join(str(error).split())
        raise UserError(f"cannot segment {path}: {reason[:300]}") from None


def _save(image: "Image.Image", target: Path) -> None:
    """Write to another name first, so that a failure leaves no incomplete image."""
    partial = target.with_name(f".{target.name}.partial{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        image.save(partial)
        partial.replace(target)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot write {target}: {error}") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
