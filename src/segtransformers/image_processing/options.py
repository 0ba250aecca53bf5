# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Checks of the options of the image processors, which may come from a file of somebody else."""

import itertools
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..escaping import short_repr
from ..rasters.raster import DTYPES, MOST_BANDS
from ..whole_numbers import LARGEST_SIDE, check_whole

LARGEST_LONG_SIDE = 10**6  # where only the limit of the long side is meant to have no effect
LARGEST_DIVISOR = 4096
LARGEST_ENLARGEMENT = 1 << 26  # pixels of an enlarged image, 8192 x 8192
LARGEST_SCALE, MOST_SCALES = 16.0, 32
FLAGS = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb", "do_reduce_labels")
SIDES = {
    "shortest_edge": LARGEST_SIDE,
    "longest_edge": LARGEST_LONG_SIDE,
    "height": LARGEST_SIDE,
    "width": LARGEST_SIDE,
    "max_height": LARGEST_SIDE,
    "max_width": LARGEST_SIDE,
}
MULTI_SCALE = ("scales", "flip", "size_divisor", "shortest_edge_at_least", "pad_shortest_edge")
OPTIONAL_MULTI_SCALE = ("shrunk_edge_divisor",)
RESIZE_METHODS = ("opencv", "pillow")


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options of an image processor that no image can be processed with. Those that are None are left out.

    Args:
        options: the options of the processor or of a call. `image_mean` and `image_std` are compared with each other,
            and must have three values where `do_convert_rgb` is true, or as many as there are `bands`.

    Raises:
        ValueError: naming the option, its value and what was expected.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for name in FLAGS:
        if not isinstance(given.get(name, True), bool):
            raise ValueError(f"{name} must be True or False, got {short_repr(given[name])}")
    if "size_divisor" in given:
        check_whole("size_divisor", given["size_divisor"], 0, LARGEST_DIVISOR)
    if given.get("resize_method", RESIZE_METHODS[0]) not in RESIZE_METHODS:
        raise ValueError(
            f"resize_method must be one of {', '.join(RESIZE_METHODS)}, got {short_repr(given['resize_method'])}"
        )
    size = given.get("size")
    for name, side in size.items() if isinstance(size, Mapping) else ():
        if name in SIDES and side is not None:
            check_whole(f"size[{name!r}]", side, 1, SIDES[name])
    if not _is_number(given.get("rescale_factor", 1)) or not 0 < given.get("rescale_factor", 1) < math.inf:
        raise ValueError(f"rescale_factor must be a positive number, got {short_repr(given['rescale_factor'])}")
    if "bands" in given:
        _check_bands(given)
    _check_normalization(given)
    if "multi_scale" in given:
        _check_multi_scale(given["multi_scale"])


def check_scales(scales: Any) -> tuple[float, ...]:
    """Return factors on the size of an image as a tuple of floats.

    Raises:
        ValueError: if there are none or too many, or one is not in the range that is allowed.
    """
    values = tuple(itertools.islice(scales, MOST_SCALES + 1)) if isinstance(scales, Iterable) else ()
    factors = tuple(float(value) if _is_number(value) else math.nan for value in values)
    if 0 < len(factors) <= MOST_SCALES and all(0 < factor <= LARGEST_SCALE for factor in factors):
        return factors
    raise ValueError(
        f"scales must be positive numbers, up to {LARGEST_SCALE:g} and at most {MOST_SCALES}, such as (0.75, 1.0), "
        f"got {short_repr(scales)}"
    )


def check_enlargement(height: int, width: int, target: tuple[int, int]) -> None:
    """Refuse to enlarge an image to more pixels than memory usually holds.

    Args:
        height, width: of the image, in pixels.
        target: its new (height, width).

    Raises:
        ValueError: with both sizes. An image that is large itself may keep about its size.
    """
    if target[0] * target[1] > max(LARGEST_ENLARGEMENT, 2 * height * width):
        raise ValueError(
            f"an image of {height}x{width} would become {target[0]}x{target[1]} pixels (height x width), more than "
            f"{LARGEST_ENLARGEMENT // 10**6} million: use smaller scales or sizes"
        )


def _check_normalization(given: Mapping[str, Any]) -> None:
    """Refuse a mean and a deviation that are not finite, not positive, or not as many as the channels."""
    lengths = {}
    for name in ("image_mean", "image_std"):
        if name not in given:
            continue
        values = given[name]
        if not isinstance(values, Sequence) or isinstance(values, str) or not all(map(_is_number, values)):
            raise ValueError(f"{name} must be one number for each channel, got {short_repr(values)}")
        if not all(math.isfinite(value) and (name == "image_mean" or value > 0) for value in values):
            kind = "finite" if name == "image_mean" else "positive"
            raise ValueError(f"{name} must be {kind} numbers, got {short_repr(list(values))}")
        lengths[name] = len(values)
    expected: int | None
    if "bands" in given:
        expected = len(given["bands"])
    else:
        expected = 3 if given.get("do_convert_rgb") else next(iter(lengths.values()), None)
    for name, length in lengths.items():
        if length != expected or length == 0:
            raise ValueError(f"{name} must be {expected or 'some'} numbers, one for each channel, got {length}")


def _check_bands(given: Mapping[str, Any]) -> None:
    """Refuse band numbers that no file can have, and a conversion to RGB beside them."""
    bands = given["bands"]
    if not isinstance(bands, list | tuple) or not 1 <= len(bands) <= MOST_BANDS:
        raise ValueError(f"bands must be a list of 1 to {MOST_BANDS} band numbers, got {short_repr(bands)}")
    for band in bands:
        check_whole("a band number of bands", band, 1, MOST_BANDS)
    if given.get("do_convert_rgb"):
        raise ValueError("a processor with bands takes no RGB images: set do_convert_rgb=False")
    if given.get("band_dtype") is not None and given["band_dtype"] not in DTYPES:
        raise ValueError(f"band_dtype must be one of {', '.join(DTYPES)}, got {short_repr(given['band_dtype'])}")


def _check_multi_scale(settings: Any) -> None:
    if not isinstance(settings, Mapping) or set(settings) - set(OPTIONAL_MULTI_SCALE) != set(MULTI_SCALE):
        raise ValueError(f"multi_scale must be a dict of {', '.join(MULTI_SCALE)}, got {short_repr(settings)}")
    check_scales(settings["scales"])
    if not isinstance(settings["flip"], bool):
        raise ValueError(f"flip of multi_scale must be True or False, got {short_repr(settings['flip'])}")
    for name, least, most in (
        ("size_divisor", 0, LARGEST_DIVISOR),
        ("shortest_edge_at_least", 1, LARGEST_SIDE),
        ("pad_shortest_edge", 1, LARGEST_SIDE),
        ("shrunk_edge_divisor", 1, LARGEST_DIVISOR),
    ):
        if settings.get(name) is not None:
            check_whole(f"{name} of multi_scale", settings[name], least, most)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
