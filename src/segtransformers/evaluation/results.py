# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The results of an evaluation, as JSON can hold them and as a table."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..escaping import printable
from ..metrics import MeanIoU


def results_of(metric: MeanIoU, id2label: Mapping[int, str]) -> dict[str, Any]:
    """Return the means of a metric and the figures of each class. NaN becomes None."""
    figures = metric.figures()
    classes = [
        {
            "name": id2label[index],
            **{kind: _number(figures[f"per_category_{kind}"][index]) for kind in ("iou", "accuracy", "dice")},
        }
        for index in range(metric.num_labels)
    ]
    means = {name: _number(value) for name, value in figures.items() if not name.startswith("per_category")}
    return {**means, "classes": classes}


def results_table(results: Mapping[str, Any]) -> str:
    """Format the results as the original code prints them: percentages of each class, then the means.

    Args:
        results: of [`evaluate_segmentation`].
    """
    classes = [(printable(one["name"]), _percent(one["iou"]), _percent(one["accuracy"])) for one in results["classes"]]
    means = [_percent(results[name]) for name in ("overall_accuracy", "mean_iou", "mean_accuracy")]
    return "\n".join(
        [
            "per class results:",
            *_grid([("Class", "IoU", "Acc"), *classes]),
            "Summary:",
            *_grid([("aAcc", "mIoU", "mAcc"), tuple(means)]),
        ]
    )


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _percent(share: float | None) -> str:
    return "nan" if share is None else f"{100 * share:.2f}"


def _grid(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    line = "+".join(["", *("-" * (width + 2) for width in widths), ""])
    head, *body = ("|".join(["", *(f" {cell:^{w}} " for cell, w in zip(row, widths, strict=True)), ""]) for row in rows)
    return [line, head, line, *body, line]


__all__ = ["results_of", "results_table"]
