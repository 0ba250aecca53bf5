# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`segtransformers check-data`: read every image and mask of a data set once and report errors."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..escaping import one_line, printable
from ..terminal import progress_bar
from .data_options import (
    BandsOption,
    ClassesOption,
    ColumnsOption,
    ImageEndingOption,
    KindOption,
    LabelMapOption,
    MaskEndingOption,
    MultiLabelOption,
    ReduceLabelsOption,
    SubsetOption,
    TileOption,
    load_data,
)
from .errors import UserError, error_line, one_line_errors
from .output import document, message, result, result_table

if TYPE_CHECKING:
    from ..datasets import DataReport, SegmentationDataset

MAX_LISTED_ERRORS = 20  # of each split


def check_data(
    source: Annotated[str, typer.Argument(metavar="FOLDER_OR_ID", help="A folder, or a data set on the Hub.")],
    split: Annotated[str | None, typer.Option(help="Such as train. By default all splits.")] = None,
    kind: KindOption = None,
    classes: ClassesOption = None,
    reduce_labels: ReduceLabelsOption = None,
    label_map: LabelMapOption = None,
    image_ending: ImageEndingOption = None,
    mask_ending: MaskEndingOption = None,
    columns: ColumnsOption = None,
    subset: SubsetOption = None,
    multi_label: MultiLabelOption = False,
    bands: BandsOption = None,
    tile: TileOption = None,
    statistics: Annotated[
        bool,
        typer.Option(
            "--statistics",
            help="Compute the mean and deviation of each band of the training images and write them into the folder, "
            "where train finds them.",
        ),
    ] = False,
) -> None:
    """Read every image and mask of a data set, print how often each class occurs, and list errors."""
    # imports torch, which takes seconds that --help should not cost
    from ..datasets import check_dataset

    options = {
        "reduce_labels": reduce_labels,
        "label_map": label_map,
        "image_ending": image_ending,
        "mask_ending": mask_ending,
        "columns": columns,
        "subset": subset,
        "strict": False,
        "multi_label": multi_label or None,
        "bands": bands,
        "tile": tile,
    }
    faulty: list[str] = []
    splits: list[dict[str, Any]] = []
    wanted = statistics
    with one_line_errors(ValueError, ImportError), _without_warnings():
        if statistics and bands is None:
            raise UserError("--statistics needs --bands, such as --bands all")
        for data, named in _splits(source, split, kind, classes, options):
            if isinstance(data, str):
                error_line(data)
                faulty.append(one_line(data))
                continue
            with progress_bar(len(data), "sample") as bar:
                report = check_dataset(data, bar.update)
            _print_report(data, report, named)
            for error in report.errors[:MAX_LISTED_ERRORS]:
                error_line(error)
            if len(report.errors) > MAX_LISTED_ERRORS:
                error_line(f"and {len(report.errors) - MAX_LISTED_ERRORS} more")
            faulty += map(one_line, report.errors)
            splits.append(_summary(data, report))
            if wanted and not report.errors:  # those of the first split, which is train
                _write_statistics(data)
                wanted = False
        document({"source": source, "splits": splits, "errors": faulty})
        if len(faulty) > 1:
            raise UserError(f"{len(faulty)} errors in {source}")
        if faulty:
            raise typer.Exit(1)


