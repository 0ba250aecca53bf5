# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Mean IoU of a model on a data set by the originals' protocol, in one process or several, resumable.

Source of the protocol: `tools/test.py` and `CustomDataset.evaluate` of MMSegmentation 0.20. Memory does not grow with
the number of images: each becomes a confusion matrix.
"""

import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import distributed
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import PreTrainedModel
from transformers.utils import logging

from ..inference.segmentation import multi_scale_options, segment_image, window_in_use
from ..metrics import MeanIoU
from ..published import published_row
from .resume_log import Journal, JournalError, add_counts

if TYPE_CHECKING:
    from ..datasets import SegmentationDataset, SegmentationSample

logger = logging.get_logger(__name__)

VOLATILE = ("_name_or_path", "transformers_version", "dtype", "custom_pipelines", "auto_map")  # of a config: no model


def evaluate_segmentation(
    model: PreTrainedModel,
    processor: Any,
    data: "SegmentationDataset",
    *,
    scales: Sequence[float] | None = None,
    flip: bool = False,
    window: Sequence[int] | None = None,
    stride: Sequence[int] | None = None,
    save_predictions: str | Path | None = None,
    journal: str | Path | None = None,
    resume: bool = False,
    num_workers: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Segment every image of a data set and compare with its labels.

    Where `torch.distributed` is in use, every process calls this with the same arguments; each takes its share of the
    images, every image is taken once, and every process returns the figures of all. Counts are exact, so they do not
    depend on the number of processes; what a network computes may depend on the number of threads and the device.

    Args:
        model: in evaluation mode, on its device.
        processor: its image processor.
        data: what [`~datasets.load_segmentation_dataset`] gives. The model must have its classes, in its order; outputs
            beyond them count as "nothing recognised", as in the original.
        scales, flip, window, stride: as of [`~inference.segment_image`].
        save_predictions: folder for label maps, PNG files with a palette whose values are class indices, called after
            the images.
        journal: folder for what has been counted, with which `resume` goes on after the evaluation was interrupted.
            It is tied to model, data and protocol. Delete it (`Journal(...).remove()`) once the figures are saved.
        resume: whether to go on with that journal, where there is one.
        num_workers: processes that read images ahead.
        progress: whether to show a bar with the mean IoU so far and the rate; of the first process.

    Returns:
        what JSON can hold: `mean_iou`, `mean_accuracy`, `overall_accuracy`, `mean_dice`, shares from 0 to 1; `classes`,
        `name`, `iou`, `accuracy` and `dice` of each, None where the class does not occur; `images`; and what was
        evaluated, as `model`, `data` and `protocol`. Two runs on the same machine give the same.

    Raises:
        ValueError: if the classes of model and data differ, or an image or its labels cannot be used; it is named.
        JournalError: if there is a journal of something else, or one although `resume` is False.
    """
    check_classes(model, data)
    rank, world = _process()
    metric = MeanIoU(data.num_labels, ignore_index=data.ignore_index)
    folder = Path(save_predictions) if save_predictions is not None else None
    protocol = _describe_protocol(model, processor, scales, flip, window, stride)

    def begin() -> tuple[dict[str, Any], list[int]]:
        subject = {"model": _describe_model(model), "data": _describe_data(data), "protocol": protocol}
        counts = Journal(Path(journal), subject).read(resume) if journal is not None else {}
        if folder is not None:  # where the prediction was lost, the image is done again
            counts = {
                index: found for index, found in counts.items() if _prediction(folder, data.names[index]).exists()
            }
        for found in counts.values():
            add_counts(metric.confusion, found)
        return subject, sorted(counts)

    subject, done = _of_first_process(begin, rank)
    own = sorted(set(range(len(data))) - set(done))[rank::world]
    counted = len(done) if rank == 0 else 0

    options: dict[str, Any] = {"scales": scales, "flip": flip, "window": window, "stride": stride}
    config: Any = model.config
    palette = getattr(config, "palette", None) or data.palette
    writer = Journal(Path(journal), subject).writer(rank) if journal is not None else None
    loader = DataLoader(_Samples(data, own), batch_size=None, num_workers=num_workers, collate_fn=_itself)
    title = f"process 1 of {world}" if world > 1 else None
    pause = 0.2 if sys.stderr.isatty() else 30  # seconds between lines in a log
    with tqdm(desc=title, total=len(own), unit="image", disable=not progress or rank > 0, mininterval=pause) as bar:
        for index, sample in loader:
            counts, labels = _counted(model, processor, sample, data, options)
            if folder is not None:
                _save_prediction(_prediction(folder, sample.name), labels, config.num_labels, palette)
            if writer is not None:
                writer.add(index, sample.name, counts.confusion)
            metric.merge(counts)
            counted += 1
            if not bar.disable:
                bar.set_postfix_str(f"mIoU {100 * metric.figures()['mean_iou']:.2f}", refresh=False)
                bar.update()
    if writer is not None:
        writer.close()
    metric.all_reduce()
    total = _sum(counted)
    if total != len(data):
        raise RuntimeError(f"{total} images were counted, but there are {len(data)}")
    return {**_results(metric, data), "images": total, **subject}


