# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""IoU and other figures of a model on a data set, in one process or several, resumable.

Source of the protocol: `tools/test.py` and `CustomDataset.evaluate` of MMSegmentation 0.20. Memory does not grow with
the number of images, because each becomes a confusion matrix.
"""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import distributed
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel

from ..files import complete_file
from ..image_processing import decision_of, label_map_classes
from ..inference import InferenceProtocol, segment_bands, segment_image
from ..metrics import MeanIoU, MultiLabelIoU
from ..models.optimize import optimize_if_ours
from ..terminal import progress_bar
from ..visualization import bit_plane_image, check_bit_planes
from .calibration import Calibration
from .class_check import check_classes
from .results import results_of
from .resume_log import ResumeLog, add_counts
from .subject import describe_data, describe_model, describe_protocol

if TYPE_CHECKING:
    from ..datasets import SegmentationDataset, SegmentationSample


def evaluate_segmentation(
    model: PreTrainedModel,
    processor: Any,
    data: "SegmentationDataset",
    protocol: InferenceProtocol | None = None,
    *,
    save_predictions: str | Path | None = None,
    resume_log: str | Path | None = None,
    resume: bool = False,
    num_workers: int = 0,
    progress: bool = False,
    optimize: bool = False,
    calibrate: bool = False,
    dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """Segment every image of a data set and compare the result with its labels.

    Where `torch.distributed` is in use, every process calls this with the same arguments. The images are divided among
    the processes, and each of them returns the results of all images. Counts are exact, so they do not depend on the
    number of processes; the numbers that a network computes may depend on the number of threads and the device.

    Args:
        model: in evaluation mode, on its device.
        processor: its image processor.
        data: a data set from [`~datasets.load_segmentation_dataset`]. The model must have its classes, in its order.
            Outputs beyond them count as "nothing recognised", as in the original code.
        protocol: the inference options. None is the single-scale protocol of the checkpoint.
        save_predictions: folder for label maps: PNG files with a palette, whose values are class indices, named after
            the images. Of a multi-label model, bit k of a value is 1 where class k is predicted.
        resume_log: folder for the counts so far, from which `resume` continues an interrupted evaluation. It is tied to
            model, data and protocol. Delete it (`ResumeLog(...).remove()`) once the results are saved.
        resume: whether to continue from that resume log, if it exists.
        num_workers: number of processes that read images ahead.
        progress: whether the first process shows a bar with the mean IoU so far and the rate.
        optimize: whether to run [`optimize_for_inference`] on `model` itself, which then serves only for inference.
        calibrate: whether to measure the temperature at which the probabilities fit the labels best, on a sample of the
            pixels. Nothing is written into the config; `save_temperature` does that.

        dtype: of the optimized model, with `optimize`: see [`optimize_for_inference`].

    Returns:
        a dict that JSON can hold: `mean_iou`, `mean_accuracy`, `overall_accuracy`, `mean_dice`, `mean_precision` and
        `mean_recall`, from 0 to 1; `classes`, with `name`, `iou`, `accuracy`, `dice`, `precision` and `recall` of each
        ([`MeanIoU`], [`MultiLabelIoU`]), None where the class does not occur; `images`, their number; what was
        evaluated, as `model`, `data` and `protocol`; and `calibration`, if `calibrate` is set, with the results of
        [`Calibration`]. Two runs on the same machine return the same.

    Raises:
        ValueError: if the classes of model and data differ, or an image or its labels cannot be used; it is named.
        ResumeLogError: if the resume log is of something else, or exists although `resume` is False.
    """
    check_classes(model, data)
    protocol = protocol or InferenceProtocol()
    rank, world = _rank_and_processes()
    metric = _new_metric(data)
    calibration = Calibration(decision_of(model.config)) if calibrate else None
    folder = Path(save_predictions) if save_predictions is not None else None
    if folder is not None and data.multi_label:
        check_bit_planes(len(label_map_classes(model.config)))

    def begin() -> tuple[dict[str, Any], list[int]]:
        """Return the subject and the indices of the images that are done, and count these."""
        subject: dict[str, Any] = {
            "model": describe_model(model),
            "data": describe_data(data),
            "protocol": describe_protocol(model, processor, protocol, dtype),
        }
        if calibration is not None:
            subject["calibrated_temperatures"] = calibration.temperatures
        log = None if resume_log is None else ResumeLog(Path(resume_log), subject)
        counts = log.read(resume) if log is not None else {}
        if folder is not None:  # an image whose prediction is missing is segmented again
            counts = {
                index: found for index, found in counts.items() if _prediction_file(folder, data.names[index]).exists()
            }
        for index, found in counts.items():
            add_counts(metric.confusion, found)
            if calibration is not None and log is not None:
                calibration.add_packed(log.calibrations.get(index, ""))
        return subject, sorted(counts)

    subject, done = _in_first_process(begin)
    if optimize:  # only now, so that the results describe the model as it was loaded
        model = optimize_if_ours(model, inplace=True, dtype=dtype)
    own = sorted(set(range(len(data))) - set(done))[rank::world]
    counted = len(done) if rank == 0 else 0

    config: Any = model.config
    palette = getattr(config, "palette", None) or data.palette
    loader = DataLoader(_Samples(data, own), batch_size=None, num_workers=num_workers, collate_fn=_unchanged)
    title = f"process 1 of {world}" if world > 1 else ""
    with contextlib.ExitStack() as stack:
        writer = None
        if resume_log is not None:
            writer = stack.enter_context(ResumeLog(Path(resume_log), subject).writer(rank))
        shown = progress and rank == 0
        bar = stack.enter_context(progress_bar(len(own), "image", title, in_logs=True, shown=shown))
        for index, sample in loader:
            own_calibration = None if calibration is None else Calibration(calibration.decision)
            counts, labels = _count(model, processor, sample, data, protocol, own_calibration)
            if folder is not None:
                _save_prediction(_prediction_file(folder, sample.name), labels, len(label_map_classes(config)), palette)
            if writer is not None:
                packed = None if own_calibration is None else own_calibration.packed()
                writer.add(index, sample.name, counts.confusion, packed)
            metric.merge(counts)
            if calibration is not None and own_calibration is not None:
                calibration.sums += own_calibration.sums
            counted += 1
            if shown:
                bar.note(f"mIoU {100 * metric.figures()['mean_iou']:.2f}")
                bar.update()
    metric.all_reduce()
    total = _sum_over_processes(counted)
    if total != len(data):
        raise RuntimeError(f"{total} images were counted, but the data set has {len(data)}")
    results = {**results_of(metric, data.id2label), "images": total, **subject}
    if calibration is not None:
        calibration.all_reduce()
        results["calibration"] = calibration.results()
    return results


class _Samples(Dataset):
    """Samples by their indices. An error is returned as a value, because it would lose its type in a worker."""

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


def _unchanged(item: Any) -> Any:
    return item


def _count(
    model: PreTrainedModel,
    processor: Any,
    sample: "SegmentationSample | Exception",
    data: "SegmentationDataset",
    protocol: InferenceProtocol,
    calibration: Calibration | None,
) -> tuple[MeanIoU, torch.Tensor]:
    """Segment one image, and add it to a calibration. Return its counts, on the CPU, and its label map."""
    if isinstance(sample, Exception):
        raise sample
    counts = _new_metric(data)
    try:
        if calibration is None:
            labels = segment_image(model, processor, sample.image, protocol)
        else:
            bands = segment_bands(model, processor, sample.image, protocol)
            labels = calibration.add_image(bands, torch.as_tensor(sample.labels), data.ignore_index)
        is_masks = data.multi_label
        known = labels[: data.num_labels] if is_masks else labels.where(labels < data.num_labels, data.ignore_index)
        counts.add(prediction=known, reference=sample.labels)
    except (ValueError, RuntimeError) as error:  # such as too little memory
        reason = " ".join(str(error).split())
        raise ValueError(f"cannot evaluate {sample.name}: {reason[:300]}") from error
    counts.confusion = counts.confusion.cpu()
    return counts, labels


def _new_metric(data: "SegmentationDataset") -> MeanIoU:
    metric = MultiLabelIoU if data.multi_label else MeanIoU
    return metric(data.num_labels, ignore_index=data.ignore_index)


def _prediction_file(folder: Path, name: str) -> Path:
    """Return the file for the label map of an image."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or ".." in parts or parts[0] == "/":
        raise ValueError(f"the prediction of the image {name!r} cannot be saved: its name is no file name")
    return folder.joinpath(*parts[:-1], f"{parts[-1]}.png")


