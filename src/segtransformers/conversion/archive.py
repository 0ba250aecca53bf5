# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Read untrusted zip archives: names and sizes are checked before anything is unpacked."""

import shutil
import stat
import zipfile
from pathlib import Path

from .mapping import ConversionError

WEIGHT_SUFFIXES = (".pth", ".pth.tar", ".pt", ".bin")
# Weights hardly compress, so a member that grows more than this is no checkpoint. A small member may be all zeros.
LARGEST_RATIO, SMALL_SIZE = 100, 2**20
_CHUNK = 2**22


def unpacked_checkpoint(archive: Path, folder: Path) -> Path:
    """Unpack the only checkpoint file of a zip archive into `folder` and return its path.

    Raises:
        ConversionError: if a member has a path outside the archive, is a link, is encrypted or is a zip bomb; if the
            archive is damaged, or does not hold exactly one checkpoint.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            for member in opened.infolist():
                _check_member(member, str(archive))
            members = [member for member in opened.infolist() if _is_checkpoint_name(member.filename)]
            if len(members) != 1:
                found = ", ".join(member.filename for member in members) or "none"
                raise ConversionError(f"{archive} must hold exactly one checkpoint file (.pth), found {found}")
            return _unpacked(opened, members[0], archive, folder)
    except ConversionError:
        raise
    except Exception as error:  # every compression method raises its own errors
        reason = str(error).strip() or type(error).__name__
        raise ConversionError(f"{archive} is damaged or not a zip archive: {reason}") from error


def check_pytorch_archive(path: Path, name: str) -> None:
    """Refuse a file in PyTorch's zip format whose members are compressed or larger than the file.

    `torch.save` writes neither. A file that is not a zip archive passes.

    Raises:
        ConversionError: naming the file.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as opened:
            members = opened.infolist()
    except Exception:  # a damaged directory: torch.load reports it
        return
    if any(member.filename.endswith("/constants.pkl") for member in members):  # TorchScript: torch.load refuses it
        return
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED:
            raise ConversionError(
                f"{name} has a compressed member ({member.filename}): PyTorch writes no such checkpoints, it is refused"
            )
    declared = sum(member.file_size for member in members)
    if declared > path.stat().st_size:
        raise ConversionError(
            f"{name} declares {declared} bytes in a file of {path.stat().st_size} bytes: it is refused"
        )


def check_ratio(archive: Path) -> None:
    """Refuse an archive with a member that grows more than [`LARGEST_RATIO`] times when it is unpacked.

    Raises:
        ConversionError: naming the member.
    """
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            _check_ratio(member, str(archive))


def _check_member(member: zipfile.ZipInfo, archive: str) -> None:
    name = member.filename.replace("\\", "/")
    if name.startswith("/") or ".." in name.split("/") or name[1:2] == ":":  # ":" after a Windows drive
        raise ConversionError(f"{archive} has a member with a path outside of it, {member.filename!r}: it is refused")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise ConversionError(f"{archive} has a member that is a link, {member.filename!r}: it is refused")
    if member.flag_bits & 1:
        raise ConversionError(f"{archive} is encrypted ({member.filename!r}): unpack it and pass the checkpoint in it")
    _check_ratio(member, archive)


def _check_ratio(member: zipfile.ZipInfo, archive: str) -> None:
    if member.file_size > LARGEST_RATIO * member.compress_size + SMALL_SIZE:
        raise ConversionError(
            f"{archive} is a zip bomb: {member.filename!r} unpacks from {member.compress_size} to {member.file_size} "
            "bytes: it is refused"
        )


def _unpacked(opened: zipfile.ZipFile, member: zipfile.ZipInfo, archive: Path, folder: Path) -> Path:
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
        raise ConversionError(f"{archive} is damaged: {member.filename!r} has {written} of {member.file_size} bytes")
    return target


def _is_checkpoint_name(name: str) -> bool:
    """Return True if a member is named like a checkpoint. macOS adds `._` members beside the real ones."""
    return name.lower().endswith(WEIGHT_SUFFIXES) and not Path(name).name.startswith("._")