def check_classes(model: PreTrainedModel, data: "SegmentationDataset") -> None:
    """Refuse a model whose outputs are not the classes of the data, in their order.

    Raises:
        ValueError: naming the difference. Other names for as many classes are only a warning.
    """
    config: Any = model.config
    ours = [str(config.id2label[index]) for index in range(config.num_labels)]
    theirs = [data.id2label[index] for index in range(data.num_labels)]
    if len(ours) < len(theirs):
        raise ValueError(f"the model knows {len(ours)} classes, but the data set has {len(theirs)}: they do not fit")
    surplus = [name for name in ours[len(theirs) :] if not name.startswith(("unused ", "LABEL_"))]
    if surplus:
        raise ValueError(
            f"the model has {len(ours)} classes, but the data set {len(theirs)}: the model's {surplus[0]!r} and "
            f"{len(surplus) - 1} more have no counterpart"
        )
    pairs = [(_plain(one), _plain(other), index) for index, (one, other) in enumerate(zip(ours, theirs, strict=False))]
    different = [index for one, other, index in pairs if one != other and not ours[index].startswith("LABEL_")]
    if not different:
        return
    first = different[0]
    message = f"class {first} is {ours[first]!r} for the model and {theirs[first]!r} in the data set"
    if len(different) > 1 and sorted(pair[0] for pair in pairs) == sorted(pair[1] for pair in pairs):
        raise ValueError(f"model and data set have the same classes in another order: {message}")
    logger.warning(
        f"{len(different)} classes have other names in the data set; {message}. They are taken for the same."
    )


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


class _Samples(Dataset):
    """Samples by their indices. What is wrong with one comes as a value, so that it leaves a worker in one piece."""

    def __init__(self, data: "SegmentationDataset", indices: Sequence[int]):
        self.data, self.indices = data, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> "tuple[int, SegmentationSample | Exception]":
        index = self.indices[position]
        try:
            return index, self.data[index]
        except (ValueError, OSError) as error:
            return index, error


def _itself(item: Any) -> Any:
    return item


def _counted(
    model: PreTrainedModel,
    processor: Any,
    sample: "SegmentationSample | Exception",
    data: "SegmentationDataset",
    options: Mapping[str, Any],
) -> tuple[MeanIoU, torch.Tensor]:
    """The counts of one image, on the CPU, and its labels."""
    if isinstance(sample, Exception):
        raise sample
    counts = MeanIoU(data.num_labels, ignore_index=data.ignore_index)
    try:
        labels = segment_image(model, processor, sample.image, **options)
        known = labels.where(labels < data.num_labels, data.ignore_index)
        counts.add(prediction=known, reference=sample.labels)
    except (ValueError, RuntimeError) as error:  # too small an image, too little memory
        reason = " ".join(str(error).split())
        raise ValueError(f"cannot evaluate {sample.name}: {reason[:300]}") from error
    counts.confusion = counts.confusion.cpu()
    return counts, labels


