# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Checks of whole numbers from options and from configs, which may come from a file of somebody else."""

import operator
from collections.abc import Iterable
from typing import Any

from .escaping import short_repr

LARGEST_SIDE = 1 << 16  # pixels


def check_whole(name: str, value: Any, least: int, most: int) -> None:
    """Refuse anything but a whole number from `least` to `most`.

    Raises:
        ValueError: naming the option `name`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number from {least} to {most}, got {short_repr(value)}")


def check_whole_fields(config: Any, names: Iterable[str], most: int, least: int = 1) -> None:
    """Refuse fields of a config that are out of range. Fields at None are left out.

    Args:
        config: any object with the fields.
        names: of the fields, which hold a number or a sequence of numbers.

    Raises:
        ValueError: naming the first field that is out of range.
    """
    for name in names:
        value = getattr(config, name)
        if isinstance(value, list | tuple):
            for index, number in enumerate(value):
                check_whole(f"{name}[{index}]", number, least, most)
        elif value is not None:
            check_whole(name, value, least, most)


def pair_of_sides(name: str, value: Any) -> tuple[int, int]:
    """Return two positive whole numbers of pixels (vertical, horizontal), of any integer type, as a tuple.

    Raises:
        ValueError: naming the option `name`.
    """
    try:
        pair = tuple(operator.index(side) for side in value) if isinstance(value, Iterable) else ()
    except TypeError:
        pair = ()
    if len(pair) != 2 or not 1 <= min(pair) <= max(pair) <= LARGEST_SIDE:
        raise ValueError(
            f"{name} must be two whole numbers of pixels (vertical, horizontal) from 1 to {LARGEST_SIDE}, got "
            f"{short_repr(value)}"
        )
    return pair[0], pair[1]


__all__ = ["LARGEST_SIDE", "check_whole", "check_whole_fields", "pair_of_sides"]
