# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Description of an exported file's input and output as JSON, which the file holds."""

import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..models.input_channels import input_channels
from .options import SIZE_MULTIPLE, ExportOptions

INPUT = "pixel_values"
METADATA = "segmentation.json"  # name of the description in the file


def export_size(model: PreTrainedModel, processor: Any = None) -> tuple[int, int]:
    """Return the (height, width) that a model is exported at: its window, or else the size its processor resizes to.

    Raises:
        ValueError: if neither is fixed.
    """
    window = getattr(model.config, "window_size", None)
    if window is not None:
        return int(window[0]), int(window[1])
    size = dict(getattr(processor, "size", None) or {})
    if size.get("height") and size.get("width"):
        return int(size["height"]), int(size["width"])
    if size.get("shortest_edge"):
        return int(size["shortest_edge"]), int(size["shortest_edge"])
    raise ValueError("neither the model's window nor its processor has a size to export at: pass size=(height, width)")


def describe(
    model: PreTrainedModel, processor: Any, size: Sequence[int], options: ExportOptions | None = None
) -> dict[str, Any]:
    """Describe the input and output of an exported file.

    Returns:
        a dict that JSON can hold.
        `input`, `output`: their names.
        `batch`: 1, or None for any number of images.
        `height`, `width`: of the input, in pixels, or None for any multiple of `multiple`.
        `takes_pixels`: whether the input is `(batch, height, width, channels)` uint8 instead of normalised.
        `precision`: see [`ExportOptions`].
        `rescale_factor`, `mean`, `std`: for RGB pixels from 0 to 255, `(pixels * rescale_factor - mean) / std` is the
        input `(batch, channels, height, width)`.
        `classes`: their names in the order of the output's channels.
        `palette`: `[red, green, blue]` of each class, or None.
        `model_config`, `processor`: of the model and its image processor, for this package's [`ExportedModel`].
    """
    options = options or ExportOptions()
    rescale = getattr(processor, "rescale_factor", 1 / 255) if getattr(processor, "do_rescale", True) else 1.0
    normalised = getattr(processor, "do_normalize", False)
    names: Any = model.config.id2label
    channels = input_channels(model.config)
    return {
        "input": INPUT,
        "output": options.result,
        "batch": None if options.dynamic_batch else 1,
        "height": None if options.dynamic_size else size[0],
        "width": None if options.dynamic_size else size[1],
        "multiple": SIZE_MULTIPLE,
        "takes_pixels": options.takes_pixels,
        "precision": options.precision,
        "rescale_factor": rescale,
        "mean": list(processor.image_mean) if normalised else [0.0] * channels,
        "std": list(processor.image_std) if normalised else [1.0] * channels,
        "classes": [names[index] for index in sorted(names)],
        "palette": getattr(model.config, "palette", None),
        "model_config": json.loads(model.config.to_json_string(use_diff=False)),
        "processor": None if processor is None else json.loads(processor.to_json_string()),
    }


def read_description(path: str | os.PathLike) -> dict[str, Any]:
    """Read the description of an exported file, see [`describe`].

    These lines need nothing of this package, so users of a file may copy them.

    Raises:
        KeyError: if the file has no description.
    """
    if Path(path).suffix == ".onnx":
        import onnx

        proto = onnx.load(path, load_external_data=False)
        return json.loads({entry.key: entry.value for entry in proto.metadata_props}[METADATA])
    if Path(path).suffix == ".xml":
        from xml.etree import ElementTree

        entry = ElementTree.parse(path).getroot().find("rt_info/segmentation")
        if entry is None:
            raise KeyError("segmentation")
        return json.loads(entry.attrib["value"])
    with zipfile.ZipFile(path) as archive:  # torch.export.load would build the whole program
        for name in archive.namelist():
            if name.endswith(f"/{METADATA}"):
                return json.loads(archive.read(name))
            if name.endswith("_metadata.json") and METADATA in (entries := json.loads(archive.read(name))):
                return json.loads(entries[METADATA])  # of a compiled program
    raise KeyError(METADATA)


__all__ = ["INPUT", "METADATA", "describe", "export_size", "read_description"]
