# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Descriptions of what is evaluated, as JSON can hold them: the model, the data and the protocol.

They stand in the results, and a resume log is continued only if they are equal.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from ..inference import InferenceProtocol

if TYPE_CHECKING:
    from ..datasets import SegmentationDataset

# fields of a config that change without any change of the model's logits
VOLATILE_FIELDS = (
    "_name_or_path",
    "transformers_version",
    "dtype",
    "custom_pipelines",
    "auto_map",
    "calibration_temperature",
)
# settings of an image processor that determine the network's input
PROCESSOR_FIELDS = (
    "do_resize",
    "size",
    "size_divisor",
    "do_rescale",
    "do_normalize",
    "image_mean",
    "image_std",
    "multi_scale",
    "bands",
    "band_dtype",
)


def describe_model(model: PreTrainedModel) -> dict[str, Any]:
    """Describe a model by its class and a digest of its config and its tensors."""
    config = {key: value for key, value in model.config.to_dict().items() if key not in VOLATILE_FIELDS}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, value in sorted(model.state_dict().items()):
        for tensor in _stored_tensors(value):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return {
        "class": type(model).__name__,
        "num_labels": model.config.num_labels,
        "source_config": getattr(model.config, "source_config", None),
        "sha256": digest.hexdigest(),
    }


def _stored_tensors(value: Any) -> Iterator[Any]:
    """Yield the plain tensors that a value of a state dict consists of. Quantized weights consist of several."""
    if isinstance(value, tuple):  # weight and bias of `quantize_dynamic`
        for part in value:
            yield from _stored_tensors(part)
    elif not isinstance(value, torch.Tensor):
        return
    elif hasattr(value, "__tensor_flatten__"):
        names, _ = value.__tensor_flatten__()
        for name in names:
            yield from _stored_tensors(getattr(value, name))
    else:
        yield value.dequantize() if value.is_quantized else value


def describe_data(data: "SegmentationDataset") -> dict[str, Any]:
    """Describe a data set by its source, its label rule and a digest of the names of its images."""
    names = hashlib.sha256("\n".join(data.names).encode())
    return {
        "source": str(data.source),
        "kind": data.kind,
        "split": data.split,
        "images": len(data),
        "num_labels": data.num_labels,
        "ignore_index": data.ignore_index,
        **data.rule.describe(),
        "names_sha256": names.hexdigest(),
    }


def describe_protocol(
    model: PreTrainedModel, processor: Any, protocol: InferenceProtocol, dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """Describe the views, the windows in use, the image processor, the dtype and the device type.

    `window_is_own` says whether the windows are the caller's instead of the checkpoint's. `dtype` is that of the
    computation, if it is not the model's.
    """
    window = protocol.sliding_window(model)
    is_blended = (protocol.blend, protocol.margin) != ("mean", 0)
    preparation = describe_processor(processor)
    if protocol.scales is None:
        preparation.pop("multi_scale", None)
    return {
        "scales": None if protocol.scales is None else list(protocol.scales),
        "flip": protocol.flip,
        "window_size": None if window is None else list(window.size),
        "window_stride": None if window is None else list(window.stride),
        "window_is_own": protocol.window is not None,
        # only where they have an effect, so that the resume logs of older versions still fit
        **({"blend": window.blend, "margin": window.margin} if window is not None and is_blended else {}),
        "image_processor": preparation,
        "dtype": str(dtype or model.dtype).removeprefix("torch."),
        "device": model.device.type,
    }


def describe_processor(processor: Any) -> dict[str, Any]:
    """Describe an image processor by the settings that determine the network's input."""
    own = processor.to_dict()
    return json.loads(json.dumps({field: own[field] for field in PROCESSOR_FIELDS if field in own}, default=dict))


__all__ = ["describe_data", "describe_model", "describe_processor", "describe_protocol"]
