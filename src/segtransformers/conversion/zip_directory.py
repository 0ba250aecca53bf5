# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Read the directory of a zip archive from a buffer, with a bound on its memory and without trust in its numbers.

Python's `zipfile` builds an object of about 500 bytes for every entry of 46 bytes, and leaves out checks where an entry
asks for a newer version.
"""

import struct
from dataclasses import dataclass
from typing import Any

MOST_MEMBERS = 100_000
_END, _END_64, _LOCATOR_64, _ENTRY, _LOCAL = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x01\x02", b"PK\x03\x04"
_LONGEST_END = 22 + 2**16 - 1  # the end record with the longest comment
_NEWEST_VERSION = 63


class ZipError(ValueError):
    """The archive is damaged, or has a directory that cannot be trusted."""


@dataclass(frozen=True, slots=True)
class Member:
    """An entry of the directory.

    Attributes:
        is_stored: True if the member is neither compressed nor encrypted.
        compressed, size: bytes in the archive and after unpacking.
        header: first byte of the local header.
    """

    is_stored: bool
    compressed: int
    size: int
    header: int


def read_directory(data: Any) -> dict[str, Member]:
    """Return the members of a zip archive by name.

    Args:
        data: the archive, `bytes` or a memory map.

    Raises:
        ZipError: if the archive is damaged, or has two members of one name or more than [`MOST_MEMBERS`].
    """
    try:
        return _members(data)
    except struct.error as error:
        raise ZipError("the directory of the archive is damaged") from error


def content_of(data: Any, name: str, member: Member) -> tuple[int, int]:
    """Return the first and the last byte (exclusive) of a stored member.

    Raises:
        ZipError: if the member is outside of the archive.
    """
    if data[member.header : member.header + 4] != _LOCAL:
        raise ZipError(f"the archive is damaged at its member {name}")
    name_size, extra_size = struct.unpack("<HH", data[member.header + 26 : member.header + 30])
    start = member.header + 30 + name_size + extra_size
    if data[member.header + 30 : member.header + 30 + name_size].decode("utf-8", "replace") != name:
        raise ZipError(f"the archive has another member in the place of {name}")
    if start + member.size > len(data):
        raise ZipError(f"the archive ends inside of its member {name}")
    return start, start + member.size


def _members(data: Any) -> dict[str, Member]:
    end = data.rfind(_END, max(len(data) - _LONGEST_END, 0))
    if end < 0:
        raise ZipError("the archive has no directory: it is damaged or incomplete")
    count, size, start = struct.unpack("<HII", data[end + 10 : end + 20])
    last = end
    if end >= 20 and data[end - 20 : end - 16] == _LOCATOR_64:
        (last,) = struct.unpack("<Q", data[end - 12 : end - 4])
        if data[last : last + 4] != _END_64:
            raise ZipError("the directory of the archive is damaged")
        count, size, start = struct.unpack("<QQQ", data[last + 32 : last + 56])
    if count > MOST_MEMBERS:
        raise ZipError(f"the archive has {count} members; at most {MOST_MEMBERS} are read")
    if start + size != last:  # readers disagree about data in front of an archive
        raise ZipError("the directory of the archive is damaged")
    members: dict[str, Member] = {}
    position = start
    for _ in range(count):
        if position + 46 > last or data[position : position + 4] != _ENTRY:
            raise ZipError("the directory of the archive is damaged")
        version, flags, method = struct.unpack("<HHH", data[position + 6 : position + 12])
        compressed, unpacked, *sizes = struct.unpack("<IIHHH", data[position + 20 : position + 34])
        (header,) = struct.unpack("<I", data[position + 42 : position + 46])
        name_end = position + 46 + sizes[0]
        extra_end = name_end + sizes[1]
        name = data[position + 46 : name_end].decode("utf-8", "replace")
        position = extra_end + sizes[2]
        if version & 0xFF > _NEWEST_VERSION:
            raise ZipError(f"the archive's member {name} needs version {version / 10} of the format")
        unpacked, compressed, header = _large(data[name_end:extra_end], unpacked, compressed, header)
        if name in members:
            raise ZipError(f"the archive has two members named {name}")
        members[name] = Member(method == 0 and not flags & 1, compressed, unpacked, header)
    if position != last:
        raise ZipError("the directory of the archive is damaged")
    return members


def _large(extra: bytes, *numbers: int) -> list[int]:
    """Replace the numbers that do not fit 32 bits by those of the extra field for large archives."""
    position, large = 0, b""
    while position + 4 <= len(extra):
        kind, size = struct.unpack("<HH", extra[position : position + 4])
        if kind == 1:
            large = extra[position + 4 : position + 4 + size]
        position += 4 + size
    replaced = []
    for number in numbers:
        if number == 0xFFFFFFFF:
            (number,) = struct.unpack("<Q", large[:8])
            large = large[8:]
        replaced.append(number)
    return replaced
