# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The report that `segtransformers train` writes: gathers what `training/report.py` draws."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ..escaping import one_line
from ..files import complete_file

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from ..datasets import SegmentationDataset
    from ..training.report import Report, ShownImage

REPORT = "report.html"
WORST_IMAGES = 6
LONGEST_NAME = 240  # bytes; file systems take 255 with an ending
# Functions import numpy and the parts of this package that load torch, so that --help is fast.


def write_report(report: "Report", output: Path) -> Path:
    """Write the report into the output folder of a run, completely or not at all. Return its file."""
    from ..training.report import report_page

    target = output / REPORT
    with complete_file(target) as file:
        file.write_text(report_page(report), encoding="utf-8", errors="replace")
    return target


def predictions_compared(data: "SegmentationDataset", folder: Path) -> "tuple[np.ndarray, list[ShownImage]]":
    """Compare saved predictions with the truth.

    Args:
        data: with one class for each pixel.
        folder: where `evaluate_segmentation` saved the predictions of `data`.

    Returns:
        the confusion matrix `(num_labels, num_labels + 1)`, and the images with the lowest mean IoU.
    """
    import numpy as np
    from PIL import Image

    from ..metrics import MeanIoU
    from ..training.report import ShownImage, worst_first

    total = MeanIoU(data.num_labels, ignore_index=data.ignore_index)
    scores: list[float] = []

    def prediction(name: str) -> np.ndarray:
        with Image.open(folder / f"{name}.png") as image:
            labels = np.array(image).astype(np.int64)
        return np.where(labels < data.num_labels, labels, data.ignore_index)

    for index, name in enumerate(data.names):
        truth = np.asarray(data[index].labels).astype(np.int64)
        single = MeanIoU(data.num_labels, ignore_index=data.ignore_index)
        single.add(prediction=prediction(name.replace("\\", "/")), reference=truth)
        scores.append(single.figures()["mean_iou"])
        total.merge(single)
    worst = []
    for index in worst_first(scores, WORST_IMAGES):
        sample = data[index]
        labels = np.asarray(sample.labels)
        found = prediction(data.names[index].replace("\\", "/"))
        worst.append(ShownImage(sample.name, scores[index], shown_image(sample.image), labels, found))
    return total.confusion.cpu().numpy(), worst


def are_file_names(names: Sequence[str]) -> bool:
    """Return whether a prediction can be saved for each sample under its own name."""
    parts = [PurePosixPath(name.replace("\\", "/")).parts for name in names]
    return len(set(parts)) == len(names) and all(
        path
        and ".." not in path
        and path[0] != "/"
        and all(len(part.encode("utf-8", "replace")) <= LONGEST_NAME for part in path)
        for path in parts
    )


def shown_image(image: Any) -> "Image.Image":
    """Return an image to look at: of a [`BandImage`] the first three bands, or one as grey, in their usual range."""
    import numpy as np
    from PIL import Image

    if isinstance(image, Image.Image):
        return image
    bands = image.values[:3] if len(image.values) >= 3 else image.values[[0, 0, 0]]
    low, high = (np.nanpercentile(bands, share, axis=(1, 2), keepdims=True) for share in (2, 98))
    pixels = 255 * (bands - low) / np.maximum(high - low, 1e-6)
    return Image.fromarray(np.nan_to_num(pixels).clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def duration(seconds: float) -> str:
    """Return a time such as 1:02:03 or 4:05."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def settings_of(recipe: Any, arguments: Any, software: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings of a run for its report: no tokens, and only arguments that differ from their defaults."""
    changed = {}
    for field in dataclasses.fields(arguments):
        value = getattr(arguments, field.name, None)
        is_secret = "token" in field.name
        if field.init and not is_secret and value != field.default and isinstance(value, bool | int | float | str):
            changed[field.name] = value
    return {"recipe": recipe.to_dict(), "training arguments": changed, "software": dict(software)}


def listed_weights(weights: Sequence[float], id2label: dict[int, str]) -> str:
    """Return the weight of each class, or of the first and the extreme ones, and the classes that never occur."""
    names = [one_line(id2label[index]) for index in range(len(weights))]
    order = sorted(range(len(weights)), key=lambda index: weights[index])
    shown = order if len(order) <= 12 else [*order[:6], *order[-6:]]
    listed = ", ".join(f"{names[index]} {weights[index]:.3g}" for index in shown)
    absent = [names[index] for index in order if not weights[index]]
    ending = (
        f"; the weight is 0 for classes without a pixel in the training data, {', '.join(absent[:8])}: add images that "
        "hold them, or leave them out of the classes"
        if absent
        else ""
    )
    return listed + ending
