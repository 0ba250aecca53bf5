# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Read untrusted zip archives: names and sizes are checked before anything is unpacked."""

import math
import mmap
import shutil
import stat
import zipfile
from pathlib import Path

import numpy
import torch

from ..escaping import printable
from .mapping import ConversionError
from .zip_directory import read_directory

WEIGHT_SUFFIXES = (".pth", ".pth.tar", ".pt", ".bin")
# Weights hardly compress, so a member that grows more than this is no checkpoint. A small member may be all zeros.
LARGEST_RATIO, SMALL_SIZE = 20, 2**20
_COMPRESSED = {
    b"\x1f\x8b": "gzip file",
    b"BZh": "bzip2 file",
    b"\xfd7zXZ\x00": "xz file",
    b"\x28\xb5\x2f\xfd": "zstandard file",
    b"7z\xbc\xaf": "7z archive",
    b"Rar!": "rar archive",
}
_CHUNK = 2**22


def unpacked_checkpoint(archive: Path, folder: Path) -> Path:
    """Unpack the only checkpoint file of a zip archive into `folder` and return its path.

    Raises:
        ConversionError: if a member has a path outside the archive, is a link, is encrypted or is a zip bomb; if the
            archive is damaged, or does not hold exactly one checkpoint.
    """
    name = printable(archive, 200)
    try:
        _check_directory(archive)
        with zipfile.ZipFile(archive) as opened:
            for member in opened.infolist():
                _check_member(member, name)
            members = [member for member in opened.infolist() if _is_checkpoint_name(member.filename)]
            if len(members) != 1:
                more = f" and {len(members) - 4} more" if len(members) > 4 else ""
                found = ", ".join(printable(member.filename) for member in members[:4]) or "none"
                raise ConversionError(f"{name} must hold exactly one checkpoint file (.pth), found {found}{more}")
            return _unpacked(opened, members[0], name, folder)
    except ConversionError:
        raise
    except Exception as error:  # every compression method raises its own errors
        reason = printable(error, 200) or type(error).__name__
        raise ConversionError(f"{name} is damaged or not a zip archive: {reason}") from error


def read_arrays(path: Path, name: str) -> dict[str, torch.Tensor]:
    """Read the arrays of numbers in an `.npz` file.

    Raises:
        ConversionError: if the file is damaged, a zip bomb, or holds other arrays.
    """
    try:
        _check_directory(path)
        with zipfile.ZipFile(path) as opened:
            members = opened.infolist()
            for member in members:
                _check_ratio(member, name)
            total, size = sum(member.file_size for member in members), path.stat().st_size
            if total > LARGEST_RATIO * size + SMALL_SIZE:
                raise ConversionError(f"{name} is a zip bomb: it unpacks from {size} to {total} bytes: it is refused")
            return {
                member.filename.removesuffix(".npy"): torch.from_numpy(_array(opened, member)) for member in members
            }
    except ConversionError:
        raise
    except Exception as error:  # a damaged file can raise any error
        raise ConversionError(
            f"{name} is damaged or not a file of numpy arrays: {printable(error, 200) or type(error).__name__}"
        ) from error


def _array(opened: zipfile.ZipFile, member: zipfile.ZipInfo) -> numpy.ndarray:
    """Read one array. Its shape is checked before numpy takes memory for it."""
    with opened.open(member) as source:
        version = numpy.lib.format.read_magic(source)
        read_header = {(1, 0): "read_array_header_1_0", (2, 0): "read_array_header_2_0"}.get(version)
        if read_header is None:
            raise ValueError(f"{printable(member.filename)} has the unknown version {version}")
        shape, is_fortran, dtype = getattr(numpy.lib.format, read_header)(source)
        if dtype.kind not in "biuf":
            raise ValueError(f"{printable(member.filename)} has the dtype {printable(dtype)}, expected numbers")
        size = math.prod(shape) * dtype.itemsize
        if size > member.file_size:
            raise ValueError(f"{printable(member.filename)} declares {size} bytes, but has {member.file_size}")
        content = bytearray(source.read(size))
        if len(content) != size:
            raise ValueError(f"{printable(member.filename)} is truncated")
    array = numpy.frombuffer(content, dtype)
    array = array.reshape(shape[::-1]).T if is_fortran else array.reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)


def archive_kind(start: bytes) -> str | None:
    """Return the kind of an archive that is not read, by the first 512 bytes of a file; None for any other file.

    Python's `tarfile` also looks into compressed archives, and allocates what their headers ask for.
    """
    for magic, kind in _COMPRESSED.items():
        if start.startswith(magic):
            return kind
    # a tar archive begins with a header and its checksum, which counts its own field as spaces
    digits = start[148:156].strip(b" \0")
    is_header = len(start) == 512 and bool(digits) and all(digit in b"01234567" for digit in digits)
    return "tar archive" if is_header and int(digits, 8) == sum(start) - sum(start[148:156]) + 8 * 32 else None


def _check_directory(path: Path) -> None:
    """Check an archive's directory before `zipfile` reads it.

    Raises:
        ZipError: if it is damaged or too large.
    """
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        read_directory(data)


def _check_member(member: zipfile.ZipInfo, archive: str) -> None:
    name = member.filename.replace("\\", "/")
    if name.startswith("/") or ".." in name.split("/") or name[1:2] == ":":  # ":" after a Windows drive
        raise ConversionError(
            f"{archive} has a member with a path outside of it, '{printable(member.filename)}': it is refused"
        )
    if stat.S_ISLNK(member.external_attr >> 16):
        raise ConversionError(f"{archive} has a member that is a link, '{printable(member.filename)}': it is refused")
    if member.flag_bits & 1:
        raise ConversionError(
            f"{archive} is encrypted ('{printable(member.filename)}'): unpack it and pass the checkpoint in it"
        )
    _check_ratio(member, archive)


def _check_ratio(member: zipfile.ZipInfo, archive: str) -> None:
    if member.file_size > LARGEST_RATIO * member.compress_size + SMALL_SIZE:
        raise ConversionError(
            f"{archive} is a zip bomb: '{printable(member.filename)}' unpacks from {member.compress_size} to "
            f"{member.file_size} bytes: it is refused"
        )


def _unpacked(opened: zipfile.ZipFile, member: zipfile.ZipInfo, archive: str, folder: Path) -> Path:
    free = shutil.disk_usage(folder).free
    if member.file_size > free:
        raise ConversionError(
            f"{archive} needs {member.file_size} bytes in {folder}, where {free} are free: set TMPDIR to a folder with "
            "more space"
        )
    target, written = folder / "checkpoint.pth", 0  # the member's own path is never used
    with opened.open(member) as source, target.open("wb") as copy:
        while chunk := source.read(_CHUNK):
            written += len(chunk)
            copy.write(chunk)
    if written != member.file_size:
        raise ConversionError(
            f"{archive} is damaged: '{printable(member.filename)}' has {written} of {member.file_size} bytes"
        )
    return target


def _is_checkpoint_name(name: str) -> bool:
    """Return True if a member is named like a checkpoint. macOS adds `._` members beside the real ones."""
    return name.lower().endswith(WEIGHT_SUFFIXES) and not Path(name).name.startswith("._")
