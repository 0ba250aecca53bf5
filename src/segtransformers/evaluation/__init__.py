# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Evaluation of a model on a data set by the published protocol."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .calibration import Calibration, save_temperature
    from .class_check import check_classes
    from .evaluation import evaluate_segmentation
    from .published_comparison import compare_with_published, why_not_comparable
    from .results import results_table
    from .resume_log import ResumeLog, ResumeLogError
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "calibration": ("Calibration", "save_temperature"),
            "class_check": ("check_classes",),
            "evaluation": ("evaluate_segmentation",),
            "published_comparison": ("compare_with_published", "why_not_comparable"),
            "results": ("results_table",),
            "resume_log": ("ResumeLog", "ResumeLogError"),
        },
    )

__all__ = [
    "Calibration",
    "ResumeLog",
    "ResumeLogError",
    "check_classes",
    "compare_with_published",
    "evaluate_segmentation",
    "results_table",
    "save_temperature",
    "why_not_comparable",
]
