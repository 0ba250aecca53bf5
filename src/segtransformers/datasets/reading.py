# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Read images and masks from files, and map the values of masks to class indices.

As in the original code (`LoadImageFromFile` and `LoadAnnotations` of MMSegmentation 0.x), images are turned as their
EXIF data say, masks are not, and a mask with a palette is read as indices.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image

from ..escaping import printable
from ..files import check_readable
from ..image_processing import upright_rgb
from ..rasters import RASTER_ENDINGS

NO_CLASS = 255  # the label of pixels without a class
EXTRA_SAMPLES = 338  # tag of a TIFF file: the meaning of bands beyond the colours
RASTER_HINT = (
    ". A raster is read with its bands (--bands all, bands='all'), and `segment` writes one raster to an "
    "--output that ends in .tif"
)
ALPHA_SAMPLES = (1, 2)  # the values of this tag that mean transparency


class DataError(ValueError):
    """The files of a data set have an error. The message names the file and says what to do, in one line."""

    def __init__(self, message: str):
        super().__init__(printable(message, None))  # names of files and classes may hold anything


def read_image(file: Path | BinaryIO, name: str) -> Image.Image:
    """Read an RGB image of 8 bits, turned as its EXIF data say.

    Args:
        file: the file, or its contents.
        name: name of the file in messages.

    Raises:
        FileNotFoundError: if the file does not exist.
        DataError: if the file is no image, or is damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with _open(file) as opened:
                return upright_rgb(opened)
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        hint = RASTER_HINT if name.lower().endswith(RASTER_ENDINGS) else ""
        raise DataError(f"cannot read {name} as an image: {_in_one_line(error)}{hint}") from None


@dataclass(frozen=True)
class Mask:
    """The contents of a mask file.

    Attributes:
        values: `(height, width)` integers, or `(height, width, 3)` colours.
        palette: the colour `(colours, 3)` of each value, if the file has a palette.
        has_equal_channels: whether the values are one of three equal channels, which may be indices or grey colours.
    """

    values: np.ndarray
    palette: np.ndarray | None = None
    has_equal_channels: bool = False


def read_mask(file: Path | BinaryIO, name: str) -> Mask:
    """Read a mask. A file with a palette gives its indices, a file with three equal channels gives one channel.

    Args:
        file: the file, or its contents.
        name: name of the file in messages.

    Raises:
        FileNotFoundError: if the file does not exist.
        DataError: if the file is no image, is damaged, or is of a kind that cannot hold exact labels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with _open(file) as opened:
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
        raise DataError(f"the mask {name} holds {frames} images: save one of them, as PNG")
    if mode == "F":
        raise DataError(f"the mask {name} holds floating-point numbers: save whole numbers, as PNG")
    if mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        if (values[..., -1] != 255).any():
            raise DataError(
                f"the mask {name} has transparent pixels, whose class is unknown: save it without transparency, and "
                "give pixels without a class the label 255"
            )
        values = values[..., :-1] if mode in ("RGBA", "RGBa") else values[..., 0]
    elif mode not in ("1", "L", "P", "RGB") and not mode.startswith("I"):
        raise DataError(f"the mask {name} is of PIL's mode {mode}: save class indices in one channel, as PNG")
    has_equal_channels = values.ndim == 3 and bool((values[..., :1] == values[..., 1:]).all())
    if has_equal_channels:
        values = values[..., 0]
    if values.dtype == bool:
        values = values.astype(np.uint8)
    colours = None if palette is None else np.array(palette, np.uint8).reshape(-1, 3)
    return Mask(values, colours, has_equal_channels)


@dataclass(frozen=True)
class ImageFacts:
    """Facts that the header of an image file states.

    Attributes:
        orientation: EXIF orientation, 1 to 8: 1 is upright, 2 to 4 keep the sides, 5 to 8 exchange them.
        unused_bands: number of bands that are neither colours nor transparency.
        is_deep: whether a band has more than 8 bits.
    """

    orientation: int = 1
    unused_bands: int = 0
    is_deep: bool = False


