# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Every sample of a data set read once: what is wrong with it, and how often each class occurs."""

import collections
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from .loading import SegmentationDataset
from .reading import NO_CLASS, DataError

LARGE_IMAGE = 50_000_000  # pixels: training decodes all of it for every crop


@dataclass
class DataReport:
    """What [`check_dataset`] found.

    Attributes:
        samples: how many were read without fault.
        pixels: of each class, `(num_labels,)` int64.
        images: in how many samples each class occurs, `(num_labels,)` int64.
        no_class: pixels without a class.
        smallest, largest: width and height of the samples with the fewest and the most pixels.
        faults: one message per sample that cannot be used.
        remarks: what is allowed but looks like a mistake.
    """

    samples: int
    pixels: np.ndarray
    images: np.ndarray
    no_class: int = 0
    smallest: tuple[int, int] | None = None
    largest: tuple[int, int] | None = None
    faults: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def check_dataset(
    data: SegmentationDataset, progress: Callable[[int], object] | None = None, workers: int | None = None
) -> DataReport:
    """Read every sample of `data`.

    Args:
        progress: called with the number of samples done since the last call.
        workers: threads that read; by default one per core.
    """
    report = DataReport(0, np.zeros(data.num_labels, np.int64), np.zeros(data.num_labels, np.int64))
    empty = large = 0
    binary = True
    for found in _in_parallel(data, workers or os.cpu_count() or 1):
        if isinstance(found, str):
            report.faults.append(found)
        else:
            size, counts = found
            report.samples += 1
            report.pixels += counts[: data.num_labels]
            report.images += counts[: data.num_labels] > 0
            report.no_class += int(counts[NO_CLASS])
            empty += counts[NO_CLASS] == counts.sum()
            large += size[0] * size[1] > LARGE_IMAGE
            binary &= bool(counts[0] + counts[NO_CLASS] == counts.sum() and counts[NO_CLASS])
            if report.smallest is None or size[0] * size[1] < report.smallest[0] * report.smallest[1]:
                report.smallest = size
            if report.largest is None or size[0] * size[1] > report.largest[0] * report.largest[1]:
                report.largest = size
        if progress is not None:
            progress(1)
    if report.samples:
        _add_remarks(report, data, empty, large, binary)
    return report


def _add_remarks(report: DataReport, data: SegmentationDataset, empty: int, large: int, binary: bool) -> None:
    remarks, rule = report.remarks, data.rule
    share = 100 * report.no_class / (report.no_class + report.pixels.sum())
    absent = [data.id2label[index] for index in np.flatnonzero(report.images == 0).tolist()]
    if empty == report.samples:
        cause = "; are the masks 0 throughout, where 0 means no class?" if rule.reduce_labels else ""
        report.faults.append(f"no pixel of any mask has a class{cause}")
    elif empty:
        remarks.append(f"{empty} samples have no pixel with a class")
    if binary and empty < report.samples and rule.strict_binary:
        remarks.append(
            "all masks hold only 0 and 255 (no class). If 255 is the foreground, pass label_map={0: 0, 255: 1} "
            "(--label-map 0:0,255:1)"
        )
    elif absent and len(absent) < data.num_labels:
        listed = ", ".join(absent[:8]) + (", ..." if len(absent) > 8 else "")
        remarks.append(f"{len(absent)} of {data.num_labels} classes never occur: {listed}")
        if rule.reduce_labels and report.images[-1] == 0 and share > 5:
            remarks.append(
                f"value 0 of the masks is taken for no class and the last class never occurs, while {share:.0f} % of "
                "the pixels have no class: if 0 is a class, leave out reduce_labels (--no-reduce-labels)"
            )
        elif not rule.reduce_labels and not rule.only_map and report.images[0] == 0 and report.images[-1]:
            remarks.append(
                f"value 0 of the masks ({data.id2label[0]}) never occurs: if classes start at 1, pass "
                "reduce_labels=True (--reduce-labels)"
            )
    if large:
        remarks.append(
            f"{large} images have more than {LARGE_IMAGE // 1_000_000} million pixels: training reads all of an image "
            "for every crop, so cut them into tiles"
        )
    if data.ignored_files:
        listed = ", ".join(str(path) for path in data.ignored_files[:5])
        remarks.append(f"{len(data.ignored_files)} other files are left out: {listed}")


def _in_parallel(data: SegmentationDataset, workers: int) -> Iterator[str | tuple[tuple[int, int], np.ndarray]]:
    """Of each sample in turn its size and pixels per label `(256,)`, or what is wrong; few wait in memory at once."""
    waiting: collections.deque = collections.deque()
    with ThreadPoolExecutor(workers) as pool:
        for index in range(len(data)):
            waiting.append(pool.submit(_look_at, data, index))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _look_at(data: SegmentationDataset, index: int) -> str | tuple[tuple[int, int], np.ndarray]:
    try:
        sample = data[index]
    except DataError as error:
        return str(error)
    return sample.image.size, np.bincount(sample.labels.ravel(), minlength=NO_CLASS + 1)
