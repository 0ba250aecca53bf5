# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`segtransformers evaluate`: IoU and other figures on a data set, by the published protocol or another.

Heavy modules are imported inside functions, so that the help and mistyped options cost no time.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from ..files import complete_file
from ..freed_memory import keep_freed_memory
from ..packaged import packaged_model_path
from ..version import __version__
from .common import (
    BlendOption,
    DeviceOption,
    FlipOption,
    MarginOption,
    MultiScaleOption,
    PrecisionOption,
    ScalesOption,
    StrideOption,
    WindowOption,
    check_file,
    check_folder,
    inference_protocol,
    load_model,
    network_dtype,
)
from .data_options import (
    ClassesOption,
    ColumnsOption,
    ImageEndingOption,
    KindOption,
    LabelMapOption,
    MaskEndingOption,
    ReduceLabelsOption,
    SubsetOption,
    TileOption,
    load_data,
)
from .errors import UserError, note, one_line_errors
from .output import document, is_quiet, message, result, result_table
from .processes import process_group


def evaluate(
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="A folder, a Hub id, the name of a published model, or packaged.")
    ],
    data: Annotated[str, typer.Option(metavar="DIR_OR_ID", help="A folder with images and masks, or a Hub id.")],
    split: Annotated[str, typer.Option(help="The part to evaluate.")] = "validation",
    kind: KindOption = None,
    classes: ClassesOption = None,
    reduce_labels: ReduceLabelsOption = None,
    label_map: LabelMapOption = None,
    image_ending: ImageEndingOption = None,
    mask_ending: MaskEndingOption = None,
    columns: ColumnsOption = None,
    subset: SubsetOption = None,
    tile: TileOption = None,
    multi_scale: MultiScaleOption = False,
    scales: ScalesOption = None,
    flip: FlipOption = False,
    window: WindowOption = None,
    stride: StrideOption = None,
    blend: BlendOption = None,
    margin: MarginOption = None,
    output: Annotated[Path, typer.Option(help="JSON file for the results.")] = Path("results.json"),
    save_predictions: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the label maps, as PNG files.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an evaluation that was interrupted.")] = False,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Measure the temperature at which the probabilities fit this data best, and save it in the config of "
            "the model, if that is a folder. Labels stay the same.",
        ),
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first images.")] = None,
    published: Annotated[
        str | None, typer.Option(metavar="CONFIG", help="Compare with this published config, not the model's own.")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0, help="Exit status 2 if the mIoU differs by more percentage points than this from the published one."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that read images ahead; by default 2 with a GPU, else 0.")
    ] = None,
    device: DeviceOption = None,
    precision: PrecisionOption = "fp32",
) -> None:
    """Measure IoU, Dice, precision and recall of a model on a data set.

    Without options it uses the single-scale protocol of the checkpoint; --multi-scale --flip is the other published
    one. Under torchrun or accelerate launch the images are divided among the processes. The counts so far are kept in a
    folder next to the output, from which --resume continues after an interruption, with the same result.
    """
    keep_freed_memory()
    import torch

    from ..evaluation import (
        ResumeLog,
        compare_with_published,
        evaluate_segmentation,
        why_not_comparable,
    )
    from ..image_processing import processor_bands
    from ..published import published_row

    with process_group() as (rank, device_of_process), one_line_errors(ValueError, OSError, ImportError):
        check_file(output, f"--output {output}")
        _refuse_older_log(output)
        if save_predictions is not None:
            check_folder(save_predictions, f"--save-predictions {save_predictions}")
        if published is not None:
            published_row(published)  # an unknown name is an error before any work
        network, processor = load_model(model, device or device_of_process, precision=precision)
        protocol = inference_protocol(processor, multi_scale, scales, flip, window, stride, blend, margin)
        samples = load_data(
            data,
            split,
            kind,
            classes,
            reduce_labels,
            label_map,
            image_ending,
            mask_ending,
            columns,
            subset,
            multi_label=getattr(network.config, "is_multi_label", False) or None,
            bands=processor_bands(processor),
            tile=tile,
        )
        complete = limit is None or limit >= len(samples)
        if not complete:
            samples = samples.select(range(limit or 0))
        if tolerance is not None:
            reason = why_not_comparable(
                network, processor, samples, protocol, source_config=published, complete=complete
            )
            if reason is not None:
                raise UserError(f"--tolerance needs a published figure to compare with: {reason}")
        if calibrate and rank == 0:
            _check_calibration(model)
        log_folder = output.with_name(f"{output.name}.resume")
        results = evaluate_segmentation(
            network,
            processor,
            samples,
            protocol,
            save_predictions=save_predictions,
            resume_log=log_folder,
            resume=resume,
            num_workers=(2 if network.device.type == "cuda" else 0) if workers is None else workers,
            progress=not is_quiet(),
            optimize=True,
            dtype=network_dtype(model, network, precision),
            calibrate=calibrate,
        )
        if rank > 0:
            return
        comparison = compare_with_published(results, processor, published, complete)
        software = {"segtransformers": __version__, "torch": torch.__version__}
        complete_results = {**results, "published": comparison, "software": software}
        write_results(complete_results, output)
        ResumeLog(log_folder, {}).remove()
        print_results(results)
        message(f"{results['images']} images, written to {output}")
        if calibrate and "reason" not in results["calibration"]:
            result(_save_calibration(results["calibration"], model))
        if comparison is not None:
            result(_comparison_line(comparison))
        document(complete_results)
        if calibrate and "reason" in results["calibration"]:
            raise UserError(f"--calibrate: {results['calibration']['reason']}. No temperature was saved")
        if tolerance is not None and comparison is not None and abs(comparison["difference"]) > tolerance:
            raise typer.Exit(2)


