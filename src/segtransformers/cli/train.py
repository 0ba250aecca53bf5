# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`segtransformers train`: fine-tune a model by a published recipe or your own."""

import argparse
import contextlib
import dataclasses
import difflib
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..escaping import one_line
from ..files import write_failure
from .checkpoints import has_checkpoints, last_checkpoint, remove_incomplete, save_model
from .common import check_folder, check_input_file, model_source, named_model, sides, why_not_loaded
from .data_options import (
    ClassesOption,
    ColumnsOption,
    ImageEndingOption,
    KindOption,
    LabelMapOption,
    MaskEndingOption,
    ReduceLabelsOption,
    SubsetOption,
    load_data,
)
from .errors import UserError, note, one_line_errors
from .evaluate import write_results
from .train_data import check_samples, load_parts

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from ..datasets import SegmentationDataset
    from ..datasets.class_counts import ClassCounts
    from ..training import Recipe

# options of other tools
HINTS = {
    "--lr": "use --learning_rate",
    "--base-lr": "use --learning_rate",
    "--epochs": "use --num_train_epochs",
    "--steps": "use --max_steps",
    "--iters": "use --max_steps",
    "--batch-size": "use --per_device_train_batch_size, with --gradient_accumulation_steps",
    "--batch_size": "use --per_device_train_batch_size, with --gradient_accumulation_steps",
    "--device": "a GPU is used if there is one; --use_cpu true keeps to the CPU, CUDA_VISIBLE_DEVICES chooses GPUs",
    "--workers": "use --dataloader_num_workers",
    "--num-workers": "use --dataloader_num_workers",
}
# Functions import torch, transformers and the parts of this package that load them, so that --help is fast.


def train(
    context: typer.Context,
    data: Annotated[str, typer.Option(metavar="DIR_OR_ID", help="A folder with images and masks, or a Hub id.")],
    recipe: Annotated[
        str, typer.Option(metavar="NAME_OR_FILE", help="A published recipe (`segtransformers recipes`), or a file.")
    ],
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the model, checkpoints and drawn predictions.")
    ],
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
    binary: Annotated[
        bool, typer.Option("--binary", help="One class against the background, for data of two classes.")
    ] = False,
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
    freeze_trunk: Annotated[bool, typer.Option("--freeze-trunk", help="Keep the pre-trained trunk fixed.")] = False,
    whole: Annotated[
        bool, typer.Option("--whole", help="Save a frozen trunk, too, and not only the name of its weights.")
    ] = False,
    lora_rank: Annotated[
        int | None, typer.Option(min=1, help="Train low-rank updates (LoRA) of the trunk, of this rank (needs peft).")
    ] = None,
    prediction_images: Annotated[int, typer.Option(min=0, help="Predictions to draw at each evaluation.")] = 4,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint in --output.")] = False,
) -> None:
    """Fine-tune a model for semantic segmentation.

    All options of transformers' TrainingArguments may follow and take precedence over the recipe, such as --max_steps
    2000 --per_device_train_batch_size 4 --bf16 --report_to tensorboard. Batch size per device and gradient accumulation
    are chosen to give the recipe's batch size on the processes that torchrun or accelerate launch started. Ctrl-C and
    SIGTERM save a checkpoint before the command ends.

    The output folder gets the model and its image processor, results.json with the IoU of each class, and recipe.json.
    """
    from ..training.loss_settings import recipe_with_losses
    from ..training.recipe_settings import SamplingSettings, WeightAverageSettings

    with _one_line():
        chosen = recipe_with_losses(_recipe(recipe), losses, class_weights)
        if sampling is not None:
            chosen = dataclasses.replace(chosen, sampling=SamplingSettings(method=sampling))
        if ema is not None:
            chosen = dataclasses.replace(chosen, weight_average=WeightAverageSettings(decay=ema))
        changes = parse_training_arguments(context.args)
        _check_output(output, resume)
        model = None if model is None else _model(model, trunk_weights)
        options = (kind, classes, reduce_labels, label_map, image_ending, mask_ending, columns, subset)
        parts = load_parts(data, split, eval_split, limit, options)
        pseudo = None if pseudo_labels is None else load_data(str(pseudo_labels), "train", "folders")
        check_samples(parts if pseudo is None else [*parts, pseudo])
        crop = None if crop_size is None else sides("--crop-size", crop_size)
        _run(
            chosen,
            changes,
            parts,
            output,
            model,
            trunk_weights,
            crop,
            freeze_trunk,
            whole,
            lora_rank,
            prediction_images,
            binary,
            None if pseudo is None or not pseudo_weight else (pseudo, pseudo_weight),
            resume,
        )


