# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Check a data set: read every sample once, list errors, and count the pixels of each class."""

import collections
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from ..rasters import BandImage
from .class_counts import ClassCounts, cached_counts, save_counts
from .loading import SegmentationDataset
from .multi_label import MultiLabelRule
from .reading import NO_CLASS, DataError, ImageFacts, LabelRule

DARK = 64  # an image of more than 8 bits whose values stay below is nearly black
LARGE_IMAGE = 50_000_000  # pixels; training decodes the whole image for every crop
# notes on images, with their number
ODDITIES = {
    "turned": "{} images are turned or mirrored by their EXIF data, and masks never are: if the masks were drawn on "
    "the images as stored, their labels are misplaced. Look at one, and save such images upright",
    "bands": "{} image files have more bands than the three that are used as red, green and blue: pass bands='all' "
    "(--bands all) to use them",
    "dark": "{} images of more than 8 bits are nearly black, because 16 bits are scaled by their full range: scale "
    "values of 12 bits to 8 or 16 bits before",
}


@dataclass(frozen=True)
class SampleFacts:
    """Facts about a sample that a report needs.

    Attributes:
        size: (width, height).
        pixels: number of pixels of each class.
        valid: number of pixels with a label for each class; of multi-label data only.
        no_class: number of pixels without any label.
        is_zero_or_void: whether all labels are 0 or 255.
        overlap: number of pixels with several classes.
        oddities: keys of `ODDITIES`.
    """

    size: tuple[int, int]
    pixels: np.ndarray
    valid: np.ndarray | None
    no_class: int
    is_zero_or_void: bool
    overlap: int
    oddities: list[str]


@dataclass
class DataReport:
    """The result of [`check_dataset`].

    Attributes:
        samples: number of samples that were read without an error.
        pixels: number of pixels of each class, `(num_labels,)` int64.
        images: number of samples in which each class occurs, `(num_labels,)` int64.
        no_class: number of pixels without a class; of multi-label data, without a label.
        all_pixels: number of pixels of all samples.
        overlap: number of pixels with several classes.
        smallest, largest: (width, height) of the samples with the fewest and the most pixels.
        errors: one message for each sample that cannot be used.
        counts: pixels of each class in each sample, or None if a sample has an error. They are also cached for
            [`cached_counts`].
        empty: number of samples without any pixel of a class (of multi-label data, without any label); `first_empty`
            names one.
        sample_errors: those of the errors that are about one sample each.
        notes: messages about data that are allowed but look like a mistake.
    """

    samples: int
    pixels: np.ndarray
    images: np.ndarray
    no_class: int = 0
    all_pixels: int = 0
    overlap: int = 0
    smallest: tuple[int, int] | None = None
    largest: tuple[int, int] | None = None
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sample_errors: list[str] = field(default_factory=list)
    counts: ClassCounts | None = None
    empty: int = 0
    first_empty: str | None = None


def check_dataset(
    data: SegmentationDataset, progress: Callable[[int], object] | None = None, workers: int | None = None
) -> DataReport:
    """Read every sample of `data` and report errors, class frequencies and likely mistakes.

    Args:
        data: the data set.
        progress: called with the number of samples done since the last call.
        workers: number of threads that read. None takes one per core.
    """
    report = DataReport(0, np.zeros(data.num_labels, np.int64), np.zeros(data.num_labels, np.int64))
    report.errors += data.problems
    large = 0
    odd: collections.Counter[str] = collections.Counter()
    binary = True
    per_sample: list[np.ndarray] = []
    valid: list[np.ndarray] = []
    for name, result in zip(data.names, _read_in_parallel(data, workers or os.cpu_count() or 1), strict=True):
        if isinstance(result, str):
            report.errors.append(result)
            report.sample_errors.append(result)
        else:
            size = result.size
            odd.update(result.oddities)
            report.samples += 1
            per_sample.append(result.pixels)
            if result.valid is not None:
                valid.append(result.valid)
            report.pixels += result.pixels
            report.images += result.pixels > 0
            report.no_class += result.no_class
            report.all_pixels += size[0] * size[1]
            report.overlap += result.overlap
            if result.no_class == size[0] * size[1]:
                report.empty += 1
                report.first_empty = report.first_empty or name
            large += size[0] * size[1] > LARGE_IMAGE
            binary &= result.is_zero_or_void and result.no_class > 0
            if report.smallest is None or size[0] * size[1] < report.smallest[0] * report.smallest[1]:
                report.smallest = size
            if report.largest is None or size[0] * size[1] > report.largest[0] * report.largest[1]:
                report.largest = size
        if progress is not None:
            progress(1)
    if report.samples == len(data) > 0:
        of_classes = np.stack(valid).astype(np.int64) if data.multi_label else None
        report.counts = ClassCounts(np.stack(per_sample).astype(np.int64), of_classes)
        save_counts(data, report.counts)
    if report.samples:
        report.notes += [text.format(odd[kind]) for kind, text in ODDITIES.items() if odd[kind]]
        if isinstance(data.rule, MultiLabelRule):
            _add_multi_label_notes(report, data, data.rule)
        else:
            _add_notes(report, data, data.rule, binary)
        _add_general_notes(report, data, large)
    return report


def class_counts(data: SegmentationDataset) -> ClassCounts:
    """Return the pixels of each class in each sample, from the cache or by reading all samples.

    Raises:
        DataError: naming the first sample that cannot be used.
    """
    found = cached_counts(data)
    if found is not None:
        return found
    report = check_dataset(data)
    if report.counts is None:
        raise DataError(report.errors[0])
    return report.counts


