# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`segtransformers train`: fine-tune a model by a published recipe or your own."""

import contextlib
import dataclasses
import importlib.util
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .checkpoints import has_checkpoints, remove_incomplete
from .common import check_folder, check_input_file, model_source, named_model
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
from .train_arguments import parse_training_arguments, with_batch_and_precision
from .train_choices import check_preset, command_line, with_choices
from .train_data import check_samples, load_parts
from .train_options import TrainOptions
from .train_run import TrainingRun, last_line

if TYPE_CHECKING:
    from ..training import Recipe
# Functions import torch, transformers and the parts of this package that load them, so that --help is fast.


def train(
    context: typer.Context,
    data: Annotated[str, typer.Option(metavar="DIR_OR_ID", help="A folder with images and masks, or a Hub id.")],
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the model, the report, checkpoints and drawn predictions.")
    ],
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME_OR_FILE",
            help="A recipe (`segtransformers recipes`), or a file; by default chosen from the data and the machine.",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Without --recipe: fast, balanced (the default) or best."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="DIR_OR_ID_OR_TRUNK",
            help="Model to start from: a model (packaged: the small one of this package), a backbone or a ViT of timm; "
            "by default the recipe's own model with random weights.",
        ),
    ] = None,
    trunk_weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Pre-trained weights of the trunk in the original format.")
    ] = None,
    crop_size: Annotated[
        str | None, typer.Option(metavar="PIXELS", help="Side of the training crops, or HEIGHTxWIDTH.")
    ] = None,
    kind: KindOption = None,
    classes: ClassesOption = None,
    reduce_labels: ReduceLabelsOption = None,
    label_map: LabelMapOption = None,
    image_ending: ImageEndingOption = None,
    mask_ending: MaskEndingOption = None,
    columns: ColumnsOption = None,
    subset: SubsetOption = None,
    bands: BandsOption = None,
    colour_bands: Annotated[
        str | None,
        typer.Option(
            metavar="R,G,B",
            help="Which bands hold red, green and blue: they get the weights of an RGB model, and only their colours "
            "vary in training. By default those of --bands, if it names three.",
        ),
    ] = None,
    tile: TileOption = None,
    split: Annotated[str, typer.Option(help="Part of the data to train on.")] = "train",
    eval_split: Annotated[str, typer.Option(help="Part of the data to evaluate on.")] = "validation",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use only this many images of each part, for a trial.")
    ] = None,
    pseudo_labels: Annotated[
        Path | None, typer.Option(metavar="DIR", help="More training data, as `autolabel` writes them.")
    ] = None,
    pseudo_weight: Annotated[
        float,
        typer.Option(min=0.0, max=1000.0, help="How often each of these is drawn, for one draw of a labelled image."),
    ] = 1.0,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="DIR_OR_ID",
            help="A trained model with the same classes, whose predictions are learned besides the labels.",
        ),
    ] = None,
    teacher_weight: Annotated[
        float, typer.Option(min=0.001, max=1000.0, help="Factor of the loss of the teacher's predictions.")
    ] = 1.0,
    teacher_temperature: Annotated[
        float, typer.Option(min=0.1, max=100.0, help="Divisor of the logits in this loss.")
    ] = 1.0,
    binary: Annotated[
        bool, typer.Option("--binary", help="One class against the background, for data of two classes.")
    ] = False,
    multi_label: MultiLabelOption = False,
    losses: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help="Losses with weights, such as cross_entropy,dice:3, in place of the recipe's."
        ),
    ] = None,
    class_weights: Annotated[
        str | None,
        typer.Option(
            metavar="FORMULA", help="Weights of classes in the loss: auto (from the data), a formula, or numbers."
        ),
    ] = None,
    sampling: Annotated[
        str | None,
        typer.Option(metavar="METHOD", help="Training samples by their classes: rare_class or repeat_factor."),
    ] = None,
    ema: Annotated[
        float | None,
        typer.Option(metavar="DECAY", help="Average the weights of all steps with this decay, such as 0.999."),
    ] = None,
    batch_size: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER",
            help="Images at once on a device, or auto: as many as the memory holds. The recipe's batch stays, by "
            "gradient accumulation.",
        ),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(metavar="NAME", help="fp32, bf16, fp16, or auto: what the machine computes fastest.")
    ] = None,
    keep_best: Annotated[
        bool, typer.Option("--keep-best", help="The checkpoint with the best mIoU becomes the model, not the last.")
    ] = False,
    early_stopping: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="End after N evaluations without a better mIoU; implies --keep-best."),
    ] = None,
    cache_features: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Run a frozen plain ViT once on each of N augmented versions of an image, and train on its features.",
        ),
    ] = None,
    freeze_trunk: Annotated[bool, typer.Option("--freeze-trunk", help="Keep the pre-trained trunk fixed.")] = False,
    whole: Annotated[
        bool, typer.Option("--whole", help="Save a frozen trunk, too, and not only the name of its weights.")
    ] = False,
    lora_rank: Annotated[
        int | None, typer.Option(min=1, help="Train low-rank updates (LoRA) of the trunk, of this rank (needs peft).")
    ] = None,
    prediction_images: Annotated[int, typer.Option(min=0, help="Predictions to draw at each evaluation.")] = 4,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write report.html.")] = True,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint in --output.")] = False,
) -> None:
    """Fine-tune a model for semantic segmentation.

    --data and --output are enough: the command then chooses recipe, model, crops, steps, batch size and precision from
    the data and the machine, and prints the choices with the full command.

    All options of transformers' TrainingArguments may follow and take precedence over the recipe, such as --max_steps
    2000 --per_device_train_batch_size 4 --bf16 --report_to tensorboard. Batch size per device and gradient accumulation
    are chosen to give the recipe's batch size on the processes that torchrun or accelerate launch started. Ctrl-C and
    SIGTERM save a checkpoint before the command ends.

    The output folder gets the model and its image processor, results.json with the IoU of each class, recipe.json, and
    report.html with curves, figures of each class and the worst images.
    """
    options = TrainOptions(**{name: value for name, value in locals().items() if name != "context"})
    with _one_line():
        if importlib.util.find_spec("accelerate") is None:
            raise UserError("training needs accelerate, which is not installed: pip install 'segtransformers[train]'")
        if bands is None and colour_bands is not None:
            raise UserError("--colour-bands needs --bands, the bands that the model takes")
        if recipe is not None:
            if preset is not None:
                raise UserError("--preset and --recipe exclude each other: a preset chooses the recipe")
            _recipe(options)  # errors in it come before the data are read
        elif preset is not None:
            check_preset(preset)
        words = list(context.args)
        changes = parse_training_arguments(words)
        with_batch_and_precision(changes, batch_size, precision)
        _check_output(output, resume)
        source = None if model is None else _model(model, trunk_weights)
        parts = load_parts(data, split, eval_split, limit, options.reading)
        pseudo = (
            None if pseudo_labels is None else load_data(str(pseudo_labels), "train", "folders", bands=parts[0].bands)
        )
        check_samples(parts if pseudo is None else [*parts, pseudo])
        if recipe is None:
            options, chosen = with_choices(options, changes, words, parts, train)
            words += chosen
            changes = {**parse_training_arguments(chosen), **changes}
            source = None if options.model is None else _model(options.model, trunk_weights)
        weighted = None if pseudo is None or not pseudo_weight else (pseudo, pseudo_weight)
        changes = with_batch_and_precision(changes, options.batch_size, options.precision)
        command = shlex.join(command_line(options, words, train))
        TrainingRun(options, _recipe(options), changes, parts, command, source, weighted).run()


