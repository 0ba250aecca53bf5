# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`segtransformers evaluate`: mean IoU on a data set, by the published protocol or another."""

import contextlib
import datetime
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import distributed

from ..evaluation.evaluation import compare_with_published, evaluate_segmentation, results_table, why_not_comparable
from ..evaluation.resume_log import Journal
from ..published import published_row
from ..version import __version__
from .common import (
    Flip,
    MultiScale,
    Scales,
    Stride,
    UserError,
    Window,
    check_folder,
    load_model,
    one_line_errors,
    view_options,
)
from .data_options import (
    ClassesOption,
    ColumnsOption,
    KindOption,
    LabelMapOption,
    MaskEndingOption,
    ReduceLabelsOption,
    SubsetOption,
    load_data,
)


def evaluate(
    model: Annotated[str, typer.Option(metavar="DIR_OR_ID", help="A converted folder, a Hub id, or packaged.")],
    data: Annotated[str, typer.Option(metavar="DIR_OR_ID", help="A folder with images and masks, or a Hub id.")],
    split: Annotated[str, typer.Option(help="The part to evaluate.")] = "validation",
    kind: KindOption = None,
    classes: ClassesOption = None,
    reduce_labels: ReduceLabelsOption = None,
    label_map: LabelMapOption = None,
    mask_ending: MaskEndingOption = None,
    columns: ColumnsOption = None,
    subset: SubsetOption = None,
    multi_scale: MultiScale = False,
    scales: Scales = None,
    flip: Flip = False,
    window: Window = None,
    stride: Stride = None,
    output: Annotated[Path, typer.Option(help="JSON file for the results.")] = Path("results.json"),
    save_predictions: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the label maps, as PNG files.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an evaluation that was interrupted.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first images.")] = None,
    published: Annotated[
        str | None, typer.Option(metavar="CONFIG", help="Compare with this published config, not the model's own.")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0, help="Exit status 2 if the mIoU is further than this, in percent points, from the published."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that read ahead; 2 beside a GPU, else 0.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda; by default a GPU if there is one.")] = None,
) -> None:
    """Measure the mean IoU of a model on a data set.

    Without options it is the single-scale protocol of the checkpoint; --multi-scale --flip is the other published one.
    Under torchrun or accelerate launch every process takes its share of the images. While it runs, what was counted
    is kept in a folder beside the output, so that --resume can go on after a kill with the same result.
    """
    with _process_group() as (rank, place), one_line_errors(ValueError, OSError, ImportError):
        if output.is_dir():
            raise UserError(f"--output {output} is a folder: a JSON file is needed")
        check_folder(output.parent, f"--output {output}")
        if save_predictions is not None:
            check_folder(save_predictions, f"--save-predictions {save_predictions}")
        if published is not None:
            published_row(published)  # that there is one
        network, processor = load_model(model, device or place)
        options = view_options(processor, multi_scale, scales, flip, window, stride)
        samples = load_data(data, split, kind, classes, reduce_labels, label_map, mask_ending, columns, subset)
        complete = limit is None or limit >= len(samples)
        if not complete:
            samples = samples.select(range(limit or 0))
        if tolerance is not None:
            reason = why_not_comparable(
                network, processor, samples, **options, source_config=published, complete=complete
            )
            if reason is not None:
                raise UserError(f"--tolerance needs a published figure to compare with: {reason}")
        output.parent.mkdir(parents=True, exist_ok=True)
        journal = output.with_name(f"{output.name}.journal")
        results = evaluate_segmentation(
            network,
            processor,
            samples,
            **options,
            save_predictions=save_predictions,
            journal=journal,
            resume=resume,
            num_workers=(2 if network.device.type == "cuda" else 0) if workers is None else workers,
            progress=True,
        )
        if rank > 0:
            return
        comparison = compare_with_published(results, processor, published, complete)
        software = {"segtransformers": __version__, "torch": torch.__version__}
        write_results({**results, "published": comparison, "software": software}, output)
        Journal(journal, {}).remove()
        typer.echo(results_table(results))
        typer.echo(f"{results['images']} images, written to {output}")
        if comparison is not None:
            typer.echo(_sentence(comparison))
        if tolerance is not None and comparison is not None and abs(comparison["difference"]) > tolerance:
            raise typer.Exit(2)


@contextlib.contextmanager
def _process_group() -> Iterator[tuple[int, str | None]]:
    """Joins the processes that torchrun or accelerate launch started; gives this one's number and its device."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield 0, None
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    # gloo: a few counts are all that is exchanged. One process may be done long before another
    distributed.init_process_group("gloo", timeout=datetime.timedelta(days=7))
    try:
        count = torch.cuda.device_count()
        yield distributed.get_rank(), f"cuda:{local % count}" if count else "cpu"
    finally:
        distributed.destroy_process_group()


def write_results(results: dict[str, Any], output: Path) -> None:
    """As JSON, all of it or nothing."""
    partial = output.with_name(f".{output.name}.partial")
    partial.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(output)


def _sentence(comparison: dict[str, Any]) -> str:
    if "reason" in comparison:
        return f"not compared with the published {comparison['config']}: {comparison['reason']}"
    text = (
        f"mIoU {comparison['measured']:.2f}, published for {comparison['config']}: {comparison['published']} "
        f"({comparison['difference']:+.2f})"
    )
    return text if comparison["note"] is None else f"{text}. Note: {comparison['note']}"
