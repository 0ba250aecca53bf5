# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Labels and probabilities of a raster that may be larger than the memory, in bands of rows.

A raster is run at its own resolution, in windows that are cut out of rows of the file. Each pixel is computed by the
same calls in the same order as by [`segment_bands`] on the whole raster, so the results are equal bit for bit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..image_processing import decision_of, processor_bands
from ..models.layers.sliding_windows import MAX_BAND_BYTES, SlidingWindow, WindowIndex, slide_bands
from ..rasters.band_image import BandImage, filled, read_bands
from ..rasters.raster import Raster, RasterError
from .confidence import SegmentedBand
from .protocol import InferenceProtocol

DEFAULT_WINDOW = (512, 512)  # pixels, for models that run whole images
RGB_DTYPES = ("uint8", "uint16")  # other types have no range that is the same in every window


@dataclass(frozen=True)
class RasterBand:
    """A band of rows of a segmented raster.

    Attributes:
        segmented: labels and probabilities.
        valid: which pixels `(rows, width)` hold data. The labels of the others mean nothing.
    """

    segmented: SegmentedBand
    valid: np.ndarray


def raster_window(model: PreTrainedModel, protocol: InferenceProtocol) -> SlidingWindow:
    """Return the windows in which a raster is run: those of the protocol or of the model, or `DEFAULT_WINDOW`.

    Raises:
        ValueError: if the protocol has scales, or a margin that leaves out pixels.
    """
    if protocol.scales is not None:
        raise ValueError("rasters are run at their own resolution: leave scales out")
    config: Any = model.config
    takes_windows = hasattr(config, "sliding_window")
    if protocol.window is None and takes_windows and config.sliding_window() is not None:
        window = protocol.sliding_window(model)
        assert window is not None
        return window
    size = protocol.window or DEFAULT_WINDOW
    stride = protocol.stride or (max(size[0] * 2 // 3, 1), max(size[1] * 2 // 3, 1))
    batch_size = getattr(config, "window_batch_size", 1)
    is_square = getattr(config, "square_window_if_smaller", False)
    return SlidingWindow(size, stride, batch_size, is_square, protocol.blend, protocol.margin)


def raster_bands(processor: Any, raster: Raster, bands: Sequence[int] | None = None) -> list[int] | None:
    """Return the numbers of the bands that a model takes, from 1 on; None takes all bands of the raster.

    Args:
        processor: the image processor of the model.
        raster: an opened raster.
        bands: the numbers that the user wants. None takes those of the processor.

    Raises:
        RasterError: if the raster lacks bands or has bands of another type, or more than the model takes.
    """
    own = processor_bands(processor)
    count = 3 if own is None else len(own)
    wanted = list(bands or own or ())
    if wanted and len(wanted) != count and not (own is None and len(wanted) == 1):
        raise RasterError(f"the model takes {count} bands, but {len(wanted)} are asked for")
    if any(not 1 <= band <= raster.bands for band in wanted):
        raise RasterError(
            f"{raster.name} has {raster.bands} bands, but the model takes the bands "
            f"{', '.join(map(str, wanted))}: choose others with bands (--bands), or another raster"
        )
    if own is None:
        if not wanted and raster.bands not in (1, 3):
            choice = "name these with bands (--bands 1,2,3)" if raster.bands > 3 else "choose one as grey (--bands 1)"
            raise RasterError(
                f"{raster.name} has {raster.bands} bands, but the model takes red, green and blue: {choice}, or train "
                "a model with all bands"
            )
        if raster.dtype.name not in RGB_DTYPES:
            raise RasterError(
                f"{raster.name} holds values of type {raster.dtype}, but the model takes colours of 8 or 16 bits: "
                "convert the raster, or train a model with its values"
            )
    expected, found = getattr(processor, "band_dtype", None), raster.dtype.name
    if expected is not None and found != expected and (expected, found) != ("float32", "float64"):
        raise RasterError(f"{raster.name} holds values of type {found}, but the model was trained with {expected}")
    return wanted or None


def segment_raster_bands(
    model: PreTrainedModel,
    processor: Any,
    raster: Raster,
    protocol: InferenceProtocol | None = None,
    rows: slice | None = None,
    bands: Sequence[int] | None = None,
) -> Iterator[RasterBand]:
    """Predict the classes of a raster, and yield them in bands of rows from top to bottom.

    Memory holds the rows of one window height of the file, and the sums of logits of one row of windows. Windows
    without data are not run. Pixels without data become the mean of their band.

    Args:
        model: in evaluation mode.
        processor: its image processor, whose resize is left out.
        raster: an opened raster.
        protocol: the inference options, without scales. None takes the windows of the checkpoint.
        rows: the rows that are wanted; None takes all.
        bands: numbers of the bands to read from 1 on. None takes those of the processor.

    Raises:
        ValueError: if the model is in training mode or has no logits of pixels, or the protocol has scales.
        RasterError: if the raster has no such bands, or is damaged.
    """
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() first")
    protocol = protocol or InferenceProtocol()
    window, numbers = raster_window(model, protocol), raster_bands(processor, raster, bands)
    wanted = rows or slice(0, raster.height)
    held = _RasterRows(raster, numbers)
    flips = (False, True) if protocol.flip else (False,)
    sources = [_Windows(held, processor, model, flipped) for flipped in flips]
    views = [_view_bands(model, source, window, wanted) for source in sources]
    decision, row = decision_of(model.config), wanted.start
    while row < wanted.stop:
        with torch.no_grad():  # not around `yield`, where it would be in effect for the caller
            logits = [next(view)[0] for view in views]
            logits = [one.flip(-1) if flipped else one for one, flipped in zip(logits, flips, strict=True)]
            own = slice(row, row + logits[0].shape[1])
            band = SegmentedBand.of_logits(own, [_float(one) for one in logits], decision)
        yield RasterBand(band, held.valid_rows(own))
        row = own.stop


def _view_bands(
    model: PreTrainedModel, source: "_Windows", window: SlidingWindow, rows: slice
) -> Iterator[torch.Tensor]:
    """Yield the logits `(1, num_labels, rows, width)` of the rows of one view."""
    config: Any = model.config
    takes_window = hasattr(config, "sliding_window")

    def forward(part: torch.Tensor, sliding_window: SlidingWindow | bool = False) -> torch.Tensor:
        if not source.take_found():
            return part.new_zeros((len(part), config.num_labels, *part.shape[2:]))
        options: dict[str, Any] = {"sliding_window": sliding_window} if takes_window else {}
        logits = getattr(model(pixel_values=part, **options), "logits", None)
        if logits is None or logits.ndim != 4:
            raise ValueError(
                f"{type(model).__name__} returns no logits of pixels: a model for semantic segmentation is needed"
            )
        if logits.shape[2:] == part.shape[2:]:
            return logits
        return F.interpolate(logits, size=part.shape[2:], mode="bilinear", align_corners=False)

    height, width = source.shape[2:]
    if height >= window.size[0] and width >= window.size[1]:
        yield from slide_bands(forward, source, window, rows)
        return
    # The model itself handles images smaller than its window: Segmenter enlarges them.
    logits = forward(source[..., slice(0, height), slice(0, width)], window if takes_window else False)
    step = max(MAX_BAND_BYTES // (logits[0, :, 0].numel() * logits.element_size()), 1)
    for start in range(rows.start, rows.stop, step):
        yield logits[:, :, start : min(start + step, rows.stop)]


def has_windows(window: SlidingWindow, size: Sequence[int]) -> bool:
    """Return whether a raster of (height, width) pixels is run in windows, so that any rows can be asked for."""
    return size[0] >= window.size[0] and size[1] >= window.size[1]


class _RasterRows:
    """Rows of a raster in memory, each of which is read once where windows go from top to bottom."""

    def __init__(self, raster: Raster, bands: Sequence[int] | None):
        self.raster, self.bands = raster, bands
        self.first = self.end = 0
        self.values: np.ndarray | None = None
        self.valid: np.ndarray | None = None

    def window(self, rows: slice, columns: slice) -> BandImage:
        self._hold(rows)
        assert self.values is not None and self.valid is not None
        part = slice(rows.start - self.first, rows.stop - self.first)
        valid = self.valid[part, columns]
        return BandImage(self.values[:, part, columns], None if valid.all() else valid)

    def valid_rows(self, rows: slice) -> np.ndarray:
        self._hold(rows)
        assert self.valid is not None
        return self.valid[rows.start - self.first : rows.stop - self.first].copy()

    def _hold(self, rows: slice) -> None:
        if self.values is not None and self.valid is not None and self.first <= rows.start <= self.end:
            if rows.stop <= self.end:
                return
            kept = slice(rows.start - self.first, None)
            values, valid = self._read(slice(self.end, rows.stop))
            self.values = np.concatenate([self.values[:, kept], values], axis=1)
            self.valid = np.concatenate([self.valid[kept], valid])
        else:
            self.values, self.valid = self._read(rows)
        self.first, self.end = rows.start, rows.stop

    def _read(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        image = read_bands(self.raster, self.bands, rows)
        valid = np.ones(image.values.shape[1:], bool) if image.valid is None else image.valid
        return image.values, valid


class _Windows:
    """The network input of one view of a raster, made window by window."""

    def __init__(self, held: _RasterRows, processor: Any, model: PreTrainedModel, flipped: bool):
        self.held, self.processor, self.flipped = held, processor, flipped
        self.device, self.dtype = model.device, model.dtype
        bands = held.raster.bands if held.bands is None else len(held.bands)
        self.shape = (1, bands, held.raster.height, held.raster.width)
        self._found = False  # whether a window since the last call of the model held data

    def take_found(self) -> bool:
        """Return whether a window that was made since the last call of this method holds data."""
        found, self._found = self._found, False
        return found

    def __getitem__(self, index: WindowIndex) -> torch.Tensor:
        _, rows, columns = index
        width = self.shape[3]
        if self.flipped:
            columns = slice(width - columns.stop, width - columns.start)
        image = self.held.window(rows, columns)
        self._found = self._found or image.valid is None or bool(image.valid.any())
        if processor_bands(self.processor) is not None:
            inputs = self.processor(images=image, do_resize=False, return_tensors="pt")
        else:
            colours = _colours(image, self.held.raster, self.processor)
            options = {"do_resize": False, "input_data_format": "channels_first", "return_tensors": "pt"}
            inputs = self.processor(images=colours, **options)
        pixel_values = inputs["pixel_values"].to(self.device, self.dtype)
        return pixel_values.flip(-1) if self.flipped else pixel_values


def _colours(image: BandImage, raster: Raster, processor: Any) -> np.ndarray:
    """Return the colours `(3, h, w)` of a window, with the mean of the processor in pixels without data."""
    values = image.values
    if raster.palette is not None and len(values) == 1:
        values = raster.palette[values[0]].transpose(2, 0, 1)
    elif len(values) == 1:
        values = np.repeat(values, 3, axis=0)
    largest = np.iinfo(values.dtype).max
    mean = [float(value) * largest for value in getattr(processor, "image_mean", None) or (0, 0, 0)]
    return np.ascontiguousarray(filled(BandImage(values, image.valid), mean))


def _float(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


__all__ = [
    "DEFAULT_WINDOW",
    "RasterBand",
    "has_windows",
    "raster_bands",
    "raster_window",
    "segment_raster_bands",
]
