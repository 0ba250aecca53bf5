# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""IoU, Dice, precision and recall from counts of pixels, whose size does not grow with the number of images.

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
    """IoU, Dice, precision and recall of label maps, pooled over all pixels of all images.

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
        self.confusion = torch.zeros((self.num_labels, self._columns), dtype=torch.int64)

    @property
    def _columns(self) -> int:
        return self.num_labels + 1

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
            self._count(self._tensor("predictions", prediction), self._tensor("references", reference))
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
        hits, labelled, predicted, overall = self._sums(self.confusion.cpu().numpy())
        with np.errstate(divide="ignore", invalid="ignore"):
            classes = {
                "iou": hits / (labelled + predicted - hits),
                "accuracy": hits / labelled,
                "dice": 2 * hits / (labelled + predicted),
                "precision": hits / predicted,
                "recall": hits / labelled,
            }
        results: dict[str, Any] = {"overall_accuracy": overall}
        for name, values in classes.items():
            if nan_to_num is not None:
                values = np.where(np.isnan(values), nan_to_num, values)
            known = ~np.isnan(values)
            with np.errstate(invalid="ignore"):  # no class at all gives NaN
                results[f"mean_{name}"] = float(np.where(known, values, 0).sum() / known.sum())
            results[f"per_category_{name}"] = values
        return results

    def _sums(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """Return hits, labelled and predicted pixels of each class, and the share of right predictions."""
        hits = np.diagonal(counts).astype(np.float64)
        labelled = counts.sum(1).astype(np.float64)
        predicted = counts[:, :-1].sum(0).astype(np.float64)
        with np.errstate(invalid="ignore"):
            return hits, labelled, predicted, float(hits.sum() / labelled.sum())

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
            `overall_accuracy`, the share of right pixels, from 0 to 1; `mean_iou`, `mean_accuracy`, `mean_dice`,
            `mean_precision` and `mean_recall`; and `per_category_iou` and so on, arrays `(num_labels,)`. The accuracy
            of a class is its recall, as in MMSegmentation. A class that is neither in the labels nor predicted there
            has NaN; one that is only predicted has IoU 0 and recall NaN, one that is only in the labels precision NaN.

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
        if logits.ndim != 4 or labels.ndim != self._label_dimensions or len(logits) != len(labels):
            raise ValueError(
                f"logits (B, num_labels, h, w) and labels {self._expected_labels} are needed, got "
                f"{tuple(logits.shape)} and {tuple(labels.shape)}"
            )
        size, decision = (labels.shape[-2], labels.shape[-1]), self._decision(logits)
        self.add_batch(predictions=[resized_labels(one, size, decision) for one in logits], references=labels)
        if not compute_result:
            return {}
        return {name: value for name, value in self.compute().items() if not name.startswith("per_category")}

    _label_dimensions, _expected_labels = 3, "(B, H, W)"

    def _decision(self, logits: torch.Tensor) -> Decision:
        is_binary = logits.shape[1] == 1 and self.num_labels == 2
        return Decision(0.5 if is_binary else None)

    def _tensor(self, name: str, values: Any) -> torch.Tensor:
        return _label_map(name, values)

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


class MultiLabelIoU(MeanIoU):
    """[`MeanIoU`] for multi-label models: each class is a mask of its own, and masks may overlap.

    Predictions are masks `(num_labels, H, W)` of 0 and 1 or bool, references the same with `ignore_index` for pixels
    of a class that do not count. `overall_accuracy` is the share of right values of all masks.

    Args:
        num_labels: number of classes.
        ignore_index: the value of references that do not count.
        threshold: as a `compute_metrics` of `Trainer`: the probability above which a pixel belongs to a class.

    Raises:
        ValueError: as [`MeanIoU`].
    """

    _label_dimensions, _expected_labels = 4, "(B, num_labels, H, W)"

    def __init__(self, num_labels: int, ignore_index: int = 255, threshold: float = 0.5):
        if ignore_index in (0, 1):
            raise ValueError(f"ignore_index={ignore_index} is a value of the masks: choose another")
        super().__init__(num_labels, -1)
        self.ignore_index, self.threshold = ignore_index, threshold

    # columns of `confusion`: pixels of a class that are neither in the label nor predicted, only predicted, only in the
    # label, and in both
    _columns = 4

    def _sums(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        neither, false, missed, hits = counts.astype(np.float64).T
        with np.errstate(invalid="ignore"):
            return hits, hits + missed, hits + false, float((neither + hits).sum() / counts.sum())

    def _decision(self, logits: torch.Tensor) -> Decision:
        return Decision(self.threshold, multi_label=True)

    def _tensor(self, name: str, values: Any) -> torch.Tensor:
        masks = values if isinstance(values, torch.Tensor) else torch.from_numpy(np.array(values))
        if masks.is_floating_point() or masks.is_complex():
            raise ValueError(
                f"{name} must be masks of 0 and 1, got {masks.dtype}: compare probabilities with a threshold"
            )
        if masks.ndim != 3 or len(masks) != self.num_labels:
            raise ValueError(
                f"each of the {name} must be masks ({self.num_labels}, height, width), got the shape "
                f"{tuple(masks.shape)}"
            )
        return masks

    def _count(self, predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        if predictions.shape != references.shape:
            raise ValueError(
                f"predictions {tuple(predictions.shape)} and references {tuple(references.shape)} (num_labels, height, "
                "width) must have the same size: resize the predictions to the size of the labels"
            )
        confusion = torch.zeros((self.num_labels, 4), dtype=torch.int64, device=predictions.device)
        for own, predicted, labels in zip(confusion, predictions, references, strict=True):
            chunks = zip(predicted.flatten().split(CHUNK), labels.flatten().split(CHUNK), strict=True)
            for predicted_part, labels_part in chunks:
                labels_part = labels_part.to(predictions.device)
                valid = labels_part != self.ignore_index
                self._check_mask("predictions", predicted_part)
                self._check_mask("references", labels_part.where(valid, 0))
                values = 2 * labels_part.long() + predicted_part
                own += torch.bincount(values[valid], minlength=4)
        return confusion

    def _check_mask(self, name: str, values: torch.Tensor) -> None:
        if values.dtype != torch.bool and ((values < 0) | (values > 1)).any():
            found = values[(values < 0) | (values > 1)].unique()[:5].tolist()
            raise ValueError(
                f"{name} hold {', '.join(map(str, found))}: masks hold 0 and 1, and references ignore_index="
                f"{self.ignore_index}, too"
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


__all__ = ["MeanIoU", "MultiLabelIoU"]