def _add_multi_label_notes(report: DataReport, data: SegmentationDataset, rule: MultiLabelRule) -> None:
    """Add notes on masks of multi-label data, and an error if no pixel has a class."""
    absent = [data.id2label[index] for index in np.flatnonzero(report.images == 0).tolist()]
    if len(absent) == data.num_labels:
        report.errors.append("no pixel of any mask has a class")
        return
    if report.empty:
        report.notes.append(f"{report.empty} samples have no label, such as {report.first_empty}")
    if absent:
        report.notes.append(_absent_note(absent, data.num_labels))
    if not report.overlap and data.num_labels > 1:
        hint = (
            "if the masks hold class indices instead of bits, leave out multi_label (--multi-label)"
            if rule.of_class is None
            else "a model with one class for each pixel may be enough"
        )
        report.notes.append(f"no pixel has more than one class: {hint}")


def _absent_note(absent: list[str], num_labels: int) -> str:
    listed = ", ".join(absent[:8]) + (", ..." if len(absent) > 8 else "")
    return f"{len(absent)} of {num_labels} classes never occur: {listed}"


def _add_notes(report: DataReport, data: SegmentationDataset, rule: LabelRule, binary: bool) -> None:
    """Add notes, and an error if no sample has a class.

    Args:
        binary: whether all masks hold nothing but 0 and 255.
    """
    notes = report.notes
    share = 100 * report.no_class / (report.no_class + report.pixels.sum())
    absent = [data.id2label[index] for index in np.flatnonzero(report.images == 0).tolist()]
    if report.empty == report.samples:
        cause = "; value 0 means no class here: are all masks 0?" if rule.reduce_labels else ""
        report.errors.append(f"no pixel of any mask has a class{cause}")
    elif report.empty:
        notes.append(f"{report.empty} samples have no pixel with a class, such as {report.first_empty}")
    if binary and report.empty < report.samples and rule.strict_binary:
        notes.append(
            "all masks hold only 0 and 255 (no class). If 255 is the foreground, pass label_map={0: 0, 255: 1} "
            "(--label-map 0:0,255:1)"
        )
    elif absent and len(absent) < data.num_labels:
        notes.append(_absent_note(absent, data.num_labels))
        if rule.reduce_labels and report.images[-1] == 0 and share > 5:
            notes.append(
                f"value 0 of the masks means no class here, the last class never occurs, and {share:.0f} % of the "
                "pixels have no class: if 0 is a class, leave out reduce_labels (--no-reduce-labels)"
            )
        elif not rule.reduce_labels and not rule.label_map_only and report.images[0] == 0 and report.images[-1]:
            notes.append(
                f"value 0 of the masks ({data.id2label[0]}) never occurs: if classes start at 1, pass "
                "reduce_labels=True (--reduce-labels)"
            )


def _add_general_notes(report: DataReport, data: SegmentationDataset, large: int) -> None:
    """Add notes on images and files.

    Args:
        large: number of samples with more than `LARGE_IMAGE` pixels.
    """
    notes = report.notes
    if large:
        notes.append(
            f"{large} images have more than {LARGE_IMAGE // 1_000_000} million pixels: training reads the whole image "
            "for every crop, so pass the side of tiles that it reads instead (--tile)"
        )
    if data.ignored_files:
        listed = ", ".join(str(path) for path in data.ignored_files[:5])
        notes.append(f"{len(data.ignored_files)} other files are left out: {listed}")


def _read_in_parallel(data: SegmentationDataset, workers: int) -> Iterator[str | SampleFacts]:
    """Yield the result of [`_read_sample`] for each sample in order. At most `2 * workers` results are in memory."""
    pending: collections.deque = collections.deque()
    with ThreadPoolExecutor(workers) as pool:
        for index in range(len(data)):
            pending.append(pool.submit(_read_sample, data, index))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _read_sample(data: SegmentationDataset, index: int) -> str | SampleFacts:
    """Return what a report needs of a sample, or an error message."""
    try:
        sample = data[index]
        facts = data.facts(index)
    except (DataError, OSError) as error:
        return str(error)
    labels, oddities = sample.labels, _oddities(sample.image, facts)
    if data.multi_label:
        is_class, is_known = labels == 1, labels != NO_CLASS
        return SampleFacts(
            size=sample.image.size,
            pixels=is_class.sum((1, 2)),
            valid=is_known.sum((1, 2)),
            no_class=int((~is_known.any(0)).sum()),
            is_zero_or_void=False,
            overlap=int((is_class.sum(0) > 1).sum()),
            oddities=oddities,
        )
    counts = np.bincount(labels.ravel(), minlength=NO_CLASS + 1)
    return SampleFacts(
        size=sample.image.size,
        pixels=counts[: data.num_labels],
        valid=None,
        no_class=int(counts[NO_CLASS]),
        is_zero_or_void=bool(counts[0] + counts[NO_CLASS] == counts.sum()),
        overlap=0,
        oddities=oddities,
    )


def _oddities(image: "Image.Image | BandImage", facts: ImageFacts) -> list[str]:
    """Return the keys of `ODDITIES` that are true of an image."""
    turned = facts.orientation in (2, 3, 4) or (facts.orientation >= 5 and image.width == image.height)
    dark = facts.is_deep and isinstance(image, Image.Image) and int(np.asarray(image).max()) < DARK
    return [kind for kind, found in (("turned", turned), ("bands", facts.unused_bands > 0), ("dark", dark)) if found]
