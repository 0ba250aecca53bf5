# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Evaluation of a model on a data set by the published protocol."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .evaluation import (
        JournalError,
        check_classes,
        compare_with_published,
        evaluate_segmentation,
        results_table,
        why_not_comparable,
    )
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "evaluation": (
                "JournalError",
                "check_classes",
                "compare_with_published",
                "evaluate_segmentation",
                "results_table",
                "why_not_comparable",
            ),
        },
    )

__all__ = [
    "JournalError",
    "check_classes",
    "compare_with_published",
    "evaluate_segmentation",
    "results_table",
    "why_not_comparable",
]
