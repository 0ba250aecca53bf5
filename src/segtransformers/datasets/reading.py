# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Images and masks from files, and the rules that make class indices of what a mask holds.

As in the originals (`LoadImageFromFile` and `LoadAnnotations` of MMSegmentation 0.x on mmcv): an image is turned as its
EXIF data says, a mask is not; a mask with a palette is read as indices.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image

from ..image_processing import upright_rgb

NO_CLASS = 255


class DataError(ValueError):
    """Something is wrong with the files of a data set; the message names the file and says what to do."""


def read_image(file: Path | BinaryIO, name: str) -> Image.Image:
    """An RGB picture, turned as its EXIF data says.

    Args:
        file: the file, or its contents.
        name: what messages call it.

    Raises:
        FileNotFoundError: if there is no such file.
        DataError: if it is no picture, or is damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file) as opened:
                return upright_rgb(opened)
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read {name} as a picture: {_in_one_line(error)}") from None


@dataclass(frozen=True)
class Mask:
    """A mask as it is stored.

    Attributes:
        values: `(height, width)` integers, or `(height, width, 3)` colours.
        shown_as: the colour `(colours, 3)` of each value, if the file has a palette.
    """

    values: np.ndarray
    shown_as: np.ndarray | None = None


def read_mask(file: Path | BinaryIO, name: str) -> Mask:
    """The values of a mask: of a file with a palette its indices, of one whose channels are all equal one of them.

    Raises:
        FileNotFoundError: if there is no such file.
        DataError: if it is no picture, is damaged, or of a kind that cannot hold exact labels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file) as opened:
                opened.load()
                kind, mode, values = opened.format, opened.mode, np.asarray(opened)
                frames = getattr(opened, "n_frames", 1)
                palette = opened.getpalette("RGB") if mode == "P" else None
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read the mask {name}: {_in_one_line(error)}") from None
    if kind in ("JPEG", "MPO", "WEBP"):
        raise DataError(f"the mask {name} is a {kind}, which blurs labels: save masks without loss, as PNG")
    if frames > 1:
        raise DataError(f"the mask {name} holds {frames} pictures: save the one that is meant, as PNG")
    if mode == "F":
        raise DataError(f"the mask {name} holds floating-point numbers: save whole numbers, as PNG")
    if mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        if (values[..., -1] != 255).any():
            raise DataError(
                f"the mask {name} has transparent pixels, which say nothing of their class: save it without "
                "transparency, label 255 where there is no class"
            )
        values = values[..., :-1] if mode in ("RGBA", "RGBa") else values[..., 0]
    elif mode not in ("1", "L", "P", "RGB") and not mode.startswith("I"):
        raise DataError(f"the mask {name} is of PIL's mode {mode}: save class indices in one channel, as PNG")
    if values.ndim == 3 and (values[..., :1] == values[..., 1:]).all():
        values = values[..., 0]  # grey, stored three times
    if values.dtype == bool:
        values = values.astype(np.uint8)
    return Mask(values, None if palette is None else np.array(palette, np.uint8).reshape(-1, 3))


def turned_by_exif(file: Path | BinaryIO) -> bool:
    """Whether the EXIF data of an image swap its sides."""
    with Image.open(file) as opened:
        return opened.getexif().get(ExifTags.Base.Orientation, 1) >= 5


def contents(entry: Mapping[str, object]) -> Path | BinaryIO:
    """The file, or the bytes, of a row's image as `datasets` stores it undecoded."""
    if entry["bytes"] is not None:
        return io.BytesIO(entry["bytes"])  # type: ignore[arg-type]
    return Path(str(entry["path"]))


