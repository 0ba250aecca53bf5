# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Files and folders that appear only when they are complete, and checks of files that are read."""

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .escaping import printable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PREFIX = ".segtransformers."  # of the names of temporary folders
_searched: set[Path] = set()  # folders whose leftovers this process has removed


@contextlib.contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target`, on the same disk, from which results are moved to their places.

    Missing parents of `target` are created. Whatever is left in the temporary folder at the end is deleted, and so are
    the parents if nothing was written into them. A lock on the folder lets later processes recognise the leftovers of
    one that was killed. They delete these before they write beside them.

    Raises:
        OSError: if the folder cannot be created.
    """
    created = _make_folder(target.parent)
    try:
        remove_leftovers(target.parent)
        folder, lock = _locked_folder(target.parent)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if lock is not None:
                os.close(lock)
    finally:
        for path in reversed(created):
            with contextlib.suppress(OSError):  # it is not empty
                path.rmdir()


@contextlib.contextmanager
def complete_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path for the contents of `target`, and move that file to `target` if no error occurs.

    Raises:
        OSError: if the file cannot be written.
    """
    with staging_folder(target) as folder:
        file = folder / target.name
        yield file
        file.replace(target)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a folder for temporary files in the system's folder for these. It is deleted at the end.

    Raises:
        OSError: if the folder cannot be created.
    """
    with staging_folder(Path(tempfile.gettempdir()) / "scratch") as folder:
        yield folder


def remove_leftovers(folder: Path) -> None:
    """Delete temporary folders in `folder` that killed processes left there, once in the life of this process."""
    if folder in _searched:
        return
    _searched.add(folder)
    with contextlib.suppress(OSError):
        for path in folder.glob(f"{PREFIX}*"):
            if path.is_symlink() or not path.is_dir() or not _is_own(path):
                continue
            lock = _lock(path, wait=False)
            if lock is not None:  # no process holds it
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)


def check_readable(path: Path) -> None:
    """Refuse a pipe, device or socket in the place of a file: reading one may wait or continue forever.

    A path that does not exist is accepted, because opening it raises a clear error.

    Raises:
        OSError: if the path is none of a file and a folder.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(f"{printable(path, 200)} is no file, but a pipe, device or socket")


def check_folder_readable(folder: Path) -> None:
    """Refuse a folder that holds a pipe, device or socket. Its sub-folders are not searched.

    Raises:
        OSError: naming the first of them.
    """
    for path in sorted(folder.iterdir()):
        check_readable(path)


def write_failure(error: BaseException) -> str | None:
    """Return the reason why a file could not be written, or None if this is another error.

    PyTorch and safetensors report a full disk with errors of their own.
    """
    text = str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EIO):
        name = "" if error.filename is None else f"{printable(error.filename, 200)}: "
        return f"{name}{error.strerror}"
    if type(error).__name__ == "SafetensorError" and "I/O error" in text:
        return text.partition("I/O error: ")[2].partition(" (os error")[0]
    if isinstance(error, RuntimeError) and ("inline_container" in text or "PytorchStreamWriter" in text):
        return "the disk is full, or the file cannot be written"
    return None


def _make_folder(folder: Path) -> list[Path]:
    """Create a folder and its parents, and return those that did not exist, outermost first."""
    missing = []
    for path in (folder, *folder.parents):
        if path.exists():
            break
        missing.append(path)
    folder.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def _locked_folder(parent: Path) -> tuple[Path, int | None]:
    """Create a temporary folder and lock it. The lock is None where folders cannot be locked."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        lock = _lock(folder, wait=True)
        if folder.exists():
            return folder, lock
        if lock is not None:  # another process took it for a leftover before it was locked
            os.close(lock)


def _lock(folder: Path, wait: bool) -> int | None:
    """Return a file descriptor that locks a folder, or None if another process holds the lock or it has none."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # such as a network file system without locks
        os.close(descriptor)
        return None
    return descriptor


def _is_own(path: Path) -> bool:
    return not hasattr(os, "geteuid") or path.stat().st_uid == os.geteuid()


__all__ = [
    "check_folder_readable",
    "check_readable",
    "complete_file",
    "remove_leftovers",
    "scratch_folder",
    "staging_folder",
    "write_failure",
]
