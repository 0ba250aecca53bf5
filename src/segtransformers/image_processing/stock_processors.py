# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Settings of transformers' own image processors as settings of ours."""

from collections.abc import Mapping
from typing import Any

# of `openmmlab/upernet-*`, and of `facebook/mask2former-*`
_FIXED_SIZE, _KEEP_RATIO = "Segformer", ("Mask2Former", "MaskFormer")
_SAME = ("do_resize", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")


def from_stock_processor(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of our image processor for a `preprocessor_config.json`.

    The numbers are those of transformers' processors with Pillow; its fast ones differ from these by up to one grey
    level. Two more things differ for images that are resized to multiples of `size_divisor`: transformers
    resizes them once, ours twice, and in transformers the longest edge may end one pixel from its limit.

    Args:
        values: the content of the file. It is returned as it is, unless it is that of `SegformerImageProcessor` or
            `Mask2FormerImageProcessor`, or of one of their older names.
    """
    kind = str(values.get("image_processor_type") or values.get("feature_extractor_type") or "")
    kind = kind.removesuffix("Fast").removesuffix("Pil").removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    if kind not in (_FIXED_SIZE, *_KEEP_RATIO):
        return dict(values)
    settings = {name: values[name] for name in _SAME if values.get(name) is not None}
    size = values.get("size")
    if isinstance(size, int) and kind == _FIXED_SIZE:
        size = {"height": size, "width": size}
    elif isinstance(size, int):
        longest = values.get("max_size") or values.get("_max_size")
        size = {"shortest_edge": size, **({"longest_edge": longest} if longest else {})}
    if size:
        settings["size"] = dict(size)
    return settings | {
        "do_reduce_labels": bool(values.get("do_reduce_labels", values.get("reduce_labels", False))),
        "size_divisor": 0 if kind == _FIXED_SIZE else values.get("size_divisor", 32),
        "resize_method": "pillow",  # transformers smooths images that shrink, as Pillow does
    }


__all__ = ["from_stock_processor"]