def _run(
    recipe: "Recipe",
    changes: dict[str, Any],
    parts: "list[SegmentationDataset]",
    output: Path,
    model: str | None,
    trunk_weights: Path | None,
    crop_size: tuple[int, int] | None,
    freeze: bool,
    whole: bool,
    lora_rank: int | None,
    prediction_images: int,
    binary: bool,
    pseudo: "tuple[SegmentationDataset, float] | None",
    resume: bool,
) -> None:
    import torch
    from transformers import set_seed
    from transformers.utils import logging

    from .. import SegMask2FormerForSemanticSegmentation, training
    from ..datasets.checking import class_counts
    from ..hub.publishing import check_destination
    from ..training.loss_settings import apply_losses
    from ..training.sampling import MixedSampling, build_sampling
    from ..training.starting_points import starting_model, trunk_name

    logging.disable_progress_bar()
    if len(parts) == 1:
        changes = {"eval_strategy": "no", **changes}
    arguments = training.training_arguments(recipe, output, **changes)
    is_main = arguments.process_index == 0
    if arguments.push_to_hub and arguments.hub_token is None and is_main:
        check_destination(arguments.hub_model_id or output.resolve().name)
    set_seed(arguments.seed)
    try:
        network, processor = starting_model(
            model,
            recipe,
            parts[0].id2label,
            parts[0].palette,
            crop_size=crop_size,
            trunk_weights=trunk_weights,
            binary=binary,
        )
    except (OSError, ValueError, RuntimeError) as error:  # missing files, no network, another kind of model
        name = model or recipe.name
        raise UserError(f"cannot start from {name}: {why_not_loaded(name, error)}") from None
    if parts[0].num_labels == 1 and not isinstance(network, SegMask2FormerForSemanticSegmentation):
        raise UserError(
            "the data has one class, but this model needs at least two: make the background a class (masks with 0 and "
            "255: --label-map 0:0,255:1), or choose a recipe and a model with Mask2Former"
        )

    def counts() -> "ClassCounts":
        with arguments.main_process_first(desc="counting classes"):  # the others read its cache
            return class_counts(parts[0])

    weights = apply_losses(network, recipe, counts)
    if weights is not None and is_main:
        typer.echo(f"class weights: {_listed_weights(weights, parts[0].id2label)}")
    sampling = build_sampling(recipe.sampling, counts()) if recipe.sampling is not None else None
    if freeze or recipe.freeze_trunk:
        training.freeze_trunk(network)
        keep = whole or lora_rank is not None
        named = training.save_frozen_trunk(network, trunk_name(model, trunk_weights), keep)
        if named is not None and is_main:
            note(f"saved folders name the frozen trunk, {named}, and do not hold its weights; --whole saves them, too")
    if lora_rank is not None:
        training.add_lora(network, lora_rank)
    train_data: Any = parts[0]
    if pseudo is not None:
        train_data = training.JoinedDataset([parts[0], pseudo[0]])
        sampling = MixedSampling(sampling or len(parts[0]), len(pseudo[0]), pseudo[1])
    batch = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    augment = training.TrainingAugmentation.from_recipe(recipe, processor, crop_size=crop_size, reduce_labels=False)
    try:
        trainer = training.SegmentationTrainer(
            network,
            arguments,
            recipe=recipe,
            train_dataset=training.TrainingDataset(
                train_data, augment, seed=arguments.seed, repeat=math.ceil(batch / len(train_data)), sampling=sampling
            ),
            eval_dataset=training.EvaluationDataset(parts[1], processor) if len(parts) > 1 else None,
            processing_class=processor,
            prediction_images=prediction_images,
        )
    except RuntimeError as error:  # a tracker of --report_to is not installed
        raise UserError(_last_line(error)) from None
    if is_main:
        typer.echo(_summary(network, recipe, parts, batch, arguments))
    checkpoint = last_checkpoint(output, network) if resume else arguments.resume_from_checkpoint
    try:
        with _whole_lines(not arguments.disable_tqdm and is_main):
            trainer.train(resume_from_checkpoint=checkpoint)
    except KeyboardInterrupt as interrupt:
        if is_main:
            typer.echo(f"{interrupt or 'stopped'}; --resume continues from the last checkpoint", err=True)
        raise typer.Exit(130) from None
    except torch.OutOfMemoryError:
        raise UserError(
            "the device has too little memory: try a smaller --per_device_train_batch_size (UperNet needs 2 on one "
            "device), --activation_checkpointing, --bf16 or a smaller --crop-size"
        ) from None
    except ValueError as error:
        if "more than 1 value per channel" in str(error):
            raise UserError(
                "the model normalises feature maps of one pixel over the batch, which needs at least two images per "
                "device: --per_device_train_batch_size 2"
            ) from None
        if resume and "parameter group" in str(error):
            raise UserError(
                f"{checkpoint} was trained with other parameters: --resume needs the same --freeze-trunk, --lora-rank, "
                "--optim and --recipe as before"
            ) from None
        raise
    except Exception as error:
        reason = write_failure(error)
        if reason is None:
            raise
        if is_main:
            remove_incomplete(output)
        kept = "; --resume continues from the last checkpoint" if has_checkpoints(output) else ""
        raise UserError(f"cannot write to {output}: {reason}{kept}") from None
    if lora_rank is not None:
        training.merge_lora(network)
    try:
        if is_main:
            write_results(recipe.to_dict(), output / "recipe.json")
        save_model(trainer, output)
    except Exception as error:
        reason = write_failure(error)
        if reason is None:
            raise
        raise UserError(f"cannot write to {output}: {reason}; --resume saves the model again") from None
    if len(parts) > 1:
        _measure(output, processor, parts[1], arguments)
    elif is_main:
        typer.echo(f"written to {output}")