def read_facts(file: Path | BinaryIO) -> ImageFacts:
    """Read the header of an image file that [`read_image`] has read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with _open(file) as opened:
            orientation = opened.getexif().get(ExifTags.Base.Orientation, 1)
            tile = getattr(opened, "tile", None)  # of a file that is not decoded
            raw_mode = str(tile[0].args) if tile else ""
            is_deep = opened.mode.startswith(("I", "F")) or ";16" in raw_mode
            unused = 0
            tags = getattr(opened, "tag_v2", None)
            if tags is not None:  # a TIFF file
                is_deep |= max(tags.get(ExifTags.Base.BitsPerSample, (8,)), default=8) > 8
                bands, extra = tags.get(ExifTags.Base.SamplesPerPixel, 1), tags.get(EXTRA_SAMPLES, ())
                extra = extra if isinstance(extra, tuple) else (extra,)
                colours = 4 if opened.mode == "CMYK" else 3 if bands >= 3 else 1
                unused = max(bands - colours - any(kind in ALPHA_SAMPLES for kind in extra), 0)
    return ImageFacts(orientation if orientation in range(1, 9) else 1, unused, is_deep)


def _open(file: Path | BinaryIO) -> Image.Image:
    """Open an image, but no pipe and no device, which may never end."""
    if isinstance(file, Path):
        check_readable(file)
    return Image.open(file)


def open_entry(entry: Mapping[str, object]) -> Path | BinaryIO:
    """Return the path or the bytes of an image that `datasets` has not decoded."""
    if entry["bytes"] is not None:
        return io.BytesIO(entry["bytes"])  # type: ignore[arg-type]
    return Path(str(entry["path"]))


@dataclass(frozen=True)
class LabelRule:
    """Map the values of masks to class indices, and refuse values that are no class.

    Class indices are 0 to `num_labels` - 1, and 255 means "no class". Masks may hold values up to 65535 that
    `label_map` or `reduce_labels` maps to a class.

    Attributes:
        num_labels: number of classes, 1 to 255.
        reduce_labels: whether value 0 means "no class" and all other values go down by one. Value 255 still means "no
            class", so with 255 classes `label_map` must give the value of the last class.
        label_map: class index, or 255, of values that are exceptions to these rules.
        label_map_only: whether all values but 255 must be in `label_map`.
        colours: class index, or 255, of each colour, for masks that hold colours.
        colour_threshold: value from which on a channel of a colour is 255, and else 0. None takes colours as they are.
        strict_binary: whether to refuse masks that hold only 0 and 255, if the data have at most two classes or
            `reduce_labels` is set. There, 255 probably is the foreground.
    """

    num_labels: int
    reduce_labels: bool = False
    label_map: Mapping[int, int] | None = None
    label_map_only: bool = False
    colours: Mapping[tuple[int, int, int], int] | None = None
    strict_binary: bool = True
    colour_threshold: int | None = None
    _table: np.ndarray = field(init=False, repr=False, compare=False)
    _colour_table: tuple[np.ndarray, np.ndarray] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        if self.label_map_only and self.reduce_labels:
            raise ValueError("leave out reduce_labels: a label map already gives the class of every value of the masks")
        if not 1 <= self.num_labels <= NO_CLASS:
            raise ValueError(
                f"the number of classes must be 1 to 255 (label 255 means no class), got {self.num_labels}"
            )
        last = self.num_labels - 1
        if self.reduce_labels and self.num_labels == NO_CLASS and last not in (self.label_map or {}).values():
            raise ValueError(
                f"with reduce_labels, value 255 of the masks would be class {last} and no class at once: pass a "
                f"label_map from another value to {last}, or at most 254 classes"
            )
        for value, label in (self.label_map or {}).items():
            if not 0 <= value < 1 << 16:
                raise ValueError(f"label_map has the value {value}, but masks hold values from 0 to 65535")
            if label != NO_CLASS and not 0 <= label < self.num_labels:
                raise ValueError(f"label_map maps {value} to {label}, but classes are 0 to {last}, or 255 for no class")
        table = np.full(1 << 16, -1, np.int16)
        if not self.label_map_only:
            first = int(self.reduce_labels)
            table[:first] = NO_CLASS
            table[first : first + self.num_labels] = np.arange(self.num_labels)
        table[NO_CLASS] = NO_CLASS
        for value, label in (self.label_map or {}).items():
            table[value] = label
        object.__setattr__(self, "_table", table)
        object.__setattr__(self, "_colour_table", _hash_table(self.colours or {}))

    def describe(self) -> dict:
        """Return the options that decide on labels, in a form that JSON can hold."""
        table = {str(value): label for value, label in sorted((self.label_map or {}).items())}
        colours = {" ".join(map(str, colour)): label for colour, label in sorted((self.colours or {}).items())}
        return {"reduce_labels": self.reduce_labels, "label_map": table or None, "colours": colours or None}

    def apply(self, mask: Mask, name: str) -> np.ndarray:
        """Return the class indices `(height, width)` uint8 of a mask. `name` is its name in messages.

        Raises:
            DataError: if a value or colour is no class, if a mask of 0 and 255 looks like foreground and background, or
                if the palette of a file gives its values the colours of other classes.
        """
        values = mask.values
        if values.ndim == 3:
            return self._labels_of_colours(self._pure(values), name)
        if mask.has_equal_channels and self.colours is not None:
            grey = self._pure(values)
            if all((value, value, value) in self.colours for value in np.unique(grey).tolist()):
                return self._labels_of_colours(np.stack([grey] * 3, axis=-1), name)
        if mask.palette is not None and self.colours is not None:
            self._check_palette(values, mask.palette, name)
        if values.dtype != np.uint8 and not 0 <= values.min(initial=0) <= values.max(initial=0) < 1 << 16:
            raise DataError(f"the mask {name} has values {values.min()} to {values.max()}; {self._expected()}")
        labels = self._table[values]
        if labels.min(initial=0) < 0:
            raise DataError(self._wrong_values_message(values[labels < 0], name))
        mapped = self.label_map is not None and NO_CLASS in self.label_map
        if self.strict_binary and not mapped and (self.num_labels <= 2 or self.reduce_labels):
            self._check_not_binary(values, name)
        return labels.astype(np.uint8)

    def _pure(self, colours: np.ndarray) -> np.ndarray:
        """Return colours that compression has changed a little as they were."""
        if self.colour_threshold is None:
            return colours
        return np.where(colours >= self.colour_threshold, 255, 0).astype(np.uint8)

    def _check_palette(self, values: np.ndarray, palette: np.ndarray, name: str) -> None:
        used = np.flatnonzero(np.bincount(values.ravel()))
        if used.max(initial=0) >= len(palette):
            return
        shown = [(self.colours or {}).get(tuple(palette[value].tolist())) for value in used]
        if None not in shown and shown != self._table[used].tolist():
            value, label = next(pair for pair in zip(used, shown, strict=True) if pair[1] != self._table[pair[0]])
            raise DataError(
                f"the mask {name} has a palette that gives value {value} the colour of class {label}: to read its "
                "colours, save it as RGB; to read its indices, pass no palette"
            )

    def _check_not_binary(self, values: np.ndarray, name: str) -> None:
        if values.max(initial=0) != NO_CLASS or values.min() != 0 or not np.isin(values, (0, NO_CLASS)).all():
            return
        raise DataError(
            f"the mask {name} holds only 0 and 255, and 255 means no class. If 255 is the foreground, pass "
            "label_map={0: 0, 255: 1} (--label-map 0:0,255:1). If it really means no class, pass label_map={255: 255}"
        )

    def _expected(self) -> str:
        if self.label_map_only:
            return "expected are the values of the label map, and 255 for no class"
        if self.reduce_labels:
            return f"expected are 1 to {self.num_labels}, and 0 or 255 for no class"
        return f"expected are 0 to {self.num_labels - 1}, and 255 for no class"

    def _wrong_values_message(self, wrong: np.ndarray, name: str) -> str:
        found, counts = np.unique(wrong, return_counts=True)
        listed = ", ".join(f"{value} ({count} pixels)" for value, count in zip(found[:5], counts[:5], strict=True))
        more = f" and {len(found) - 5} others" if len(found) > 5 else ""
        text = f"the mask {name} has labels that are no class: {listed}{more}; {self._expected()}."
        if not self.reduce_labels and not self.label_map_only and found.tolist() == [self.num_labels]:
            text += " If 0 means no class and classes start at 1, pass reduce_labels=True (--reduce-labels)."
        value = 65535 if found[-1] == 65535 else int(found[0])
        return f"{text} Or map values to classes, or to 255 for no class, as in label_map={{{value}: 255}}"

    def _labels_of_colours(self, values: np.ndarray, name: str) -> np.ndarray:
        if self.colours is None:
            raise DataError(
                f"the mask {name} holds colours and no palette is given: pass palette=[[red, green, blue], ...] in the "
                'order of the classes, or name the colours in a classes.json: [{"name": ..., "color": [r, g, b]}, ...]'
            )
        packed = _packed(values)
        codes, labels = self._colour_table
        position = packed % len(codes)
        wrong = packed[codes[position] != packed]
        if wrong.size:
            found, counts = np.unique(wrong, return_counts=True)
            listed = ", ".join(
                f"({value >> 16}, {value >> 8 & 255}, {value & 255}) in {count} pixels"
                for value, count in zip(found[:4].tolist(), counts[:4].tolist(), strict=True)
            )
            raise DataError(
                f"the mask {name} has {len(found)} colours that the palette lacks: {listed}. Add them to the palette, "
                "or save masks without smoothing: not as JPEG, and resized by the nearest neighbour"
            )
        return labels[position]


def colour_table(palette: Sequence[Sequence[int]], others: Sequence[Sequence[int]] = ()) -> dict:
    """Return the `colours` of a [`LabelRule`].

    Args:
        palette: the colours of the classes, in the order of their indices.
        others: colours of pixels without a class.

    Raises:
        ValueError: if two classes have the same colour.
    """
    table: dict[tuple[int, int, int], int] = {}
    for index, colour in [*enumerate(palette), *((NO_CLASS, colour) for colour in others)]:
        red, green, blue = (int(value) for value in colour)
        if table.setdefault((red, green, blue), index) != index:
            first = table[red, green, blue]
            raise ValueError(f"classes {first} and {index} have the same colour {[red, green, blue]} in the palette")
    return table


def _hash_table(colours: Mapping[tuple[int, int, int], int]) -> tuple[np.ndarray, np.ndarray]:
    """Return tables of packed colours and of their labels. Free positions hold -1.

    The position of a colour is the remainder of its packed value by the length of the tables.
    """
    packed = np.array([_packed(np.array(colour, np.uint8)) for colour in colours], np.int32)
    size = max(1, len(packed))
    while len(np.unique(packed % size)) < len(packed):  # two colours share a position
        size += 1
    codes, labels = np.full(size, -1, np.int32), np.zeros(size, np.uint8)
    codes[packed % size], labels[packed % size] = packed, list(colours.values())
    return codes, labels


def _packed(colours: np.ndarray) -> np.ndarray:
    """Return colours `(..., 3)` as one int32 each."""
    parts = colours.astype(np.int32)
    return parts[..., 0] << 16 | parts[..., 1] << 8 | parts[..., 2]


def _in_one_line(error: BaseException) -> str:
    if isinstance(error, Image.DecompressionBombError):
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        return f"it has more than {most} million pixels. Cut it into tiles, or increase PIL.Image.MAX_IMAGE_PIXELS"
    return " ".join(str(error).split()) or type(error).__name__
