# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`segtransformers check-data`: read every image and mask of a data set once and report errors."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from tqdm import tqdm

from ..escaping import one_line, printable
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
from .errors import UserError, one_line_errors

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
    errors = 0
    wanted = statistics
    with one_line_errors(ValueError, ImportError), _without_warnings():
        if statistics and bands is None:
            raise UserError("--statistics needs --bands, such as --bands all")
        for data, named in _splits(source, split, kind, classes, options):
            if isinstance(data, str):
                typer.echo(f"error: {one_line(data)}", err=True)
                errors += 1
                continue
            with tqdm(total=len(data), unit="sample", disable=None, leave=False) as bar:
                report = check_dataset(data, bar.update)
            typer.echo("\n".join(printable(line, None) for line in _lines(data, report, named)))
            for error in report.errors[:MAX_LISTED_ERRORS]:
                typer.echo(f"error: {one_line(error)}", err=True)
            if len(report.errors) > MAX_LISTED_ERRORS:
                typer.echo(f"error: and {len(report.errors) - MAX_LISTED_ERRORS} more", err=True)
            errors += len(report.errors)
            if wanted and not report.errors:  # those of the first split, which is train
                _write_statistics(data)
                wanted = False
        if errors > 1:
            raise UserError(f"{errors} errors in {source}")
        if errors:
            raise typer.Exit(1)


def _write_statistics(data: "SegmentationDataset") -> None:
    """Write the statistics of the bands into the folder of the data, and print them."""
    from ..datasets import band_statistics

    with tqdm(total=len(data), unit="sample", desc="statistics", disable=None, leave=False) as bar:
        found = band_statistics(data, progress=bar.update)
    path = found.save(Path(data.source).expanduser())
    typer.echo(f"  {'band':>4}  {'mean':>12}  {'deviation':>12}  {'least':>12}  {'largest':>12}")
    for numbers in zip(found.bands, found.mean, found.std, found.minimum, found.maximum, strict=True):
        typer.echo(f"  {numbers[0]:>4}  " + "  ".join(f"{number:>12.6g}" for number in numbers[1:]))
    typer.echo(f"{found.pixels} pixels of {found.dtype}; written to {printable(path, None)}")


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
                typer.echo(f"note: the split test is left out: {one_line(error)}")
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


def _lines(data: "SegmentationDataset", report: "DataReport", named: bool) -> list[str]:
    """Return the lines of a report. `named` says whether the classes have names."""
    split = "" if data.split is None else f" of {data.split}"
    sizes = ""
    if report.smallest is not None and report.largest is not None:
        ends = [f"{width} x {height}" for width, height in dict.fromkeys((report.smallest, report.largest))]
        sizes = f", {' to '.join(ends)} pixels"
    lines = [f"{data.source}: {report.samples} of {len(data)} samples{split} are without errors ({data.kind}){sizes}"]
    total = max(1, report.all_pixels)
    shown = list(range(data.num_labels)) if named else report.images.nonzero()[0].tolist()
    names = {index: printable(data.id2label[index]) for index in shown}
    width = max([len("no class"), *map(len, names.values())])
    lines.append(f"  {'':>4} {'class':<{width}}  {'pixels':>8}  {'samples':>7}")
    for index in shown:
        share = 100 * report.pixels[index] / total
        lines.append(f"  {index:>4} {names[index]:<{width}}  {share:6.2f} %  {report.images[index]:>7}")
    lines.append(f"  {'':>4} {'no class':<{width}}  {100 * report.no_class / total:6.2f} %")
    if not named:
        count = shown[-1] + 1 if shown else 0
        lines.append(f"The classes have no names: write {count} names into {data.source}/classes.txt, one per line")
        return lines + [f"note: {note}" for note in report.notes if "never occur" not in note]
    return lines + [f"note: {note}" for note in report.notes]
