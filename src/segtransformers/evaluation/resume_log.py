# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""What an evaluation has counted so far, on disk: it goes on from there after it was killed."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

Counts = list[list[int]]  # [label, prediction, pixels] of what occurs in an image


class JournalError(ValueError):
    """A journal of something else, or one in the way; the message says what to do."""


class Journal:
    """A folder with a file for each process, to which a line is added for each image.

    The first line of each file says what is evaluated: model, data and protocol; another evaluation is refused. Every
    other line holds the confusion matrix of one image, so that sums are exact and an image that two processes have
    counted, because their number changed, counts once. The end of a line that a kill cut off is dropped.

    Args:
        folder: it is made when the first image is counted.
        subject: model, data and protocol, as JSON has them.
    """

    def __init__(self, folder: Path, subject: Mapping[str, Any]):
        self.folder, self.subject = folder, json.loads(json.dumps(subject))

    def read(self, resume: bool) -> dict[int, Counts]:
        """The images that are done: index -> what was counted.

        Raises:
            JournalError: if the journal is of another model, other data or another protocol, or is there although the
                evaluation shall begin anew.
        """
        found: dict[int, Counts] = {}
        for file in sorted(self.folder.glob("*.jsonl")):
            lines = _whole_lines(file)
            if len(lines) < 2:  # no image was counted
                continue
            try:
                subject, *records = (json.loads(line) for line in lines)
                found.update((record["index"], record["counts"]) for record in records)
            except (ValueError, KeyError, TypeError):
                raise JournalError(f"{file} is damaged: delete the folder {self.folder} to begin anew") from None
            if subject != self.subject:
                raise JournalError(
                    f"the journal {self.folder} is of another evaluation ({_difference(subject, self.subject)}): "
                    "delete that folder to begin anew, or choose another --output"
                )
        if found and not resume:
            raise JournalError(
                f"an evaluation was interrupted after {len(found)} images: --resume goes on with it, deleting the "
                f"folder {self.folder} begins anew"
            )
        return found

    def writer(self, process: int) -> "JournalWriter":
        """What a process adds lines with."""
        return JournalWriter(self.folder / f"process-{process}.jsonl", self.subject)

    def remove(self) -> None:
        """Once the results are elsewhere."""
        for file in self.folder.glob("*.jsonl"):
            file.unlink()
        if self.folder.is_dir():
            self.folder.rmdir()


class JournalWriter:
    """Appends to the file of one process; it may be there already, from before a kill. The first image makes it."""

    def __init__(self, path: Path, subject: Mapping[str, Any]):
        self.path, self.subject = path, subject
        self.file: BinaryIO | None = None

    def add(self, index: int, name: str, confusion: torch.Tensor) -> None:
        """The confusion matrix of one image."""
        where = confusion.nonzero()
        values = confusion[where[:, 0], where[:, 1]]
        counts: Counts = torch.cat([where, values[:, None]], dim=1).tolist()
        if self.file is None:
            self.file = self._opened()
        _write(self.file, {"index": index, "name": name, "counts": counts})

    def close(self) -> None:
        if self.file is not None:
            self.file.close()

    def _opened(self) -> BinaryIO:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = _whole_lines(self.path) if self.path.exists() else []
        whole = sum(len(line) for line in lines) if len(lines) > 1 else 0
        file = self.path.open("ab")
        os.truncate(self.path, whole)
        if whole == 0:
            _write(file, self.subject)
        return file


def _write(file: BinaryIO, record: Mapping[str, Any]) -> None:
    file.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
    file.flush()  # to the system, which keeps it when the process is killed


def add_counts(confusion: torch.Tensor, counts: Counts) -> None:
    """Add what a journal says of an image to a confusion matrix."""
    rows, columns, values = torch.tensor(counts, dtype=torch.int64).reshape(-1, 3).unbind(1)
    confusion.index_put_((rows, columns), values, accumulate=True)


def _whole_lines(path: Path) -> list[bytes]:
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _difference(theirs: Any, ours: Any, where: str = "") -> str:
    """Names the first thing in which two subjects differ."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in dict.fromkeys([*theirs, *ours]):
            if theirs.get(key) != ours.get(key):
                return _difference(theirs.get(key), ours.get(key), f"{where}.{key}" if where else key)
    return f"its {where or 'subject'} is {_short(theirs)}, now it is {_short(ours)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


__all__ = ["Journal", "JournalError", "JournalWriter", "add_counts"]