def _measure(output: Path, processor: Any, data: "SegmentationDataset", arguments: "TrainingArguments") -> None:
    """Evaluate the saved model and write results as `segtransformers evaluate` does."""
    import torch

    from ..evaluation import evaluate_segmentation, results_table
    from ..model_loading import load_trained_model

    if arguments.world_size > 1:
        torch.distributed.barrier()  # the main process writes the model
    saved = load_trained_model(str(output), dtype=torch.float32).to(arguments.device)  # type: ignore[arg-type]
    results = evaluate_segmentation(saved, processor, data, num_workers=arguments.dataloader_num_workers, optimize=True)
    if arguments.process_index == 0:
        write_results(results, output / "results.json")
        typer.echo(results_table(results))
        typer.echo(f"{results['images']} images; model and results.json written to {output}")


def parse_training_arguments(words: Sequence[str]) -> dict[str, Any]:
    """Return the fields of `TrainingArguments` on a command line, with their values.

    Raises:
        UserError: for an unknown option or an invalid value.
    """
    from transformers import HfArgumentParser, TrainingArguments

    class Parser(HfArgumentParser):
        def error(self, message: str):
            raise UserError(message)

    parser = Parser(TrainingArguments, allow_abbrev=False, add_help=False)  # type: ignore[arg-type]
    for action in parser._actions:
        action.default, action.required = argparse.SUPPRESS, False
    found, rest = parser.parse_known_args(list(words))
    if rest:
        option = rest[0].partition("=")[0]
        if option in HINTS:
            raise UserError(f"{option} is not an option: {HINTS[option]}")
        known = [option for action in parser._actions for option in action.option_strings] + list(_own_options())
        close = difflib.get_close_matches(option, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else " of this command or of transformers' TrainingArguments"
        raise UserError(f"{rest[0]} is not an option{hint}")
    changes = vars(found)
    if str(changes.get("fsdp")).lower() == "true":
        changes["fsdp"] = True  # transformers reads the text "true" as a deprecated option string
    for length in ("max_steps", "num_train_epochs"):
        if changes.get(length) == 0:
            raise UserError(f"--{length} must not be 0; leave the option out for the recipe's length")
    if "output_dir" in changes:
        raise UserError("--output_dir is not an option of this command: use --output")
    return changes


def _own_options() -> Iterator[str]:
    for name in train.__annotations__:
        yield f"--{name.replace('_', '-')}"


def _recipe(name: str) -> "Recipe":
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


def _listed_weights(weights: Sequence[float], id2label: dict[int, str]) -> str:
    """Return the weight of each class, or of the first and the extreme ones, and the classes that never occur."""
    names = [one_line(id2label[index]) for index in range(len(weights))]
    order = sorted(range(len(weights)), key=lambda index: weights[index])
    shown = order if len(order) <= 12 else [*order[:6], *order[-6:]]
    listed = ", ".join(f"{names[index]} {weights[index]:.3g}" for index in shown)
    absent = [names[index] for index in order if not weights[index]]
    ending = (
        f"; the weight is 0 for classes without a pixel in the training data: {', '.join(absent[:8])}" if absent else ""
    )
    return listed + ending


def _summary(
    network: Any, recipe: "Recipe", parts: "list[SegmentationDataset]", batch: int, arguments: "TrainingArguments"
) -> str:
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in network.parameters())
    images = " and ".join(f"{len(part)} images" for part in parts)
    length = f"{arguments.max_steps} steps" if arguments.max_steps > 0 else f"{arguments.num_train_epochs:g} epochs"
    return (
        f"{type(network).__name__}, {trained / 1e6:.1f} of {total / 1e6:.1f} million parameters trainable\n"
        f"{images}, {parts[0].num_labels} classes\n"
        f"{recipe.name}: {length} of {batch} images ({arguments.per_device_train_batch_size} per device, "
        f"{arguments.gradient_accumulation_steps} accumulation steps, {arguments.world_size} processes), "
        f"learning rate {arguments.learning_rate:g}"
    )


@contextlib.contextmanager
def _whole_lines(has_bar: bool) -> Iterator[None]:
    """Start a new line after a progress bar before an error is printed."""
    try:
        yield
    except BaseException:
        if has_bar:
            typer.echo(err=True)
        raise


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Print errors in one line, without the traceback that errors of worker processes contain."""
    with one_line_errors():
        try:
            yield
        except (ValueError, FloatingPointError, OSError, ImportError) as error:
            raise UserError(_last_line(error)) from None


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if not lines[0].startswith("Caught "):  # torch's prefix of errors in worker processes
        return " ".join(" ".join(lines).split())[:500]
    return lines[-1].partition(": ")[2] or lines[-1]