def _prediction(folder: Path, name: str) -> Path:
    """Where the label map of an image goes."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or ".." in parts or parts[0] == "/":
        raise ValueError(f"the image {name!r} has a name that no file can have, so its prediction cannot be saved")
    return folder.joinpath(*parts[:-1], f"{parts[-1]}.png")


def _save_prediction(path: Path, labels: torch.Tensor, num_labels: int, palette: Any) -> None:
    if num_labels <= 256:
        picture = Image.fromarray(labels.to(torch.uint8).cpu().numpy())
        if palette:
            picture.putpalette(bytes(value for colour in palette for value in colour))
    else:
        picture = Image.fromarray(labels.cpu().numpy().astype(np.uint16))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    picture.save(partial, format="PNG")
    partial.replace(path)


def _process() -> tuple[int, int]:
    """Which process this is, and of how many."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _of_first_process(make: Any, rank: int) -> Any:
    """What `make()` gives in the first process, in all of them. Where it is refused there, it is refused in all."""
    found: list[Any] = [None]
    if rank == 0:
        try:
            found = [make()]
        except ValueError as error:
            found = [error]
    if _process()[1] > 1:
        distributed.broadcast_object_list(found)
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def _sum(count: int) -> int:
    """Over all processes."""
    if _process()[1] == 1:
        return count
    total = torch.tensor(count, device="cuda" if distributed.get_backend() == "nccl" else "cpu")
    distributed.all_reduce(total)
    return int(total)


def _describe_model(model: PreTrainedModel) -> dict[str, Any]:
    """What tells one model from another: its class, and a digest of its config and its tensors."""
    config = {key: value for key, value in model.config.to_dict().items() if key not in VOLATILE}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return {
        "class": type(model).__name__,
        "num_labels": model.config.num_labels,
        "source_config": getattr(model.config, "source_config", None),
        "sha256": digest.hexdigest(),
    }


def _describe_data(data: "SegmentationDataset") -> dict[str, Any]:
    names = hashlib.sha256("\n".join(data.names).encode())
    return {
        "source": str(data.source),
        "kind": data.kind,
        "split": data.split,
        "images": len(data),
        "num_labels": data.num_labels,
        "ignore_index": data.ignore_index,
        **data.rule.describe(),
        "names_sha256": names.hexdigest(),
    }


def _describe_protocol(
    model: PreTrainedModel,
    processor: Any,
    scales: Sequence[float] | None,
    flip: bool,
    window: Sequence[int] | None,
    stride: Sequence[int] | None,
) -> dict[str, Any]:
    used = window_in_use(model, window, stride)
    own = processor.to_dict()
    fields = (
        "do_resize",
        "size",
        "size_divisor",
        "do_rescale",
        "do_normalize",
        "image_mean",
        "image_std",
        "multi_scale",
    )
    preparation = {field: own[field] for field in fields if field in own}
    if scales is None:
        preparation.pop("multi_scale", None)
    return {
        "scales": None if scales is None else list(scales),
        "flip": bool(flip),
        "window_size": None if used is None else list(used.size),
        "window_stride": None if used is None else list(used.stride),
        "window_is_own": window is not None or stride is not None,
        "image_processor": json.loads(json.dumps(preparation, default=dict)),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
    }


def _results(metric: MeanIoU, data: "SegmentationDataset") -> dict[str, Any]:
    figures = metric.figures()
    classes = [
        {
            "name": data.id2label[index],
            **{kind: _number(figures[f"per_category_{kind}"][index]) for kind in ("iou", "accuracy", "dice")},
        }
        for index in range(data.num_labels)
    ]
    means = {name: _number(value) for name, value in figures.items() if not name.startswith("per_category")}
    return {**means, "classes": classes}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def results_table(results: Mapping[str, Any]) -> str:
    """The results as the original prints them: percent of each class, then the means."""
    classes = [(one["name"], _percent(one["iou"]), _percent(one["accuracy"])) for one in results["classes"]]
    means = [_percent(results[name]) for name in ("overall_accuracy", "mean_iou", "mean_accuracy")]
    return "\n".join(
        [
            "per class results:",
            *_grid([("Class", "IoU", "Acc"), *classes]),
            "Summary:",
            *_grid([("aAcc", "mIoU", "mAcc"), tuple(means)]),
        ]
    )