def _recipe(options: TrainOptions) -> "Recipe":
    """Return the recipe with the changes that the options make to it."""
    from ..training.loss_settings import recipe_with_losses
    from ..training.recipe_settings import SamplingSettings, WeightAverageSettings

    assert options.recipe is not None, "chosen before"
    recipe = recipe_with_losses(_named_recipe(options.recipe), options.losses, options.class_weights)
    if options.sampling is not None:
        recipe = dataclasses.replace(recipe, sampling=SamplingSettings(method=options.sampling))
    if options.ema is not None:
        recipe = dataclasses.replace(recipe, weight_average=WeightAverageSettings(decay=options.ema))
    return recipe


def _named_recipe(name: str) -> "Recipe":
    from ..training import Recipe, get_recipe

    path = Path(name)
    is_path = path.suffix in (".json", ".yaml", ".yml")
    if is_path and not os.path.lexists(path):
        raise UserError(f"the recipe file {name} does not exist")
    if is_path or os.path.exists(path):
        check_input_file(path, f"--recipe {name}", "a published recipe or an existing file")
        return Recipe.from_file(path)
    return get_recipe(name)


def _model(name: str, trunk_weights: Path | None) -> str:
    """Return the source of the model to start from, or the name of a trunk of timm, before the data are read.

    Raises:
        UserError: if it does not exist, or cannot be reached.
    """
    from ..models.trunk import check_trunk_available
    from ..training.starting_points import is_timm_trunk

    name = named_model(name)
    if not is_timm_trunk(name):
        return model_source(name)
    if trunk_weights is None:
        check_trunk_available(name)
    return name


def _check_output(output: Path, resume: bool) -> None:
    """Raise UserError for an output folder that cannot be used, before the run starts."""
    check_folder(output, f"--output {output}")
    if int(os.environ.get("RANK", "0")) != 0:
        return
    remove_incomplete(output)  # of a run that was killed
    if not resume and has_checkpoints(output):
        raise UserError(
            f"{output} holds checkpoints of another run: continue it with --resume, or choose another folder"
        )


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Print errors in one line, without the traceback that errors of worker processes contain."""
    with one_line_errors():
        try:
            yield
        except (ValueError, FloatingPointError, OSError, ImportError) as error:
            raise UserError(last_line(error)) from None
