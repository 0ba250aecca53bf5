# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The images that a command line names, and the names of their results."""

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from .errors import UserError


def file_extensions(operation: str) -> set[str]:
    """Return the file name extensions that Pillow can OPEN or SAVE."""
    from PIL import Image

    return {extension for extension, kind in Image.registered_extensions().items() if kind in getattr(Image, operation)}


def find_images(
    paths: Sequence[Path], outputs: Sequence[Path], endings: Collection[str] | None = None
) -> list[tuple[Path, Path]]:
    """Return the images of a command line, each with its path below the folder that was named.

    Hidden files and folders are left out, and so are the output folders, which may be inside a folder of images.

    Args:
        paths: files and folders.
        outputs: the output folders.
        endings: of the files that are searched in folders; None takes those that Pillow opens.

    Raises:
        UserError: if a folder holds no image or is an output folder, too.
    """
    readable = file_extensions("OPEN") if endings is None else endings
    kind = "images" if endings is None else "rasters"
    excluded = {os.path.realpath(path) for path in outputs}
    found: list[tuple[Path, Path]] = []
    for path in paths:
        if not path.is_dir():
            found.append((path, Path(path.name)))
            continue
        if os.path.realpath(path) in excluded:
            raise UserError(f"the folder {path} holds the {kind}: choose another folder for the results")
        inside = [(file, file.relative_to(path)) for file in _walk(path, excluded) if file.suffix.lower() in readable]
        if not inside:
            raise UserError(f"the folder {path} holds no {kind}")
        found.extend(inside)
    return found


def result_names(paths: Sequence[Path], present: Collection[str] = (), ending: str = ".png") -> list[Path]:
    """Return the path of each result: that of the image with an ending, and with a number if it is taken.

    Names that differ only in upper and lower case count as equal, as on macOS and Windows.

    Args:
        present: names of earlier results, which are taken, too.
        ending: of the results.
    """
    names = [path.with_name(f"{path.stem}{ending}") for path in paths]
    taken = {str(name).casefold() for name in names}
    used = {name.casefold() for name in present}
    for index, name in enumerate(names):
        number, chosen = 1, name
        while str(chosen).casefold() in used or (number > 1 and str(chosen).casefold() in taken):
            number += 1
            chosen = name.with_name(f"{name.stem}-{number}{ending}")
        names[index] = chosen
        used.add(str(chosen).casefold())
    return names


def _walk(folder: Path, excluded: set[str]) -> Iterator[Path]:
    """Yield the visible files in a folder and its sub-folders, in the order of their paths."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if name[0] != "." and os.path.realpath(os.path.join(parent, name)) not in excluded
        )
        for name in sorted(files):
            if name[0] != "." and Path(parent, name).is_file():
                yield Path(parent, name)