def _write_statistics(data: "SegmentationDataset") -> None:
    """Write the statistics of the bands into the folder of the data, and print them."""
    from ..datasets import band_statistics

    with progress_bar(len(data), "sample", "statistics") as bar:
        found = band_statistics(data, progress=bar.update)
    path = found.save(Path(data.source).expanduser())
    rows = [
        (str(band), *(f"{number:.6g}" for number in numbers))
        for band, *numbers in zip(found.bands, found.mean, found.std, found.minimum, found.maximum, strict=True)
    ]
    columns = ("band", "mean", "deviation", "least", "largest")
    plain = [f"  {row[0]:>4}  " + "  ".join(f"{cell:>12}" for cell in row[1:]) for row in (columns, *rows)]
    result_table("\n".join(plain), columns, rows)
    message(f"{found.pixels} pixels of {found.dtype}; written to {printable(path, None)}")


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence the warnings of the loader, because the report has them as notes."""
    logger = logging.getLogger("segtransformers.datasets.loading")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _splits(
    source: str, split: str | None, kind: str | None, classes: str | None, options: dict[str, Any]
) -> Iterator[tuple["SegmentationDataset | str", bool]]:
    """Yield each split, and whether its classes have names. A split that cannot be loaded is yielded as its error."""
    # these import torch, too
    from ..datasets import DataError
    from ..datasets.loading import MissingClassesError
    from ..datasets.pairs import MissingMasksError, MissingSplitError

    found, failed = False, set()
    for name in ("train", "validation", "test") if split is None else (split,):
        named = True
        try:
            try:
                data = load_data(source, name, kind, classes, **options)
            except MissingClassesError:
                # value 255 means no class, so reduced labels can be 0 to 253 only
                most = "31" if options["multi_label"] else "254" if options["reduce_labels"] else "255"
                data, named = load_data(source, name, kind, most, **options), False
        except MissingSplitError as error:
            unlabelled = isinstance(error, MissingMasksError)
            if split is not None:
                raise
            if unlabelled and name != "test":
                failed.add(str(error))
                yield str(error), False
                continue
            if unlabelled:
                message(f"note: the split test is left out: {one_line(error)}")
            continue
        except DataError as error:
            if str(error) not in failed:  # an error of the whole folder, such as of its classes, occurs for every split
                yield str(error), False
            failed.add(str(error))
            continue
        found = True
        yield data, named
        if data.split is None:  # the source has no splits
            return
    if not found and not failed:
        raise UserError(f"{source} has none of the splits train, validation and test: name the split with --split")


def _print_report(data: "SegmentationDataset", report: "DataReport", named: bool) -> None:
    """Print the classes of a split and notes about it. `named` says whether the classes have names."""
    split = "" if data.split is None else f" of {data.split}"
    sizes = ""
    if report.smallest is not None and report.largest is not None:
        ends = [f"{width} x {height}" for width, height in dict.fromkeys((report.smallest, report.largest))]
        sizes = f", {' to '.join(ends)} pixels"
    title = f"{data.source}: {report.samples} of {len(data)} samples{split} are without errors ({data.kind}){sizes}"
    total = max(1, report.all_pixels)
    shown = list(range(data.num_labels)) if named else report.images.nonzero()[0].tolist()
    names = {index: printable(data.id2label[index]) for index in shown}
    width = max([len("no class"), *map(len, names.values())])
    columns = ("", "class", "pixels", "samples")
    rows = [
        (str(index), names[index], f"{100 * report.pixels[index] / total:.2f} %", str(report.images[index]))
        for index in shown
    ]
    rows.append(("", "no class", f"{100 * report.no_class / total:.2f} %", ""))
    plain = [f"  {row[0]:>4} {row[1]:<{width}}  {row[2]:>8}  {row[3]:>7}".rstrip() for row in (columns, *rows)]
    title = printable(title, None)
    result_table("\n".join([title, *plain]), columns, rows, title, left=("class",))
    notes = report.notes
    if not named:
        count = shown[-1] + 1 if shown else 0
        result(
            f"The classes have no names: write {count} names into {printable(data.source)}/classes.txt, one per line"
        )
        notes = [text for text in notes if "never occur" not in text]
    for text in notes:
        result(f"note: {printable(text, None)}")


def _summary(data: "SegmentationDataset", report: "DataReport") -> dict[str, Any]:
    """Return a split as the JSON document has it."""
    return {
        "split": data.split,
        "kind": data.kind,
        "samples": len(data),
        "without_errors": report.samples,
        "smallest": report.smallest,
        "largest": report.largest,
        "classes": [
            {
                "index": index,
                "name": data.id2label[index],
                "pixels": int(report.pixels[index]),
                "samples": int(report.images[index]),
            }
            for index in range(data.num_labels)
        ],
        "all_pixels": int(report.all_pixels),
        "no_class": int(report.no_class),
        "notes": list(report.notes),
        "errors": [one_line(error) for error in report.errors],
    }
