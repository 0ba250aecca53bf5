# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Zip archives from strangers: names and sizes are checked before a byte is unpacked."""

import shutil
import stat
import zipfile
from pathlib import Path

from .mapping import ConversionError

WEIGHT_SUFFIXES = (".pth", ".pth.tar", ".pt", ".bin")
# Weights are noise to a compressor: what shrinks more than this is no checkpoint. Small files may be all zeros.
LARGEST_RATIO, SMALL = 100, 2**20
_CHUNK = 2**22


def unpacked_checkpoint(archive: Path, folder: Path) -> Path:
    """The one checkpoint file of a zip archive, unpacked into `folder` under a name of our own.

    Raises:
        ConversionError: naming the member that leads out of the archive, is a link, encrypted or a bomb, and archives
            that are damaged or hold no checkpoint or several.
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
    except Exception as error:  # each compression has errors of its own
        reason = str(error).strip() or type(error).__name__
        raise ConversionError(f"{archive} is damaged or no zip archive: {reason}") from error


def check_pytorch_archive(path: Path, name: str) -> None:
    """Refuse a file of PyTorch's zip format whose members are compressed or larger than the file: torch writes neither.

    What is no archive is left to torch.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as opened:
            members = opened.infolist()
    except Exception:  # a damaged directory: torch says what it is
        return
    if any(member.filename.endswith("/constants.pkl") for member in members):  # of TorchScript: torch refuses it
        return
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED:
            raise ConversionError(
                f"{name} is compressed inside ({member.filename}), as PyTorch never writes checkpoints: such files are "
                "refused"
            )
    declared = sum(member.file_size for member in members)
    if declared > path.stat().st_size:
        raise ConversionError(
            f"{name} declares {declared} bytes in a file of {path.stat().st_size}: such files are refused"
        )


def check_ratio(archive: Path) -> None:
    """Refuse an archive with a member that grows beyond measure when it is unpacked.

    Raises:
        ConversionError: naming the member.
    """
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            _check_ratio(member, str(archive))


def _check_member(member: zipfile.ZipInfo, archive: str) -> None:
    name = member.filename.replace("\\", "/")
    if name.startswith("/") or ".." in name.split("/") or name[1:2] == ":":  # the last is a drive of Windows
        raise ConversionError(
            f"{archive} has a member that leads out of it, {member.filename!r}: such files are refused"
        )
    if stat.S_ISLNK(member.external_attr >> 16):
        raise ConversionError(f"{archive} has a member that is a link, {member.filename!r}: such files are refused")
    if member.flag_bits & 1:
        raise ConversionError(f"{archive} is encrypted ({member.filename!r}): unpack it and give the checkpoint inside")
    _check_ratio(member, archive)


def _check_ratio(member: zipfile.ZipInfo, archive: str) -> None:
    if member.file_size > LARGEST_RATIO * member.compress_size + SMALL:
        raise ConversionError(
            f"{archive} is a zip bomb: {member.filename!r} grows from {member.compress_size} to {member.file_size}"
        )


def _unpacked(opened: zipfile.ZipFile, member: zipfile.ZipInfo, archive: Path, folder: Path) -> Path:
    free = shutil.disk_usage(folder).free
    if member.file_size > free:
        raise ConversionError(
            f"{archive} needs {member.file_size} bytes in {folder}, where {free} are free: set TMPDIR to a larger place"
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
    """Whether a member of an archive is a checkpoint, and not the shadow of one that macOS adds."""
    return name.lower().endswith(WEIGHT_SUFFIXES) and not Path(name).name.startswith("._")
