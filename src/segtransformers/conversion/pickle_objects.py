# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Descriptions of the objects of a pickle that are not built, and the numbers in those of numpy arrays."""

import math
import struct
from dataclasses import dataclass
from typing import Any

# numbers of numpy's dtypes by name, as codes of `struct`
_NUMPY_CODES = {
    **{"b1": "?", "f2": "e", "f4": "f", "f8": "d"},
    **{"i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q"},
}


class StandIn:
    """An object of a class, or the result of a function, that was not built.

    Attributes:
        name: the name of the class or function, such as `datetime.datetime`.
        arguments: the arguments of the call; None for the class or function itself.
        state: the state that the pickle sets, if any.
    """

    __slots__ = ("arguments", "name", "state")

    def __init__(self, name: str, arguments: Any = None):
        self.name, self.arguments, self.state = name, arguments, None

    def __repr__(self) -> str:
        return f"<{self.name}>"


@dataclass(frozen=True, slots=True, eq=False)
class StoredNumbers:
    """Description of a storage, the numbers of one or more tensors in the file.

    Attributes:
        kind: name of the storage's class, such as `FloatStorage`.
        key: name of the storage in the file.
        count: number of elements.
        start: first element, in a storage that is part of another one (before torch 0.4).
    """

    kind: str
    key: str
    count: int
    start: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """Description of a tensor: a storage with offset, shape and strides as the pickle has them, unchecked.

    Attributes:
        dtype: name of the dtype if it is not the storage's, such as `torch.uint16`.
    """

    storage: Any
    offset: Any
    shape: Any
    stride: Any
    dtype: str | None = None


def numbers_of(array: Any) -> list[Any] | None:
    """Return the numbers of a numpy array of one or two dimensions as plain lists; None for any other value.

    Args:
        array: a value that `PickleReader` has read, where an array is a [`StandIn`].
    """
    if not isinstance(array, StandIn) or array.name != "numpy.core.multiarray._reconstruct":
        return None
    state = array.state
    if not isinstance(state, tuple) or len(state) != 5 or state[3] is not False or not isinstance(state[4], bytes):
        return None
    shape, dtype = state[1:3]
    if not isinstance(shape, tuple) or any(type(side) is not int or side < 1 for side in shape):
        return None
    numbers = numpy_numbers(dtype, state[4]) if isinstance(dtype, StandIn) else None
    if numbers is None or len(shape) not in (1, 2) or math.prod(shape) != len(numbers):
        return None
    columns = shape[-1]
    return numbers if len(shape) == 1 else [numbers[at : at + columns] for at in range(0, len(numbers), columns)]


def numpy_numbers(dtype: StandIn, content: bytes, most: int = 10**5) -> list[Any] | None:
    """Return the numbers in the bytes of a numpy array; None if there are too many, or others than plain numbers."""
    code = _NUMPY_CODES.get(dtype.arguments[0]) if dtype.name == "numpy.dtype" and _names_a_dtype(dtype) else None
    if code is None:
        return None
    order = ">" if isinstance(dtype.state, tuple) and dtype.state[1:2] == (">",) else "<"
    count, rest = divmod(len(content), struct.calcsize(code))
    return list(struct.unpack(f"{order}{count}{code}", content)) if not rest and count <= most else None


def _names_a_dtype(dtype: StandIn) -> bool:
    return isinstance(dtype.arguments, tuple) and bool(dtype.arguments) and isinstance(dtype.arguments[0], str)


__all__ = ["StandIn", "StoredNumbers", "StoredTensor", "numbers_of", "numpy_numbers"]
