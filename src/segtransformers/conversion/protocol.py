# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Convert an original's test protocol: the part of the model config, and the image processor."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..escaping import printable, short_repr
from ..image_processing import SegmentationImageProcessor
from ..image_processing.options import LARGEST_LONG_SIDE
from .mapping import ConversionError, Settings

# steps of test pipelines that change no pixel
STEPS_WITHOUT_EFFECT = (
    "LoadImageFromFile",
    "RandomFlip",
    "ImageToTensor",
    "DefaultFormatBundle",
    "Collect",
    "LoadAnnotations",
    "PackSegInputs",
    "PadShortSide",  # multi-scale protocol only
)

# options that Mask2Former's configs inherit from panoptic segmentation; semantic segmentation does not read them
PANOPTIC_OPTIONS = ("panoptic_on", "semantic_on", "instance_on", "max_per_image", "iou_thr", "filter_low_score")


def read_test_cfg(test_cfg: Mapping[str, Any] | None) -> dict[str, Any]:
    """Convert mmseg's `test_cfg` into fields of [`SegmentationConfig`]."""
    settings = Settings(test_cfg or {"mode": "whole"}, "test_cfg")
    mode = settings.expect("mode", "whole", "slide")
    protocol: dict[str, Any] = {"inference_mode": mode}
    if mode == "slide":
        protocol |= {"window_size": settings.take("crop_size"), "window_stride": settings.take("stride")}
    settings.drop("crop_size", "stride", *PANOPTIC_OPTIONS)
    settings.finish()
    return protocol


def read_test_pipeline(
    pipeline: Sequence[Mapping[str, Any]],
    reduce_labels: bool,
    preprocessor: Mapping[str, Any] | None = None,
    multi_scale_pipeline: Sequence[Mapping[str, Any]] | None = None,
) -> SegmentationImageProcessor:
    """Convert an mmseg test pipeline into the image processor for its single-scale and multi-scale protocols.

    Args:
        pipeline: the steps of `data.test.pipeline`; images are resized inside `MultiScaleFlipAug`.
        reduce_labels: True if label 0 of the data set means "no class".
        preprocessor: the model's `data_preprocessor`, which normalises images in MMSegmentation 1.x.
        multi_scale_pipeline: the pipeline of the multi-scale config, if it is another one than `pipeline`. If neither
            has several scales, the scales are those of the originals' `test.py --aug-test`.

    Raises:
        ConversionError: naming a step or a setting that the image processor cannot reproduce.
    """
    options: dict[str, Any] = {"do_resize": False, "do_rescale": False, "do_normalize": False, "size_divisor": 0}
    scale: Any = None
    for step in _flattened(pipeline):
        kind = step.get("type")
        settings = Settings(step, f"the test pipeline's {printable(kind)}")
        settings.drop("type")
        if kind == "MultiScaleFlipAug":
            scale = settings.take("img_scale", None)
        elif kind in ("Resize", "SETR_Resize"):
            scale = settings.take("scale", scale)  # MMSegmentation 1.x
            options |= {"do_resize": True, "size": _size(scale, settings.take("keep_ratio", True))}
            settings.drop("img_scale", "ratio_range", "crop_size", "setr_multi_scale")
            settings.finish()
        elif kind == "ResizeToMultiple":
            options["size_divisor"] = settings.take("size_divisor", 32)
            settings.finish()
        elif kind == "Normalize":
            settings.expect("to_rgb", True)
            options |= _normalization(settings)
            settings.finish()
        elif kind not in STEPS_WITHOUT_EFFECT:
            raise ConversionError(f"the test pipeline has an unknown step {short_repr(kind)}")
    if preprocessor is not None:
        settings = Settings(preprocessor, "data_preprocessor")
        settings.expect("type", "SegDataPreProcessor")
        settings.expect("bgr_to_rgb", True)
        settings.drop("test_cfg")  # padding, see `mmseg_zoo.set_padding`
        options |= _normalization(settings)
        settings.drop("size", "pad_val", "seg_pad_val")  # for training
        settings.finish()
    options["multi_scale"] = _read_multi_scale(pipeline if multi_scale_pipeline is None else multi_scale_pipeline)
    try:
        return SegmentationImageProcessor(**options, do_reduce_labels=reduce_labels)
    except ValueError as error:
        raise ConversionError(f"the test pipeline cannot be converted: {error}") from error


def _read_multi_scale(pipeline: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return `multi_scale` of the image processor."""
    protocol = {**SegmentationImageProcessor.multi_scale, "size_divisor": 0}
    for step in _flattened(pipeline):
        kind = step.get("type")
        settings = Settings(step, f"the test pipeline's {printable(kind)}")
        if kind == "MultiScaleFlipAug" and settings.take("img_ratios", None):
            ratios = step["img_ratios"]
            protocol |= {"scales": list(ratios) if isinstance(ratios, tuple) else ratios}
            protocol["flip"] = settings.take("flip", False)
        elif kind == "ResizeToMultiple":
            protocol["size_divisor"] = settings.take("size_divisor", 32)
        elif kind == "SETR_Resize":
            settings.expect("setr_multi_scale", True)
            protocol["shortest_edge_at_least"] = settings.sides("crop_size")[0]
        elif kind == "PadShortSide":
            settings.expect("pad_val", 0)
            protocol["pad_shortest_edge"] = settings.take("size")
    return protocol


def _normalization(settings: Settings) -> dict[str, Any]:
    return {
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": _channels(settings, "mean"),
        "image_std": _channels(settings, "std"),
    }


def _channels(settings: Settings, name: str) -> list[float]:
    """Take a number in grey levels for each of red, green and blue, and return them for values in 0..1."""
    values = settings.take(name)
    if (
        not isinstance(values, list | tuple)
        or len(values) != 3
        or not all(type(value) in (int, float) for value in values)
    ):
        raise ConversionError(f"{name} of the normalization must be three numbers, got {short_repr(values)}")
    return [value / 255 for value in values]


def _flattened(pipeline: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    if not isinstance(pipeline, list | tuple) or not all(isinstance(step, Mapping) for step in pipeline):
        raise ConversionError("the test pipeline is not a list of steps")
    steps: list[Mapping[str, Any]] = []
    for step in pipeline:
        steps.append({key: value for key, value in step.items() if key != "transforms"})
        steps.extend(_flattened(step.get("transforms", [])))
    return steps


def _size(scale: Any, keep_ratio: bool) -> dict[str, int]:
    if isinstance(scale, list | tuple) and len(scale) == 1 and isinstance(scale[0], list | tuple):
        (scale,) = scale
    if not isinstance(scale, list | tuple) or len(scale) != 2 or not all(isinstance(side, int) for side in scale):
        raise ConversionError(
            f"the test pipeline's img_scale is {short_repr(scale)}; expected one pair of sides in pixels"
        )
    if keep_ratio and max(scale) > LARGEST_LONG_SIDE:  # written to leave the long side free
        return {"shortest_edge": min(scale)}
    if keep_ratio:
        return {"shortest_edge": min(scale), "longest_edge": max(scale)}
    return {"height": scale[1], "width": scale[0]}
