# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The resume log: counts of an evaluation on disk, from which it continues after it was interrupted."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..files import check_readable

Counts = list[list[int]]  # [label, prediction, pixels] for each pair that occurs in an image


class ResumeLogError(ValueError):
    """The resume log belongs to another evaluation, is damaged, or exists although the evaluation starts anew."""


class ResumeLog:
    """A folder with one file per process, to which each image adds a line.

    The first line of a file describes what is evaluated: model, data and protocol. Every other line holds the confusion
    matrix of one image, so sums are exact, and an image counts once even if two processes have counted it because
    their number changed. A last line that was cut off is dropped.

    Args:
        folder: it is created when the first image is counted.
        subject: model, data and protocol, as JSON can hold them.
    """

    def __init__(self, folder: Path, subject: Mapping[str, Any]):
        self.folder, self.subject = folder, json.loads(json.dumps(subject))
        self.calibrations: dict[int, str] = {}  # packed sums of the images that `read` returned, if there are any

    def read(self, resume: bool) -> dict[int, Counts]:
        """Return the counts of the images that are done, by index.

        Args:
            resume: whether the evaluation continues. Otherwise the log must hold no image.

        Raises:
            ResumeLogError: if the log is of another model, other data or another protocol, or is damaged, or holds
                images although `resume` is False.
        """
        found: dict[int, Counts] = {}
        for file in sorted(self.folder.glob("*.jsonl")):
            lines = _whole_lines(file)
            if len(lines) < 2:  # no image was counted
                continue
            try:
                subject, *records = (json.loads(line) for line in lines)
                found.update((record["index"], record["counts"]) for record in records)
                self.calibrations.update((one["index"], one["calibration"]) for one in records if "calibration" in one)
            except (ValueError, KeyError, TypeError, RecursionError):
                raise ResumeLogError(f"{file} is damaged: delete the folder {self.folder} to start anew") from None
            if subject != self.subject:
                raise ResumeLogError(
                    f"the resume log {self.folder} is of another evaluation ({_difference(subject, self.subject)}): "
                    "delete that folder to start anew, or choose another resume_log (--output)"
                )
        if found and not resume:
            raise ResumeLogError(
                f"an evaluation was interrupted after {len(found)} images: continue it with resume=True (--resume), or "
                f"delete the folder {self.folder} to start anew"
            )
        return found

    def writer(self, process: int) -> "ResumeLogWriter":
        """Return the writer of one process."""
        return ResumeLogWriter(self.folder / f"process-{process}.jsonl", self.subject)

    def remove(self) -> None:
        """Delete the log, once the results are saved."""
        for file in self.folder.glob("*.jsonl"):
            file.unlink()
        if self.folder.is_dir():
            self.folder.rmdir()


class ResumeLogWriter:
    """Append to the file of one process, and close it at the end of a `with` block.

    The file is opened when the first image is added. It may exist from before an interruption.
    """

    def __init__(self, path: Path, subject: Mapping[str, Any]):
        self.path, self.subject = path, subject
        self.file: BinaryIO | None = None

    def __enter__(self) -> "ResumeLogWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None

    def add(self, index: int, name: str, confusion: torch.Tensor, calibration: str | None = None) -> None:
        """Write the confusion matrix of one image, and the packed sums of its calibration."""
        where = confusion.nonzero()
        values = confusion[where[:, 0], where[:, 1]]
        counts: Counts = torch.cat([where, values[:, None]], dim=1).tolist()
        if self.file is None:
            self.file = self._open()
        more = {} if calibration is None else {"calibration": calibration}
        _write(self.file, {"index": index, "name": name, "counts": counts, **more})

    def _open(self) -> BinaryIO:
        """Open the file, cut off an incomplete last line, and write the first line if there is none."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = _whole_lines(self.path) if self.path.exists() else []
        kept = sum(len(line) for line in lines) if len(lines) > 1 else 0
        file = self.path.open("ab")
        os.truncate(self.path, kept)
        if kept == 0:
            _write(file, self.subject)
        return file


def _write(file: BinaryIO, record: Mapping[str, Any]) -> None:
    file.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
    file.flush()  # hands the line to the system, which keeps it if the process is killed


def add_counts(confusion: torch.Tensor, counts: Counts) -> None:
    """Add the counts of an image to a confusion matrix, in place."""
    rows, columns, values = torch.tensor(counts, dtype=torch.int64).reshape(-1, 3).unbind(1)
    confusion.index_put_((rows, columns), values, accumulate=True)


def _whole_lines(path: Path) -> list[bytes]:
    check_readable(path)
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _difference(theirs: Any, ours: Any, path: str = "") -> str:
    """Name the first entry in which two subjects differ."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in dict.fromkeys([*theirs, *ours]):
            if theirs.get(key) != ours.get(key):
                return _difference(theirs.get(key), ours.get(key), f"{path}.{key}" if path else key)
    return f"its {path or 'subject'} is {_short(theirs)}, now it is {_short(ours)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


__all__ = ["ResumeLog", "ResumeLogError", "ResumeLogWriter", "add_counts"]
