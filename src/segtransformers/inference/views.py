# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Views of an image: the network inputs of several scales, each with its mirrored one.

Sources: `MultiScaleFlipAug` in `mmseg/datasets/pipelines/test_time_aug.py` of MMSegmentation 0.20; `SETR_Resize` and
`PadShortSide` in `mmseg_custom/datasets/pipelines/transform.py` of ViT-Adapter.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_utils import get_image_size

from ..image_processing import (
    SegmentationImageProcessor,
    SegmentationImageProcessorPil,
    as_8bit_image,
    check_enlargement,
    keep_ratio_size,
    load_image,
    processor_bands,
)
from ..rasters.band_image import BandImage, as_band_image, read_band_image
from .protocol import InferenceProtocol, multi_scale_settings


@dataclass(frozen=True)
class View:
    """The network input of one scale and direction, of one image or of several images with equal input sizes.

    Attributes:
        pixel_values: `(B, channels, h, w)`.
        size: (height, width) of the part that is not padding, which is at the right and the bottom.
        flipped: whether left and right are exchanged.
    """

    pixel_values: torch.Tensor
    size: tuple[int, int]
    flipped: bool


def image_views(processor: Any, image: Any, protocol: InferenceProtocol | None = None) -> list[View]:
    """Return the views of one image in the order of the original code: each scale plain, then mirrored.

    Args:
        processor: a [`SegmentationImageProcessor`]; any image processor, if the protocol has no scales.
        image: one image, in any form that the processor takes, or a path.
        protocol: the inference options. None is the single-scale protocol of the checkpoint.

    Raises:
        TypeError: if `image` is no image.
        ValueError: if there are several images, or the protocol has scales and the processor has no settings for them.
    """
    protocol = protocol or InferenceProtocol()
    image = loaded(image, processor)
    views = []
    for scale in [None] if protocol.scales is None else protocol.scales:
        options, pad_to = ({}, 0) if scale is None else _resize_options(processor, image_size(image), scale)
        pixel_values = processor(images=image, return_tensors="pt", **options)["pixel_values"]
        if len(pixel_values) != 1:
            raise ValueError(f"image must be one image, got {len(pixel_values)}: pass them one by one")
        size = (pixel_values.shape[2], pixel_values.shape[3])
        for flipped in (False, True) if protocol.flip else (False,):
            view = pixel_values.flip(-1) if flipped else pixel_values
            views.append(View(_padded(processor, view, pad_to), size, flipped))
    return views


def view_sizes(
    processor: Any, size: tuple[int, int], protocol: InferenceProtocol | None = None
) -> list[tuple[int, int]]:
    """Return the (height, width) of the network input at each scale, in pixels, without processing an image.

    Args:
        processor: a [`SegmentationImageProcessor`]; other image processors only without scales, and then `size` is
            returned where they have no fixed height and width.
        size: (height, width) of the image.
        protocol: the inference options. None is the single-scale protocol of the checkpoint.

    Raises:
        ValueError: as [`image_views`].
    """
    sizes = []
    for scale in (protocol or InferenceProtocol()).scales or [None]:
        options, pad_to = ({}, 0) if scale is None else _resize_options(processor, size, scale)
        if isinstance(processor, SegmentationImageProcessor | SegmentationImageProcessorPil):
            height, width = processor.resized_size(*size, **options)
        else:
            fixed = dict(getattr(processor, "size", None) or {})
            height, width = fixed.get("height") or size[0], fixed.get("width") or size[1]
        sizes.append((max(height, pad_to), max(width, pad_to)))
    return sizes


def loaded(image: Any, processor: Any = None) -> Any:
    """Load an image that is given as a path, an address or base64 text, upright and in RGB. Return others unchanged.

    Args:
        processor: if it has `bands`, the result is a [`~rasters.BandImage`] with these.

    Raises:
        TypeError: if `image` is nothing that an image processor takes.
    """
    if isinstance(image, list | tuple) and len(image) == 1:
        image = image[0]
    bands = processor_bands(processor)
    if bands is not None:
        image = read_band_image(image, bands) if isinstance(image, str | os.PathLike) else image
        return as_band_image(image, len(bands))
    if isinstance(image, str | os.PathLike):
        return load_image(image)
    if not isinstance(image, Image.Image | np.ndarray | torch.Tensor | list | tuple):
        raise TypeError(f"image must be a path, a PIL image, an array or a tensor, got {type(image).__name__}")
    return image


def image_size(image: Any) -> tuple[int, int]:
    """Return (height, width) of an image in pixels.

    Args:
        image: one image, in any form that the processor takes, or a path. A processor with `bands` has loaded it.
    """
    if isinstance(image, BandImage):
        return image.height, image.width
    image = loaded(image)
    if isinstance(image, Image.Image):
        return image.height, image.width
    return get_image_size(as_8bit_image(image))  # which adds a channel axis; transformers reads the shape only


def stacked(views: Sequence[View]) -> View:
    """Stack the same view of several images, which have equal sizes."""
    if len(views) == 1:
        return views[0]
    return View(torch.cat([view.pixel_values for view in views]), views[0].size, views[0].flipped)


def groups_of_equal_views(views: Sequence[Sequence[View]]) -> list[tuple[list[int], list[View]]]:
    """Return the indices of images whose views have equal sizes, with their views stacked."""
    groups: dict[tuple, list[int]] = {}
    for index, own in enumerate(views):
        shapes = tuple((*view.pixel_values.shape[2:], *view.size) for view in own)
        groups.setdefault(shapes, []).append(index)
    return [
        (members, [stacked(same) for same in zip(*(views[index] for index in members), strict=True)])
        for members in groups.values()
    ]


def _resize_options(processor: Any, image_size: tuple[int, int], scale: float) -> tuple[dict[str, Any], int]:
    """Return the options of the processor's call for one scale, and the length that each side is padded to."""
    settings = multi_scale_settings(processor)
    height, width = image_size
    if not processor.do_resize:
        size = {"height": max(int(height * scale + 0.5), 1), "width": max(int(width * scale + 0.5), 1)}
        return {"do_resize": True, "size": size}, 0
    size = {key: int(value * scale) for key, value in dict(processor.size).items() if value}
    divisor = settings.get("shrunk_edge_divisor")
    if divisor and scale < 1 and "shortest_edge" in size:
        size["shortest_edge"] = -(-size["shortest_edge"] // divisor) * divisor
    options: dict[str, Any] = {"size": size, "size_divisor": settings["size_divisor"]}
    if settings["shortest_edge_at_least"] and "shortest_edge" in size:
        short = max(min(size.values()), settings["shortest_edge_at_least"])
        long = short * max(height, width) / min(height, width)
        target = keep_ratio_size(height, width, short, long)
        options = {"size": {"height": target[0], "width": target[1]}}
    return options, settings["pad_shortest_edge"] or 0


def _padded(processor: Any, pixel_values: torch.Tensor, side: int) -> torch.Tensor:
    """Pad with black at the right and the bottom, until no side is shorter than `side`."""
    height, width = pixel_values.shape[2:]
    if min(height, width) >= side:
        return pixel_values
    check_enlargement(height, width, (max(height, side), max(width, side)))
    black = torch.zeros(len(pixel_values[0]), dtype=pixel_values.dtype)
    if processor.do_normalize:
        black -= torch.tensor(processor.image_mean) / torch.tensor(processor.image_std)
    padded = black.view(1, -1, 1, 1).repeat(1, 1, max(height, side), max(width, side))
    padded[:, :, :height, :width] = pixel_values
    return padded


__all__ = ["View", "groups_of_equal_views", "image_size", "image_views", "loaded", "view_sizes"]