@dataclass(frozen=True)
class LabelRule:
    """How the values in masks become class indices, and which are a mistake.

    Attributes:
        num_labels: how many classes there are, at most 255.
        reduce_labels: whether 0 means "no class" and all others go down by one.
        label_map: class index or 255 of values for which the usual rule does not hold.
        only_map: whether `label_map` is all there is, and any other value but 255 a mistake.
        colours: class index or 255 of colours, for masks that hold colours.
        strict_binary: whether masks of 0 and 255 are a mistake where they look like foreground and background.
    """

    num_labels: int
    reduce_labels: bool = False
    label_map: Mapping[int, int] | None = None
    only_map: bool = False
    colours: Mapping[tuple[int, int, int], int] | None = None
    strict_binary: bool = True
    _table: np.ndarray = field(init=False, repr=False, compare=False)
    _colour_table: tuple[np.ndarray, np.ndarray] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        if self.only_map and self.reduce_labels:
            raise ValueError("reduce_labels makes no sense here: the masks' original ids are mapped to classes")
        if not 1 <= self.num_labels <= NO_CLASS:
            raise ValueError(f"there must be 1 to 255 classes (label 255 means no class), got {self.num_labels}")
        for value, label in (self.label_map or {}).items():
            if not 0 <= value < 1 << 16:
                raise ValueError(f"label_map has the value {value}; masks hold 0 to 65535")
            if label != NO_CLASS and not 0 <= label < self.num_labels:
                raise ValueError(f"label_map maps {value} to {label}; classes are 0 to {self.num_labels - 1}, or 255")
        table = np.full(1 << 16, -1, np.int16)
        if not self.only_map:
            first = int(self.reduce_labels)
            table[:first] = NO_CLASS
            table[first : first + self.num_labels] = np.arange(self.num_labels)
        table[NO_CLASS] = NO_CLASS
        for value, label in (self.label_map or {}).items():
            table[value] = label
        object.__setattr__(self, "_table", table)
        object.__setattr__(self, "_colour_table", _hash_table(self.colours or {}))

    def describe(self) -> dict:
        """What decides over labels, as JSON can hold it."""
        table = {str(value): label for value, label in sorted((self.label_map or {}).items())}
        colours = {" ".join(map(str, colour)): label for colour, label in sorted((self.colours or {}).items())}
        return {"reduce_labels": self.reduce_labels, "label_map": table or None, "colours": colours or None}

    def apply(self, mask: Mask, name: str) -> np.ndarray:
        """Class indices `(height, width)` uint8.

        Raises:
            DataError: for values or colours that are no class, for masks of 0 and 255 that look like foreground and
                background, and where the colours that a file shows are those of other classes than its indices.
        """
        values = mask.values
        if values.ndim == 3:
            return self._of_colours(values, name)
        if mask.shown_as is not None and self.colours is not None:
            self._check_colours_shown(values, mask.shown_as, name)
        if values.dtype != np.uint8 and not 0 <= values.min(initial=0) <= values.max(initial=0) < 1 << 16:
            raise DataError(f"the mask {name} has values {values.min()} to {values.max()}; {self._expected()}")
        labels = self._table[values]
        if labels.min(initial=0) < 0:
            raise DataError(self._about_wrong_values(values[labels < 0], name))
        mapped = self.label_map is not None and NO_CLASS in self.label_map
        if self.strict_binary and not mapped and (self.num_labels <= 2 or self.reduce_labels):
            self._check_not_binary(values, name)
        return labels.astype(np.uint8)

    def _check_colours_shown(self, values: np.ndarray, shown_as: np.ndarray, name: str) -> None:
        used = np.flatnonzero(np.bincount(values.ravel()))
        if used.max(initial=0) >= len(shown_as):
            return
        shown = [(self.colours or {}).get(tuple(shown_as[value].tolist())) for value in used]
        if None not in shown and shown != self._table[used].tolist():
            value, label = next(pair for pair in zip(used, shown, strict=True) if pair[1] != self._table[pair[0]])
            raise DataError(
                f"the mask {name} has a palette that shows {value} in the colour of class {label}: if its colours "
                "count, save it as RGB; if its indices do, pass no palette"
            )

    def _check_not_binary(self, values: np.ndarray, name: str) -> None:
        if values.max(initial=0) != NO_CLASS or values.min() != 0 or not np.isin(values, (0, NO_CLASS)).all():
            return
        raise DataError(
            f"the mask {name} holds only 0 and 255, and 255 means no class here. If 255 is the foreground, pass "
            "label_map={0: 0, 255: 1} (--label-map 0:0,255:1); if such masks are right, label_map={255: 255}"
        )

    def _expected(self) -> str:
        if self.only_map:
            return "expected are the values of the label map, and 255 where there is no class"
        if self.reduce_labels:
            return f"expected are 1 to {self.num_labels}, and 0 or 255 where there is no class"
        return f"expected are 0 to {self.num_labels - 1}, and 255 where there is no class"

    def _about_wrong_values(self, wrong: np.ndarray, name: str) -> str:
        found, counts = np.unique(wrong, return_counts=True)
        listed = ", ".join(f"{value} ({count} pixels)" for value, count in zip(found[:5], counts[:5], strict=True))
        more = f" and {len(found) - 5} others" if len(found) > 5 else ""
        text = f"the mask {name} has labels that are no class: {listed}{more}; {self._expected()}."
        if not self.reduce_labels and not self.only_map and found.tolist() == [self.num_labels]:
            text += " If 0 means no class and classes start at 1, pass reduce_labels=True (--reduce-labels)."
        value = 65535 if found[-1] == 65535 else int(found[0])
        return f"{text} Or map values to classes, or to 255 for none, as in label_map={{{value}: 255}}"

    def _of_colours(self, values: np.ndarray, name: str) -> np.ndarray:
        if self.colours is None:
            raise DataError(
                f"the mask {name} holds colours and no palette is given: pass palette=[[red, green, blue], ...] in the "
                'order of the classes, or name the colours in a classes.json: [{"name": ..., "color": [r, g, b]}, ...]'
            )
        packed = _packed(values)
        codes, labels = self._colour_table
        place = packed % len(codes)
        wrong = packed[codes[place] != packed]
        if wrong.size:
            found, counts = np.unique(wrong, return_counts=True)
            listed = ", ".join(
                f"({value >> 16}, {value >> 8 & 255}, {value & 255}) in {count} pixels"
                for value, count in zip(found[:4].tolist(), counts[:4].tolist(), strict=True)
            )
            raise DataError(
                f"the mask {name} has {len(found)} colours that the palette lacks: {listed}. Add them to the palette, "
                "or save masks without smoothing (no JPEG, nearest neighbour when resizing)"
            )
        return labels[place]


