# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Names of samples: from the names of image and mask files, and from lists."""

import collections
import difflib
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..files import check_readable
from .known import Layout
from .reading import DataError


def files_by_name(
    folder: Path, endings: Sequence[str], prefix: str, problems: list[str]
) -> tuple[dict[str, Path], list[Path]]:
    """Return the files below `folder` by their path without prefix and ending, and the files with other names.

    Of files with the same name, the first is taken, and a problem is added to `problems`.
    """
    if not folder.is_dir():
        raise DataError(f"the folder {folder} does not exist")
    found: dict[str, Path] = {}
    others = []
    for path in walk_files(folder):
        stem = without_ending(path.name, endings)
        if stem is None or not stem.startswith(prefix) or len(stem) == len(prefix):
            others.append(path)
            continue
        stem = stem[len(prefix) :]
        name = _composed((path.relative_to(folder).parent / stem).as_posix())
        if name in found:
            problems.append(f"{found[name]} and {path} differ in their endings only: keep one of them")
        else:
            found[name] = path
    return found, others


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield the files below `folder` in order. Links are followed, hidden files and folders are skipped."""
    seen = set()
    for current, folders, files in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(current))
        for name in sorted(files):
            if not name.startswith("."):
                yield Path(current, name)
        # a link to a folder above would never end
        folders[:] = [
            name
            for name in sorted(folders)
            if not name.startswith(".") and os.path.realpath(os.path.join(current, name)) not in seen
        ]


def without_ending(file: str, endings: Sequence[str]) -> str | None:
    """Return the file name without the first of `endings` that it has, or None."""
    for ending in endings:
        if file.lower().endswith(ending.lower()) and len(file) > len(ending):
            return file[: -len(ending)]
    return None


def _composed(name: str) -> str:
    """Return the composed Unicode form of a name: file systems differ in the form of letters with accents.

    Bytes of a file name that are no UTF-8 are escaped, as in `\\xe9`.
    """
    return unicodedata.normalize("NFC", os.fsencode(name).decode("utf-8", "backslashreplace"))


def listed_names(path: Path, images: dict[str, Path], problems: list[str]) -> list[str]:
    """Return the names in a list of samples. Lines may also hold file names, paths, and further columns."""
    try:
        check_readable(path)
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except FileNotFoundError:
        raise DataError(f"the list of the samples {path} does not exist") from None
    except OSError as error:
        raise DataError(f"cannot read the list of the samples {path}: {error}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} must be UTF-8 text with the name of one sample per line") from None
    if not lines:
        raise DataError(f"{path} lists no samples")
    names = []
    for line in map(_composed, lines):
        first = line.split()[0]
        ways = (line, first, str(Path(first).with_suffix("")), Path(first).name, Path(first).stem)
        names.append(next((way for way in ways if way in images), line))
    unique = list(dict.fromkeys(names))
    if len(unique) < len(names):
        counts = collections.Counter(names)
        problems += problem_with("are listed twice in", [name for name in unique if counts[name] > 1], path)
    return unique


def problem_with(problem: str, names: list[str], path: Path, hint: str = "") -> list[str]:
    """Return a message that lists `names`, or nothing if there are none."""
    if not names:
        return []
    listed = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return [f"{len(names)} {problem} {path}: {listed}. {hint or 'Add the missing files, or remove these'}"]


def hint_about_names(images: dict[str, Path], masks: dict[str, Path], layout: Layout) -> str:
    """Return a hint where no image has a mask of its name, with templates of the names if these can be guessed."""
    if not images or not masks or any(name in masks for name in images):
        return ""
    image = Path(next(iter(images)))
    for mask in map(Path, masks):
        before, after = _around_common_part(image.name, mask.name)
        if mask.parent != image.parent or before is None:
            continue
        renamed = [_stripped(these, *ends) for these, *ends in zip((images, masks), before, after, strict=True)]
        if renamed[0] & renamed[1]:
            files = (next(iter(images.values())), masks[mask.as_posix()])
            endings = [
                f"{start}*{end}{path.suffix}" if start else f"{end}{path.suffix}"
                for start, end, path in zip(before, after, files, strict=True)
            ]
            needed = [index for index in (0, 1) if before[index] or after[index]]
            arguments = ", ".join(f"{('image', 'mask')[index]}_ending={endings[index]!r}" for index in needed)
            options = ", ".join(f"--{('image', 'mask')[index]}-ending" for index in needed)
            return f"If the names of images and masks differ by these texts, pass {arguments} ({options})"
    return (
        "If the names of images and masks differ in their beginnings or endings, pass templates, such as "
        "image_ending='*_sat.jpg', mask_ending='mask_*.png' (--image-ending, --mask-ending)"
    )


def _stripped(names: Iterable[str], start: str, end: str) -> set[str]:
    """Return the names that have this beginning and ending, without both."""
    return {
        (Path(name).parent / Path(name).name[len(start) : len(Path(name).name) - len(end)]).as_posix()
        for name in names
        if Path(name).name.startswith(start) and name.endswith(end)
    }


def _around_common_part(first: str, second: str) -> tuple[tuple[str, str] | None, tuple[str, str]]:
    """Return the texts before and after the longest part that two names share.

    The first is None if that part neither holds a digit nor is half of a name.
    """
    match = difflib.SequenceMatcher(None, first, second, autojunk=False).find_longest_match()
    common = first[match.a : match.a + match.size]
    trimmed = common.strip("_-. ")
    match = match._replace(a=match.a + common.find(trimmed), b=match.b + common.find(trimmed), size=len(trimmed))
    common = trimmed
    if not any(map(str.isdigit, common)) and 2 * len(common) < min(len(first), len(second)):
        return None, ("", "")
    return (first[: match.a], second[: match.b]), (first[match.a + match.size :], second[match.b + match.size :])


__all__ = ["files_by_name", "hint_about_names", "listed_names", "problem_with", "walk_files", "without_ending"]
