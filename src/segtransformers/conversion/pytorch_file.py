# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Read files of `torch.save`: the zip format, and the format before torch 1.6. The numbers stay in the mapped file."""

import struct
import sys
from dataclasses import dataclass, field
from typing import Any

import torch

from .pickle_objects import StoredNumbers, StoredTensor
from .pickle_reader import PickleError, PickleReader
from .zip_directory import Member, ZipError, content_of, read_directory

_ZIP = b"PK\x03\x04"
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the format before torch 1.6
_MOST_DIMENSIONS, _LARGEST = 16, 2**40
_ALIGNMENT = 16  # bytes of the largest element
# dtypes by the classes of their storages and by name; others are not read
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
_UNTYPED = "UntypedStorage"
_DTYPES = {str(dtype): dtype for dtype in _STORAGES.values()} | {
    f"torch.{name}": getattr(torch, name)
    for name in ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2")
    if hasattr(torch, name)
}
# bytes of an element in storages whose tensors are not read, because the old format needs the sizes of all storages
_OTHER_SIZES = {"QInt8Storage": 1, "QUInt8Storage": 1, "QInt32Storage": 4, _UNTYPED: 1}


class FileError(ValueError):
    """The file is damaged, or no file of `torch.save`."""


class TensorSizeError(ValueError):
    """The file declares a tensor that is larger than its numbers."""


@dataclass
class PyTorchFile:
    """The content of a file, with descriptions instead of tensors.

    Attributes:
        content: what was saved.
        names: names of the classes and functions in the pickle. None of them was called.
    """

    content: Any
    names: set[str]
    _data: Any
    _places: dict[str, tuple[int, int]]  # first byte and number of bytes of each storage
    _swapped: bool = False
    _storages: dict[tuple[str, int], torch.Tensor] = field(default_factory=dict)

    def tensor(self, name: str, stored: StoredTensor) -> torch.Tensor:
        """Return a tensor of the file. Tensors of one storage share its memory, which is the mapped file's.

        Args:
            name: name of the tensor, for errors.

        Raises:
            TensorSizeError: if the file does not hold all of its numbers.
            FileError: if its description makes no sense, or its dtype is unknown.
        """
        storage, shape, stride = stored.storage, stored.shape, stored.stride
        dtype = _STORAGES.get(storage.kind) if stored.dtype is None else _DTYPES.get(stored.dtype)
        if dtype is None:
            raise FileError(f"{name} has the unknown dtype {stored.dtype or storage.kind}")
        if (
            not isinstance(shape, tuple)
            or not isinstance(stride, tuple)
            or not len(shape) == len(stride) <= _MOST_DIMENSIONS
            or any(type(number) is not int for number in (*shape, *stride, stored.offset))
            or min(0, *shape, *stride, stored.offset) < 0
        ):
            raise FileError(f"{name} has no valid shape")
        size = torch.empty((), dtype=dtype).element_size()
        count = storage.count // size if storage.kind == _UNTYPED else storage.count
        held = self._places.get(storage.key, (0, 0))[1]
        if (storage.start + count) * size > held:
            raise TensorSizeError(f"{name} needs {(storage.start + count) * size} bytes, but there are {held}")
        last = stored.offset + sum((side - 1) * step for side, step in zip(shape, stride, strict=True))
        is_empty = 0 in shape
        if max(0, stored.offset, *shape, *stride) > _LARGEST or (not is_empty and not 0 <= last < count):
            raise TensorSizeError(f"{name} is {shape} in a storage of {count} numbers")
        if is_empty:
            return torch.empty(shape, dtype=dtype)
        return self._numbers(storage.key, dtype, size).as_strided(shape, stride, storage.start + stored.offset)

    def _numbers(self, key: str, dtype: torch.dtype, size: int) -> torch.Tensor:
        """Return all numbers of a storage. A storage is copied at most once for each size of an element."""
        start, held = self._places[key]
        width = size // 2 if dtype.is_complex else size
        if (key, width) not in self._storages:
            content = torch.frombuffer(self._data, dtype=torch.uint8, count=held - held % width, offset=start)
            if self._swapped and width > 1:
                content = content.view(-1, width).flip(1).flatten()
            elif start % _ALIGNMENT:
                content = content.clone()
            self._storages[key, width] = content
        content = self._storages[key, width]
        return content[: len(content) - len(content) % size].view(dtype)


def read_file(data: Any) -> PyTorchFile:
    """Read a file of `torch.save`.

    Args:
        data: the file, a writable buffer or memory map. It must exist as long as the tensors.

    Raises:
        FileError: if it is damaged or of another kind.
    """
    try:
        return _read_zip(data) if data[:4] == _ZIP else _read_old(data)
    except (PickleError, ZipError) as error:
        raise FileError(str(error)) from error


def _read_zip(data: Any) -> PyTorchFile:
    members = read_directory(data)
    root = next(iter(members), "").partition("/")[0]
    if f"{root}/constants.pkl" in members:
        raise FileError("it is a TorchScript archive")
    declared = sum(member.size for member in members.values())
    for name, member in members.items():
        if not member.is_stored:
            raise FileError(f"it has a compressed member ({name}), which PyTorch does not write")
    if declared > len(data):
        raise FileError(f"it declares {declared} bytes in a file of {len(data)} bytes")
    if f"{root}/data.pkl" not in members:
        raise FileError("it has no data.pkl")
    reader = PickleReader(data, *content_of(data, f"{root}/data.pkl", members[f"{root}/data.pkl"]))
    content = reader.read()
    prefix = f"{root}/data/"
    places = {
        name.removeprefix(prefix): _place(data, name, member)
        for name, member in members.items()
        if name.startswith(prefix)
    }
    order = members.get(f"{root}/byteorder")
    swapped = False
    if order is not None:
        start, end = content_of(data, f"{root}/byteorder", order)
        swapped = data[start : min(end, start + 10)].strip() != sys.byteorder.encode()
    return PyTorchFile(content, reader.names, data, places, swapped)


def _place(data: Any, name: str, member: Member) -> tuple[int, int]:
    start, end = content_of(data, name, member)
    return start, end - start


def _read_old(data: Any) -> PyTorchFile:
    """Read the format before torch 1.6: five pickles, and the storages in the order of the last one."""
    position = 0
    values: list[Any] = []
    names: set[str] = set()
    storages: dict[str, StoredNumbers] = {}
    for expected in (_MAGIC, _PROTOCOL, None, None, None):
        reader = PickleReader(data, position, len(data))
        value = reader.read()
        if expected is not None and value != expected:
            raise FileError("it does not begin like a file of PyTorch")
        values.append(value)
        names |= reader.names
        position = reader.position
        if len(values) == 4:
            storages = reader.storages
    *_, content, keys = values
    if not isinstance(keys, list):
        raise FileError("it has no list of storages")
    places = {}
    for key in keys:
        storage = storages.get(key) if isinstance(key, str) else None
        if storage is None:
            raise FileError("its list of storages does not belong to its tensors")
        dtype = _STORAGES.get(storage.kind)
        size = _OTHER_SIZES.get(storage.kind) if dtype is None else torch.empty((), dtype=dtype).element_size()
        if size is None:
            raise FileError(f"it has a storage of the unknown kind {storage.kind}")
        if position + 8 > len(data):
            raise FileError("it ends inside of its storages: it is truncated")
        (count,) = struct.unpack("<q", data[position : position + 8])
        position += 8
        if count < 0 or position + count * size > len(data):
            raise FileError("it ends inside of its storages: it is truncated")
        places[key] = (position, count * size)
        position += count * size
    return PyTorchFile(content, names, data, places)