def _save_prediction(path: Path, labels: torch.Tensor, num_labels: int, palette: Any) -> None:
    """Write a label map as PNG: 8 bits with a palette, or 16 bits for more than 256 classes; or masks as bit planes."""
    if labels.ndim == 3:
        image = bit_plane_image(labels.cpu().numpy())
    elif num_labels <= 256:
        image = Image.fromarray(labels.to(torch.uint8).cpu().numpy())
        if palette:
            image.putpalette(bytes(value for colour in palette for value in colour))
    else:
        image = Image.fromarray(labels.cpu().numpy().astype(np.uint16))
    with complete_file(path) as file:
        image.save(file, format="PNG")


def _rank_and_processes() -> tuple[int, int]:
    """Return the rank of this process and the number of processes."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _in_first_process(make: Callable[[], Any]) -> Any:
    """Call `make` in the first process, and return its result, or raise its `ValueError`, in every process."""
    rank, world = _rank_and_processes()
    found: list[Any] = [None]
    if rank == 0:
        try:
            found = [make()]
        except ValueError as error:
            found = [error]
    if world > 1:
        distributed.broadcast_object_list(found)
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def _sum_over_processes(count: int) -> int:
    if _rank_and_processes()[1] == 1:
        return count
    total = torch.tensor(count, device="cuda" if distributed.get_backend() == "nccl" else "cpu")
    distributed.all_reduce(total)
    return int(total)


__all__ = ["evaluate_segmentation"]
