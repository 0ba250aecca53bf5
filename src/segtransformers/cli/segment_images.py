# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Segmentation of image files for `segtransformers segment`.

While the network runs, the next image is read and the results of the last one are written. Processes of torchrun or
accelerate launch share the images. A resume log lies beside the results until the run is complete.
"""

import contextlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..escaping import one_line, printable
from ..files import complete_file
from ..terminal import progress_bar
from .common import read_image_file
from .errors import UserError, error_line
from .shares import print_shares, result_files, shares

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from transformers import PreTrainedModel

    from ..inference import InferenceProtocol

MEASURES = ("--confidence", "--entropy", "--probability-margin")
LOG_NAME = "segment.resume.json"

Task = tuple[Path, dict[str, Path]]  # an image, and the files of its results by option


def segment_images(
    network: "PreTrainedModel", processor: Any, tasks: Sequence[Task], protocol: "InferenceProtocol", shown: bool
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Segment images, write their results, and print the share of each class.

    An error of one image is printed, and the others are still segmented.

    Args:
        shown: whether a progress bar is shown.

    Returns:
        what was written, and the errors, as JSON can hold them.
    """
    done: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    with ThreadPoolExecutor(2) as threads, progress_bar(len(tasks), "image", shown=shown) as bar:
        writing: tuple[Task, Future] | None = None

        def finish_writing() -> None:
            if writing is not None:
                (path, files), written = writing
                try:
                    done.append(_print_shares(path, files, written.result(), network.config))
                except UserError as error:
                    fail(path, error)
                bar.update()

        def fail(path: Path, error: UserError) -> None:
            error_line(error)
            failures.append({"image": str(path), "error": one_line(error)})

        for (path, files), read in _read_ahead(tasks, threads):
            try:
                image = read.result()
                labels, maps = _predict(network, processor, image, path, protocol, files)
            except UserError as error:
                fail(path, error)
                bar.update()
                continue
            finish_writing()
            writing = (path, files), threads.submit(_write, image, labels, maps, files, network.config)
        finish_writing()
    return done, failures


def _read_ahead(tasks: Sequence[Task], threads: ThreadPoolExecutor) -> Iterator[tuple[Task, Future]]:
    """Yield each task with its image, which is being read while the caller works on the one before."""
    following = None
    for index, task in enumerate(tasks):
        current = following or threads.submit(read_image_file, task[0])
        following = threads.submit(read_image_file, tasks[index + 1][0]) if index + 1 < len(tasks) else None
        yield task, current


def _write(
    image: "Image.Image", labels: "np.ndarray", maps: dict[str, "Image.Image"], files: dict[str, Path], config: Any
) -> "np.ndarray":
    """Write the results of an image, and return its label map."""
    for kind, target in files.items():
        _save(maps[kind] if kind in maps else _drawn(kind, image, labels, config), target)
    return labels


def unfinished_tasks(tasks: Sequence[Task], log: Path, subject: dict[str, Any], resume: bool) -> list[Task]:
    """Write the resume log, and return the images that have no results yet.

    Args:
        log: [`log_file`].
        subject: all that the results depend on, as JSON can hold it.
        resume: whether to continue an interrupted run. A run without a log begins with the first image.

    Raises:
        UserError: if the log is of another model or other options.
    """
    subject = json.loads(json.dumps(subject, default=str))
    if resume and log.exists():
        try:
            found = json.loads(log.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise UserError(f"{log} cannot be read: delete it, and run the command without --resume") from None
        if found != subject:
            differing = sorted(key for key in subject if not isinstance(found, dict) or found.get(key) != subject[key])
            raise UserError(
                f"--resume: {log} is of a run with another {' and '.join(differing)}. Use the same options, or run the "
                "command without --resume, which begins anew"
            )
        return [task for task in tasks if not all(target.exists() for target in task[1].values())]
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with complete_file(log) as file:
            file.write_text(json.dumps(subject), encoding="utf-8")
    except OSError as error:
        remove_log(log)
        raise UserError(f"cannot write {printable(log, 200)}: {error.strerror or error}") from None
    return list(tasks)


def remove_log(log: Path) -> None:
    """Delete the resume log, and its folder if nothing else is in it."""
    with contextlib.suppress(OSError):
        log.unlink(missing_ok=True)
        log.parent.rmdir()


def log_file(tasks: Sequence[Task]) -> Path:
    """Return the resume log: in the folder that holds all results of the first option."""
    return Path(os.path.commonpath([next(iter(files.values())).parent for _, files in tasks])) / LOG_NAME


def _print_shares(path: Path, files: dict[str, Path], labels: "np.ndarray", config: Any) -> dict[str, Any]:
    """Print the share of each class, and return it with the files for the JSON document."""
    from ..visualization import class_areas

    areas = class_areas(labels)
    written = ", ".join(printable(target, None) for target in files.values())
    print_shares(f"{printable(path, None)} -> {written}", areas, config, total=1)
    return {"image": str(path), **result_files(files), "classes": shares(areas, config, total=1)}


def _drawn(kind: str, image: "Image.Image", labels: "np.ndarray", config: Any) -> "Image.Image":
    """Return the image to save for an option."""
    from ..image_processing import label_map_classes
    from ..visualization import distinct_colours, draw_segmentation, label_image, palette_image

    names, palette = label_map_classes(config), getattr(config, "palette", None)
    if kind == "--label-maps":
        return label_image(labels, len(names))
    if kind == "--colour-maps":
        return palette_image(labels, palette or distinct_colours(len(names)))
    return draw_segmentation(image, labels, names, palette)


def _predict(
    model: "PreTrainedModel",
    processor: Any,
    image: "Image.Image",
    path: Path,
    protocol: "InferenceProtocol",
    files: dict[str, Path],
) -> "tuple[np.ndarray, dict[str, Image.Image]]":
    """Return the label map, and grey images of the measures that some options ask for."""
    from PIL import Image

    from ..inference import segment_image, uncertainty_maps

    options = [option for option in files if option in MEASURES]
    try:
        if not options:
            return segment_image(model, processor, image, protocol).cpu().numpy(), {}
        measures = {option: option.removeprefix("--").replace("-", "_") for option in options}
        labels, maps = uncertainty_maps(model, processor, image, measures.values(), protocol)
        grey = {
            option: Image.fromarray((maps[measure] * 255).round().byte().cpu().numpy())
            for option, measure in measures.items()
        }
        return labels.cpu().numpy(), grey
    except (ValueError, RuntimeError, MemoryError) as error:
        raise UserError(f"cannot segment {printable(path, 200)}: {error or 'too little memory'}") from None


def _save(image: "Image.Image", target: Path) -> None:
    from PIL import Image

    try:
        with complete_file(target) as file:
            # Pillow finds no extension in names such as "..png"
            kind = Image.registered_extensions()[target.suffix.lower()]
            # photos hold no repetitions but runs: files of level 6 are a few percent smaller at most, and take three to
            # five times as long
            options = (
                {"compress_level": 1, "compress_type": zlib.Z_RLE} if kind == "PNG" and image.mode == "RGB" else {}
            )
            image.save(file, format=kind, **options)
    except (OSError, ValueError, KeyError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {printable(target, 200)}: {reason}") from None


__all__ = ["LOG_NAME", "MEASURES", "Task", "log_file", "remove_log", "segment_images", "unfinished_tasks"]
