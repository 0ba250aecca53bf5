# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Rows of image and mask files, read like those of the library `datasets`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


class FileRows:
    """Rows of image and mask files, with the methods of a `datasets.Dataset` that [`SegmentationDataset`] calls."""

    def __init__(self, images: Sequence[Path], masks: Sequence[Path]):
        self._images, self._masks = [str(path) for path in images], [str(path) for path in masks]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, dict[str, Any]]:
        files = {"image": self._images[index], "mask": self._masks[index]}
        return {column: {"path": path, "bytes": None} for column, path in files.items()}

    @property
    def masks(self) -> list[str]:
        """The mask files, in order."""
        return self._masks

    def select(self, indices: Sequence[int]) -> "FileRows":
        """Return the rows with these indices, in this order."""
        return FileRows(*([Path(paths[index]) for index in indices] for paths in (self._images, self._masks)))


class ClassFolderRows:
    """Rows of image files, each with one mask file or none for each class; see [`FileRows`]."""

    def __init__(self, images: Sequence[Path], masks: Sequence[Sequence[Path | None]]):
        self._images, self._masks = list(images), [list(own) for own in masks]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        masks = [None if path is None else {"path": str(path), "bytes": None} for path in self._masks[index]]
        return {"image": {"path": str(self._images[index]), "bytes": None}, "mask": masks}

    @property
    def masks(self) -> list[str]:
        """The mask files, in order."""
        return [str(path) for own in self._masks for path in own if path is not None]

    def select(self, indices: Sequence[int]) -> "ClassFolderRows":
        """Return the rows with these indices, in this order."""
        return ClassFolderRows([self._images[index] for index in indices], [self._masks[index] for index in indices])


__all__ = ["ClassFolderRows", "FileRows"]
