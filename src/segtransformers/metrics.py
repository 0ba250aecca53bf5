# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Mean intersection over union from a confusion matrix, whose size does not grow with the number of images.

Source: `mmseg/core/evaluation/metrics.py` of MMSegmentation 0.20. The interface is that of `evaluate.Metric`.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import distributed
from transformers import EvalPrediction

from .image_processing import Decision, resized_labels

CHUNK = 1 << 22  # pixels counted at once, which limits the memory for large label maps


class MeanIoU:
    """IoU and accuracy of label maps, pooled over all pixels of all images.

    It has the interface of `evaluate.load("mean_iou")` (`add`, `add_batch`, `compute`; `evaluate.combine` takes it).
    It keeps counts instead of all label maps, and needs no download. It does not derive from `evaluate.Metric`, whose
    constructor creates folders in the cache.

    Counts are int64 and stay on the device of the predictions. A result is exact in any order and for any division of
    the images among processes: combine their counts with [`merge`] or [`all_reduce`].

    It also is a `compute_metrics` for `Trainer`. With `batch_eval_metrics=True` no logits are kept.

    Args:
        num_labels: number of classes.
        ignore_index: the label of pixels that do not count.
        reduce_labels: whether label 0 of the references means "no class" and all other labels are one too high.

    Raises:
        ValueError: if `num_labels` is less than 1, or `ignore_index` is a class.
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
        """Set all counts to zero."""
        # rows: labels. columns: predictions; the last column counts pixels without a prediction
        self.confusion = torch.zeros((self.num_labels, self.num_labels + 1), dtype=torch.int64)

    def add(self, *, prediction: Any, reference: Any) -> None:
        """Count one image, as [`add_batch`] does."""
        self.add_batch(predictions=[prediction], references=[reference])

    def add_batch(self, *, predictions: Any, references: Any) -> None:
        """Count images.

        Args:
            predictions: class indices from 0 to `num_labels - 1`, a tensor or array `(B, H, W)` or a list of B label
                maps `(H, W)` of any sizes. `ignore_index` means "no prediction", which is always wrong.
            references: labels of the same shapes, of the same classes or `ignore_index`; with `reduce_labels`, from
                0 to `num_labels`.

        Raises:
            ValueError: if shapes differ, values are not integers, or a value is no class. Then nothing is counted.
        """
        if len(predictions) != len(references):
            raise ValueError(
                f"got {len(predictions)} predictions and {len(references)} references: pass one of each per image"
            )
        counts = [
            self._count(_label_map("predictions", prediction), _label_map("references", reference))
            for prediction, reference in zip(predictions, references, strict=True)
        ]
        for count in counts:  # only when all images are valid
            self.confusion = self.confusion.to(count.device) + count

    def merge(self, other: "MeanIoU") -> None:
        """Add the counts of another metric of the same classes."""
        if other.confusion.shape != self.confusion.shape:
            raise ValueError(f"cannot merge the counts of {other.num_labels} classes with those of {self.num_labels}")
        self.confusion = self.confusion + other.confusion.to(self.confusion.device)

    def all_reduce(self) -> None:
        """Replace the counts of each process by the sum over all processes of `torch.distributed`, if it is in use.

        Every process must call it once, after it has counted its own images.
        """
        if distributed.is_available() and distributed.is_initialized():
            counts = self.confusion.to("cuda" if distributed.get_backend() == "nccl" else "cpu")
            distributed.all_reduce(counts)
            self.confusion = counts

    def figures(self, nan_to_num: float | None = None) -> dict[str, Any]:
        """Return what [`compute`] returns, without setting the counts to zero."""
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
        self,
        *,
        predictions: Any = None,
        references: Any = None,
        nan_to_num: float | None = None,
        num_labels: int | None = None,
        ignore_index: int | None = None,
        reduce_labels: bool | None = None,
    ) -> dict[str, Any]:
        """Return the result for all images so far, and set the counts to zero.

        Args:
            predictions, references: more images to count first, as in [`add_batch`]; both or none.
            nan_to_num: replacement for the NaN of absent classes, also in the means. None leaves them out of the means.
            num_labels, ignore_index, reduce_labels: accepted because the metric of `evaluate` takes them here. They
                must be those of the constructor.

        Returns:
            `mean_iou`, `mean_accuracy`, `mean_dice`, `overall_accuracy`, from 0 to 1, and `per_category_iou`,
            `per_category_accuracy`, `per_category_dice`, arrays `(num_labels,)`. A class that is neither in the labels
            nor predicted there has NaN; one that is only predicted has IoU 0 and accuracy NaN.

        Raises:
            ValueError: if a setting is not that of the constructor, or as in [`add_batch`].
        """
        settings = {"num_labels": num_labels, "ignore_index": ignore_index, "reduce_labels": reduce_labels}
        for name, value in settings.items():
            if value is not None and value != getattr(self, name):
                raise ValueError(
                    f"compute got {name}={value}, but this metric was made with {name}={getattr(self, name)}: pass it "
                    "to MeanIoU(...)"
                )
        if (predictions is None) != (references is None):
            raise ValueError("predictions and references belong together: pass both or none")
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references)
        results = self.figures(nan_to_num)
        self.reset()
        return results

    def __call__(self, eval_prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """Count a batch, as `compute_metrics` of `Trainer`: logits `(B, num_labels, h, w)` and labels `(B, H, W)`.

        Logits of another size are resized bilinearly. If the model has several outputs, the logits are the first.

        Args:
            eval_prediction: predictions and labels of the batch.
            compute_result: whether this is the last batch.

        Returns:
            the means after the last batch, an empty dict before.
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
        decision = Decision(0.5 if logits.shape[1] == 1 and self.num_labels == 2 else None)  # of a binary model
        self.add_batch(predictions=[resized_labels(one, size, decision) for one in logits], references=labels)
        if not compute_result:
            return {}
        return {name: value for name, value in self.compute().items() if not name.startswith("per_category")}

    def _feature_names(self) -> list[str]:
        """Return the names of the inputs, for `evaluate.combine`."""
        return ["predictions", "references"]

    def _count(self, predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """Return the confusion matrix of one image, on the device of the predictions."""
        if predictions.shape != references.shape:
            raise ValueError(
                f"predictions {tuple(predictions.shape)} and references {tuple(references.shape)} (height, width) must "
                "have the same size: resize the predictions to the size of the labels"
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
        """Refuse values that are neither a class below `count` nor `ignore_index`."""
        wrong = ((values < 0) | (values >= count)) & (values != self.ignore_index)
        if wrong.any():
            found = values[wrong].unique()[:5].tolist()
            hint = ""
            if name == "references" and found == [self.num_labels]:
                hint = '. If label 0 means "no class", pass reduce_labels=True'
            raise ValueError(
                f"{name} hold {', '.join(map(str, found))}, which is no class: expected 0 to {count - 1}, or "
                f"ignore_index={self.ignore_index}{hint}"
            )


def _label_map(name: str, values: Any) -> torch.Tensor:
    """Return a label map `(height, width)` as a tensor of integers."""
    if not isinstance(values, torch.Tensor):
        # torch takes neither read-only memory, nor negative strides, nor a foreign byte order
        array = np.require(values, requirements=["C", "W"])
        values = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise ValueError(f"{name} must be class indices, integers, got {values.dtype}: take the argmax of logits")
    if values.ndim != 2:
        raise ValueError(
            f"each of the {name} must be one label map (height, width), got the shape {tuple(values.shape)}"
        )
    return values


__all__ = ["MeanIoU"]
