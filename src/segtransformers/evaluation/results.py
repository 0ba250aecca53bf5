# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The results of an evaluation, as JSON can hold them and as a table."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..escaping import printable
from ..metrics import MeanIoU

CLASS_FIGURES = ("iou", "accuracy", "dice", "precision", "recall")


def results_of(metric: MeanIoU, id2label: Mapping[int, str]) -> dict[str, Any]:
    """Return the means of a metric and the figures of each class. NaN becomes None."""
    figures = metric.figures()
    classes = [
        {
            "name": id2label[index],
            **{kind: _number(figures[f"per_category_{kind}"][index]) for kind in CLASS_FIGURES},
        }
        for index in range(metric.num_labels)
    ]
    means = {name: _number(value) for name, value in figures.items() if not name.startswith("per_category")}
    return {**means, "classes": classes}


def results_table(results: Mapping[str, Any]) -> str:
    """Format the results as percentages: a table of the classes, and one of the means as the original code has it.

    "Acc" is the recall of a class, as in the original code.

    Args:
        results: of [`evaluate_segmentation`].
    """
    classes, means = table_rows(results)
    return "\n".join(["per class results:", *_grid(classes), "Summary:", *_grid(means)])


def table_rows(results: Mapping[str, Any]) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Return the cells of the tables of [`results_table`], with their headings: those of the classes, and the means."""
    figures = ("iou", "accuracy", "dice", "precision")
    classes = [(printable(one["name"]), *(_percent(one[name]) for name in figures)) for one in results["classes"]]
    means = [_percent(results[name]) for name in ("overall_accuracy", "mean_iou", "mean_accuracy", "mean_dice")]
    return [("Class", "IoU", "Acc", "Dice", "Precision"), *classes], [("aAcc", "mIoU", "mAcc", "mDice"), tuple(means)]


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