def _check_calibration(model: str) -> None:
    """Refuse a config that cannot be written, or that is the packaged model's, before any work."""
    file = Path(model) / "config.json"
    if not Path(model).is_dir():
        note(f"--model {model} is no folder, so the temperature will be in the results only")
    elif Path(model).resolve().is_relative_to(Path(packaged_model_path()).resolve()):
        raise UserError(
            f"--calibrate would change the model that is part of the installed package: copy the folder {model}, and "
            "pass the copy, or pass --model packaged for a temperature in the results only"
        )
    elif not os.access(file.parent, os.W_OK):
        raise UserError(f"--calibrate: cannot write to {file.parent}, permission denied")


def _save_calibration(found: dict[str, Any], model: str) -> str:
    """Save the temperature in the folder of the model, and return a line that describes it."""
    from ..evaluation import save_temperature

    where = ""
    if Path(model).is_dir():
        save_temperature(model, found["temperature"])
        where = f", saved in {Path(model) / 'config.json'}"
    return (
        f"temperature {found['temperature']:.2f}{where}: expected calibration error {100 * found['ece_after']:.2f} %, "
        f"{100 * found['ece_before']:.2f} % at temperature {found['temperature_before']:.2f} ({found['pixels']} pixels)"
    )


def _refuse_older_log(output: Path) -> None:
    older = output.with_name(f"{output.name}.journal")
    if older.is_dir():
        raise UserError(
            f"{older} is the resume log of an earlier version, which this version cannot continue: delete that folder"
        )


def write_results(results: dict[str, Any], output: Path) -> None:
    """Write results as JSON, completely or not at all."""
    with complete_file(output) as file:
        file.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", errors="replace")


def print_results(results: dict[str, Any]) -> None:
    """Print the figures of the classes and their means."""
    from ..evaluation import results_table
    from ..evaluation.results import table_rows

    classes, means = table_rows(results)
    plain = results_table(results)
    divider = plain.index("Summary:")
    result_table(plain[:divider].rstrip("\n"), classes[0], classes[1:], dispensable=("Precision", "Dice"))
    result_table(plain[divider:], means[0], means[1:])


def _comparison_line(comparison: dict[str, Any]) -> str:
    if "reason" in comparison:
        return f"not compared with the published {comparison['config']}: {comparison['reason']}"
    text = (
        f"mIoU {comparison['measured']:.2f}, published for {comparison['config']}: {comparison['published']} "
        f"({comparison['difference']:+.2f})"
    )
    return text if comparison["note"] is None else f"{text}. Note: {comparison['note']}"