def _percent(share: float | None) -> str:
    return "nan" if share is None else f"{100 * share:.2f}"


def _grid(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    line = "+".join(["", *("-" * (width + 2) for width in widths), ""])
    head, *body = ("|".join(["", *(f" {cell:^{w}} " for cell, w in zip(row, widths, strict=True)), ""]) for row in rows)
    return [line, head, line, *body, line]


def compare_with_published(
    results: Mapping[str, Any], processor: Any, source_config: str | None = None, complete: bool = True
) -> dict[str, Any] | None:
    """The authors' figure for a converted published checkpoint beside the measured one.

    Args:
        results: of [`evaluate_segmentation`].
        processor: the one it used.
        source_config: name of a published config (see `conversion.published`); None: the one that the model's config
            names as `source_config`, as the conversion writes it. Further training does not change that.
        complete: whether all images of the split were evaluated.

    Returns:
        None if neither names a config. Else a dict with `config` and `dataset`, and either `reason`, why there is
        nothing to compare, or `published`, `measured` and `difference` in percent points, and `note`, what the authors
        or we remark.

    Raises:
        ValueError: if there is no published config of that name.
    """
    name = source_config or results["model"]["source_config"]
    if name is None:
        return None
    row = published_row(name)
    found: dict[str, Any] = {"config": name, "dataset": row["dataset"]}
    reason, key = _comparable(results, processor, row, complete)
    if reason is None and row[key] is None:
        reason = "the authors give no figure for it"
    if reason is not None:
        return {**found, "reason": reason}
    measured = 100 * (results["mean_iou"] or 0.0)
    return {
        **found,
        "published": row[key],
        "measured": measured,
        "difference": measured - row[key],
        "note": row["note"] or None,
    }


def why_not_comparable(
    model: PreTrainedModel,
    processor: Any,
    data: "SegmentationDataset",
    *,
    scales: Sequence[float] | None = None,
    flip: bool = False,
    window: Sequence[int] | None = None,
    stride: Sequence[int] | None = None,
    source_config: str | None = None,
    complete: bool = True,
) -> str | None:
    """Why [`compare_with_published`] will find nothing to compare, or None: known before anything is evaluated.

    Args:
        model, processor, data, scales, flip, window, stride: as of [`evaluate_segmentation`].
        source_config, complete: as of [`compare_with_published`].
    """
    expected = {
        "mean_iou": None,
        "model": {"source_config": getattr(model.config, "source_config", None)},
        "data": _describe_data(data),
        "protocol": _describe_protocol(model, processor, scales, flip, window, stride),
    }
    found = compare_with_published(expected, processor, source_config, complete)
    if found is None:
        return "the model names no published config as its source, and --published is not given"
    return found.get("reason")


def _comparable(
    results: Mapping[str, Any], processor: Any, row: Mapping[str, Any], complete: bool
) -> tuple[str | None, str]:
    """Why nothing is comparable, or None; and which of a row's figures would be."""
    data, protocol = results["data"], results["protocol"]
    if data["kind"] != row["dataset"]:
        return f"its figure is of {row['dataset']}, these data are {data['kind']}", "miou"
    if data["split"] not in (None, "validation"):
        return f"its figure is of the validation split, this is {data['split']}", "miou"
    if not complete:
        return "its figure is of the whole split", "miou"
    if protocol["window_is_own"]:
        return "its figure is with the windows of the checkpoint", "miou"
    if protocol["scales"] is None and not protocol["flip"]:
        return None, "miou"
    own = multi_scale_options(processor)
    if protocol["scales"] == list(own["scales"]) and protocol["flip"] == own["flip"]:
        return None, "miou_ms"
    return "its figures are of a single scale, and of the checkpoint's scales with mirror images", "miou_ms"


__all__ = [
    "JournalError",
    "check_classes",
    "compare_with_published",
    "evaluate_segmentation",
    "results_table",
    "why_not_comparable",
]