def colour_table(palette: Sequence[Sequence[int]], others: Sequence[Sequence[int]] = ()) -> dict:
    """`colours` of a [`LabelRule`]: of the classes in turn, and of pixels without a class.

    Raises:
        ValueError: if two classes have one colour.
    """
    table: dict[tuple[int, int, int], int] = {}
    for index, colour in [*enumerate(palette), *((NO_CLASS, colour) for colour in others)]:
        red, green, blue = (int(value) for value in colour)
        if table.setdefault((red, green, blue), index) != index:
            first = table[red, green, blue]
            raise ValueError(f"classes {first} and {index} have the same colour {[red, green, blue]} in the palette")
    return table


def _hash_table(colours: Mapping[tuple[int, int, int], int]) -> tuple[np.ndarray, np.ndarray]:
    """Packed colours, and their labels, each at its remainder by the length of the tables; -1 where there is none."""
    packed = np.array([_packed(np.array(colour, np.uint8)) for colour in colours], np.int32)
    size = max(1, len(packed))
    while len(np.unique(packed % size)) < len(packed):  # two colours in one place
        size += 1
    codes, labels = np.full(size, -1, np.int32), np.zeros(size, np.uint8)
    codes[packed % size], labels[packed % size] = packed, list(colours.values())
    return codes, labels


def _packed(colours: np.ndarray) -> np.ndarray:
    parts = colours.astype(np.int32)
    return parts[..., 0] << 16 | parts[..., 1] << 8 | parts[..., 2]


def _in_one_line(error: BaseException) -> str:
    if isinstance(error, Image.DecompressionBombError):
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        return f"it has more than {most} million pixels. Cut it into tiles, or raise PIL.Image.MAX_IMAGE_PIXELS"
    return " ".join(str(error).split()) or type(error).__name__
