# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Mean intersection over union from a confusion matrix that grows with nothing but its counts.

Source: `mmseg/core/evaluation/metrics.py` of MMSegmentation 0.20; the interface is that of `evaluate.Metric`.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import distributed
from transformers import EvalPrediction

from .image_processing import argmax_resized

CHUNK = 1 << 22  # pixels counted at once: a label map of any size costs no more than this many int64


class MeanIoU:
    """IoU and accuracy of label maps, pooled over all pixels of all images.

    It has the interface of `evaluate.load("mean_iou")` (`add`, `add_batch`, `compute`; `evaluate.combine` takes it),
    but keeps counts where that keeps all label maps in a file, and needs no download. It does not derive from
    `evaluate.Metric`, whose constructor makes folders in the cache.

    Counts are int64 and stay on the device of the predictions, so a result is exact in any order and for any division
    of the images among processes: [`merge`] them, or [`all_reduce`].

    It also is a `compute_metrics` for `Trainer`; with `batch_eval_metrics=True` no logits are kept.

    Args:
        num_labels: classes of the labels.
        ignore_index: the label of pixels that do not count.
        reduce_labels: whether label 0 of the references means "no class" and all others are one too high.

    Raises:
        ValueError: if `num_labels` is no count, or `ignore_index` is a class.
    """

    name = "mean_iou"

    def __init__(self, num_labels: int, ignore_index: int = 255, reduce_labels: bool = False):
        if num_labels < 1:
            raise ValueError(f"num_labels must be at least 1, got {num_labels}")
        if 0 <= ignore_index < num_labels:
            raise ValueError(f"ignore_index={ignore_index} is one of the {num_labels} classes: choose another")
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.reduce_labels = reduce_labels
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        # rows: labels. columns: predictions, and in the last one pixels for which there is none
        self.confusion = torch.zeros((self.num_labels, self.num_labels + 1), dtype=torch.int64)

    def add(self, *, prediction: Any, reference: Any) -> None:
        """Count one image: [`add_batch`] for a batch of one."""
        self.add_batch(predictions=[prediction], references=[reference])

    def add_batch(self, *, predictions: Any, references: Any) -> None:
        """Count images.

        Args:
            predictions: class indices, a tensor or array `(B, H, W)` or a list of B `(H, W)` of any sizes, whole
                numbers from 0 to `num_labels - 1`. `ignore_index` stands for "none predicted", which is never right.
            references: labels of the same shapes, of the same classes or `ignore_index`; with `reduce_labels`, from
                0 to `num_labels`.

        Raises:
            ValueError: if shapes differ, numbers are not whole, or one is no class; nothing is counted then.
        """
        if len(predictions) != len(references):
            raise ValueError(f"got {len(predictions)} predictions and {len(references)} references: as many are needed")
        counts = [
            self._count(_label_map("predictions", prediction), _label_map("references", reference))
            for prediction, reference in zip(predictions, references, strict=True)
        ]
        for count in counts:  # once all are known to be right
            self.confusion = self.confusion.to(count.device) + count

    def merge(self, other: "MeanIoU") -> None:
        """Take over what another metric of the same classes has counted."""
        if other.confusion.shape != self.confusion.shape:
            raise ValueError(f"cannot merge the counts of {other.num_labels} classes with those of {self.num_labels}")
        self.confusion = self.confusion + other.confusion.to(self.confusion.device)

    def all_reduce(self) -> None:
        """Sum the counts of all processes of `torch.distributed`, if it is in use; each of them has the sum then.

        To be called by every process, once: each has counted its own images.
        """
        if distributed.is_available() and distributed.is_initialized():
            counts = self.confusion.to("cuda" if distributed.get_backend() == "nccl" else "cpu")
            distributed.all_reduce(counts)
            self.confusion = counts

    def figures(self, nan_to_num: float | None = None) -> dict[str, Any]:
        """What [`compute`] returns, of the counts so far, which stay."""
        counts = self.confusion.cpu().numpy()
        hits = np.diagonal(counts).astype(np.float64)
        labelled = counts.sum(1).astype(np.float64)
        predicted = counts[:, :-1].sum(0).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            overall = hits.sum() / labelled.sum()
            classes = {
                "iou": hits / (labelled + predicted - hits),
                "accuracy": hits / labelled,
                "dice": 2 * hits / (labelled + predicted),
            }
        results: dict[str, Any] = {"overall_accuracy": float(overall)}
        for name, values in classes.items():
            if nan_to_num is not None:
                values = np.where(np.isnan(values), nan_to_num, values)
            known = ~np.isnan(values)
            with np.errstate(invalid="ignore"):  # no class at all gives NaN
                results[f"mean_{name}"] = float(np.where(known, values, 0).sum() / known.sum())
            results[f"per_category_{name}"] = values
        return results

    def compute(
        self, *, predictions: Any = None, references: Any = None, nan_to_num: float | None = None
    ) -> dict[str, Any]:
        """The result for all images added, and those given; the counts start again at zero.

        Args:
            predictions, references: as in [`add_batch`]; both or none.
            nan_to_num: what stands for the NaN of absent classes, also in the means. None leaves them out of the means.

        Returns:
            `mean_iou`, `mean_accuracy`, `mean_dice`, `overall_accuracy` as shares from 0 to 1, and
            `per_category_iou`, `per_category_accuracy`, `per_category_dice`, arrays `(num_labels,)`. A class that is
            neither in the labels nor predicted there has NaN, one that is only predicted IoU 0 and accuracy NaN.
        """
        if (predictions is None) != (references is None):
            raise ValueError("predictions and references belong together: pass both or none")
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references)
        results = self.figures(nan_to_num)
        self.reset()
        return results

    def __call__(self, eval_prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """As `compute_metrics` of `Trainer`: logits `(B, num_labels, h, w)` and labels `(B, H, W)`.

        Logits of another size are resized bilinearly. In the tuple that a model with further outputs gives, the logits
        come first.

        Returns:
            the means, once `compute_result` says that this is the last batch; an empty dict before.
        """
        outputs = eval_prediction.predictions
        logits = torch.as_tensor(outputs[0] if isinstance(outputs, tuple) else outputs)
        labels = torch.as_tensor(eval_prediction.label_ids)
        if logits.ndim != 4 or labels.ndim != 3 or len(logits) != len(labels):
            raise ValueError(
                "logits (B, num_labels, h, w) and labels (B, H, W) are needed, got "
                f"{tuple(logits.shape)} and {tuple(labels.shape)}"
            )
        size = (labels.shape[1], labels.shape[2])
        self.add_batch(predictions=[argmax_resized(one, size) for one in logits], references=labels)
        if not compute_result:
            return {}
        return {name: value for name, value in self.compute().items() if not name.startswith("per_category")}

    def _feature_names(self) -> list[str]:
        """Asked for by `evaluate.combine`."""
        return ["predictions", "references"]

    def _count(self, predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """The confusion matrix of one label map, on the device of the predictions."""
        if predictions.shape != references.shape:
            raise ValueError(
                f"predictions {tuple(predictions.shape)} and references {tuple(references.shape)} (height, width) must "
                "have the same size: resize the predictions to that of the labels"
            )
        columns = self.num_labels + 1
        confusion = torch.zeros(self.num_labels * columns, dtype=torch.int64, device=predictions.device)
        chunks: Iterable = zip(predictions.flatten().split(CHUNK), references.flatten().split(CHUNK), strict=True)
        for predicted, labels in chunks:
            predicted, labels = predicted.long(), labels.to(predictions.device).long()
            self._check("references", labels, self.num_labels + self.reduce_labels)
            self._check("predictions", predicted, self.num_labels)
            valid = labels != self.ignore_index
            if self.reduce_labels:
                valid &= labels != 0
                labels = labels - 1
            predicted = predicted.where(predicted != self.ignore_index, self.num_labels)
            confusion += torch.bincount((labels * columns + predicted)[valid], minlength=len(confusion))
        return confusion.view(self.num_labels, columns)

    def _check(self, name: str, values: torch.Tensor, count: int) -> None:
        wrong = ((values < 0) | (values >= count)) & (values != self.ignore_index)
        if wrong.any():
            found = values[wrong].unique()[:5].tolist()
            hint = ""
            if name == "references" and found == [self.num_labels]:
                hint = '. If their label 0 means "no class", reduce_labels=True is needed'
            raise ValueError(
                f"{name} hold {', '.join(map(str, found))}, no class: expected 0 to {count - 1}, or "
                f"ignore_index={self.ignore_index}{hint}"
            )


def _label_map(name: str, values: Any) -> torch.Tensor:
    if not isinstance(values, torch.Tensor):
        values = torch.from_numpy(np.require(values, requirements="W"))  # a copy where it is read-only
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise ValueError(f"{name} must be class indices, whole numbers, got {values.dtype}: take an argmax of logits")
    if values.ndim != 2:
        raise ValueError(
            f"each of the {name} must be one label map (height, width), got the shape {tuple(values.shape)}"
        )
    return values


__all__ = ["MeanIoU"]
