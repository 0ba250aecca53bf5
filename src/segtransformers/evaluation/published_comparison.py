# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Comparison of a measured mean IoU with the figure that the authors publish."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from ..inference import InferenceProtocol
from ..published import published_row
from .subject import describe_data, describe_protocol

if TYPE_CHECKING:
    from ..datasets import SegmentationDataset


def compare_with_published(
    results: Mapping[str, Any], processor: Any, source_config: str | None = None, complete: bool = True
) -> dict[str, Any] | None:
    """Compare the results of a converted published checkpoint with the authors' figure.

    Args:
        results: of [`evaluate_segmentation`].
        processor: the image processor of that evaluation.
        source_config: name of a published config. None takes `source_config` of the model's config, where the
            conversion writes it. Further training does not change that field.
        complete: whether all images of the split were evaluated.

    Returns:
        None if neither `source_config` nor the model names a published config. Otherwise a dict with `config` and
        `dataset`, and either `reason`, why the figures cannot be compared, or `published`, `measured` and `difference`
        in percentage points, and `note`, a remark of the authors or of this package, or None.

    Raises:
        ValueError: if no published config has that name.
    """
    name = source_config or results["model"]["source_config"]
    if name is None:
        return None
    row = published_row(name)
    found: dict[str, Any] = {"config": name, "dataset": row["dataset"]}
    reason, key = _figure_to_compare(results, processor, row, complete)
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
    protocol: InferenceProtocol | None = None,
    *,
    source_config: str | None = None,
    complete: bool = True,
) -> str | None:
    """Return the reason that [`compare_with_published`] will give, before anything is evaluated, or None.

    Args:
        model, processor, data, protocol: as of [`evaluate_segmentation`].
        source_config, complete: as of [`compare_with_published`].
    """
    expected = {
        "mean_iou": None,
        "model": {"source_config": getattr(model.config, "source_config", None)},
        "data": describe_data(data),
        "protocol": describe_protocol(model, processor, protocol or InferenceProtocol()),
    }
    found = compare_with_published(expected, processor, source_config, complete)
    if found is None:
        return "the model names no published config as its source, and --published is not given"
    return found.get("reason")


def _figure_to_compare(
    results: Mapping[str, Any], processor: Any, row: Mapping[str, Any], complete: bool
) -> tuple[str | None, str]:
    """Return the reason why no figure of a published row is comparable, or None, and the key of its figure."""
    data, protocol = results["data"], results["protocol"]
    if data["kind"] != row["dataset"]:
        return f"its figure is of {row['dataset']}, these data are {data['kind']}", "miou"
    if data["split"] not in (None, "validation"):
        return f"its figure is of the validation split, this is {data['split']}", "miou"
    if not complete:
        return "its figure is of the whole split", "miou"
    if protocol["window_is_own"] or "blend" in protocol:
        return "its figure is with the windows of the checkpoint", "miou"
    if protocol["scales"] is None and not protocol["flip"]:
        return None, "miou"
    multi_scale = InferenceProtocol.multi_scale(processor)
    if (protocol["scales"], protocol["flip"]) == (list(multi_scale.scales or ()), multi_scale.flip):
        return None, "miou_ms"
    return "its figures are of a single scale, and of the checkpoint's scales with mirrored views", "miou_ms"


__all__ = ["compare_with_published", "why_not_comparable"]
