# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The error of the conversion, in a module that imports nothing heavy."""

import contextlib
import errno
from collections.abc import Iterator

from ..escaping import printable


class ConversionError(ValueError):
    """The checkpoint or its config cannot be converted. The message is one line."""

    def __init__(self, message: str):
        super().__init__(printable(message, None))  # names of files and tensors may hold anything


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Turn every kind of error for lack of memory into a [`ConversionError`]."""
    try:
        yield
    except Exception as error:
        if not is_memory_error(error):
            raise
        raise ConversionError(
            "the memory does not suffice for this conversion: close other programs, or use a machine with more memory"
        ) from error


def is_memory_error(error: BaseException) -> bool:
    """Return True for an error for lack of memory, of Python, the system, torch or safetensors."""
    is_of_system = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or is_of_system or "allocate memory" in str(error)
