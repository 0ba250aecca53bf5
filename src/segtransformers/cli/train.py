# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`segtransformers train`: fine-tuning by a published recipe, or one's own."""

import argparse
import contextlib
import difflib
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer

from ..datasets.reading import DataError
from ..hub.publishing import check_destination
from ..packaged import known_model
from .common import UserError, check_folder, one_line_errors, sides, why_not_loaded
from .data_options import ClassesOption, KindOption, LabelMapOption, MaskEndingOption, ReduceLabelsOption, load_data
from .evaluate import write_results

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from ..datasets import SegmentationDataset
    from ..training import Recipe

HELD_OUT = 10  # of data without parts, every sample of this many is for evaluation


def train(
    context: typer.Context,
    data: Annotated[str, typer.Option(metavar="DIR_OR_ID", help="A folder with images and masks, or a Hub id.")],
    recipe: Annotated[
        str, typer.Option(metavar="NAME_OR_FILE", help="A published recipe (`segtransformers recipes`), or a file.")
    ],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the model, checkpoints and pictures.")],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="DIR_OR_ID_OR_TRUNK",
            help="What to start from: a model (packaged: the small one that comes with this package), a backbone, or a "
            "ViT of timm; by default the recipe's own, untrained.",
        ),
    ] = None,
    trunk_weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Pre-trained weights of the trunk, as the originals load them.")
    ] = None,
    crop_size: Annotated[
        str | None, typer.Option(metavar="PIXELS", help="Train on crops of this side or HEIGHTxWIDTH.")
    ] = None,
    kind: KindOption = None,
    classes: ClassesOption = None,
    reduce_labels: ReduceLabelsOption = None,
    label_map: LabelMapOption = None,
    mask_ending: MaskEndingOption = None,
    split: Annotated[str, typer.Option(help="The part to train on.")] = "train",
    eval_split: Annotated[str, typer.Option(help="The part to evaluate on.")] = "validation",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first images of each part, for a trial.")] = None,
    freeze_trunk: Annotated[bool, typer.Option("--freeze-trunk", help="Leave the pre-trained trunk as it is.")] = False,
    lora_rank: Annotated[
        int | None, typer.Option(min=1, help="Train the trunk by low-rank updates of this rank (needs peft).")
    ] = None,
    pictures: Annotated[int, typer.Option(min=0, help="Images to draw at each evaluation.")] = 4,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in the output folder.")
    ] = False,
) -> None:
    """Fine-tune a model for semantic segmentation.

    All options of transformers' TrainingArguments may follow and win over the recipe, such as --max_steps 2000
    --per_device_train_batch_size 4 --bf16 --report_to tensorboard. Images at once and accumulation are fitted to the
    recipe's batch on the processes that torchrun or accelerate launch started. Ctrl-C saves a checkpoint first.

    The output folder then holds the model and its processor, results.json with the figures of each class, and
    recipe.json.
    """
    with _one_line():
        chosen = _recipe(recipe)
        changes = parse_training_arguments(context.args)
        _check_output(output, resume)
        parts = [load_data(data, split, kind, classes, reduce_labels, label_map, mask_ending)]
        if parts[0].split is None:
            parts = _divided(parts[0])
        else:
            try:
                parts.append(load_data(data, eval_split, kind, classes, reduce_labels, label_map, mask_ending))
            except DataError as error:
                typer.echo(f"no evaluation: {error}", err=True)
        if limit is not None:
            parts = [part.select(range(min(limit, len(part)))) for part in parts]
        model = None if model is None else known_model(model)
        crop = None if crop_size is None else sides("--crop-size", crop_size)
        _run(chosen, changes, parts, output, model, trunk_weights, crop, freeze_trunk, lora_rank, pictures, resume)


def _run(
    recipe: "Recipe",
    changes: dict[str, Any],
    parts: "list[SegmentationDataset]",
    output: Path,
    model: str | None,
    trunk_weights: Path | None,
    crop_size: tuple[int, int] | None,
    freeze: bool,
    lora_rank: int | None,
    pictures: int,
    resume: bool,
) -> None:
    from transformers import set_seed
    from transformers.utils import logging

    from .. import SegMask2FormerForSemanticSegmentation, training
    from ..training.starting_points import starting_model

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
            model, recipe, parts[0].id2label, parts[0].palette, crop_size=crop_size, trunk_weights=trunk_weights
        )
    except (OSError, ValueError, RuntimeError) as error:  # missing files, no network, another kind of model
        name = model or recipe.name
        raise UserError(f"cannot start from {name}: {why_not_loaded(name, error)}") from None
    if network.config.num_labels == 1 and not isinstance(network, SegMask2FormerForSemanticSegmentation):
        raise UserError(
            "the data has one class, and this model only tells classes apart: make what is around it a second class "
            "(masks with 0 and 255: --label-map 0:0,255:1), or take a recipe and a model with Mask2Former"
        )
    if freeze:
        training.freeze_trunk(network)
    if lora_rank is not None:
        training.add_lora(network, lora_rank)
    batch = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    augment = training.TrainingAugmentation.from_recipe(recipe, processor, crop_size=crop_size, reduce_labels=False)
    try:
        trainer = training.SegmentationTrainer(
            network,
            arguments,
            recipe=recipe,
            train_dataset=training.TrainingDataset(
                parts[0], augment, seed=arguments.seed, repeat=math.ceil(batch / len(parts[0]))
            ),
            eval_dataset=training.EvaluationDataset(parts[1], processor) if len(parts) > 1 else None,
            processing_class=processor,
            pictures=pictures,
        )
    except RuntimeError as error:  # what --report_to names is not installed
        raise UserError(_last_line(error)) from None
    if is_main:
        typer.echo(_summary(network, recipe, parts, batch, arguments))
    checkpoint = _last_checkpoint(output, network) if resume else arguments.resume_from_checkpoint
    try:
        with _whole_lines(not arguments.disable_tqdm and is_main):
            trainer.train(resume_from_checkpoint=checkpoint)
    except KeyboardInterrupt as interrupt:
        if is_main:
            typer.echo(f"{interrupt or 'stopped'}; --resume goes on from the last checkpoint", err=True)
        raise typer.Exit(130) from None
    except torch.OutOfMemoryError:
        raise UserError(
            "the device has too little memory: try a smaller --per_device_train_batch_size (UperNet needs 2 on "
            "one device), --gradient_checkpointing, --bf16 or a smaller --crop-size"
        ) from None
    except ValueError as error:
        if "more than 1 value per channel" in str(error):
            raise UserError(
                "the model norms a map of one pixel over the batch, which takes two images at once: "
                "--per_device_train_batch_size 2"
            ) from None
        if resume and "parameter group" in str(error):
            raise UserError(
                f"{checkpoint} was trained with other parameters: --resume takes --freeze-trunk, --lora-rank, --optim "
                "and --recipe as they were"
            ) from None
        raise
    if lora_rank is not None:
        training.merge_lora(network)
    if is_main:
        write_results(recipe.to_dict(), output / "recipe.json")
    trainer.save_model()
    if len(parts) > 1:
        _measure(output, processor, parts[1], arguments)
    elif is_main:
        typer.echo(f"written to {output}")


def _measure(output: Path, processor: Any, data: "SegmentationDataset", arguments: "TrainingArguments") -> None:
    """Figures of the model as it was saved, in the form of `segtransformers evaluate`."""
    from transformers import AutoModelForSemanticSegmentation

    from ..evaluation.evaluation import evaluate_segmentation, results_table

    if arguments.world_size > 1:
        torch.distributed.barrier()  # the main process writes the model
    saved = AutoModelForSemanticSegmentation.from_pretrained(output, dtype=torch.float32).to(arguments.device).eval()
    results = evaluate_segmentation(saved, processor, data, num_workers=arguments.dataloader_num_workers)
    if arguments.process_index == 0:
        write_results(results, output / "results.json")
        typer.echo(results_table(results))
        typer.echo(f"{results['images']} images; model and results.json written to {output}")


def parse_training_arguments(words: Sequence[str]) -> dict[str, Any]:
    """Those fields of `TrainingArguments` that a command line names, with their values.

    Raises:
        UserError: for an unknown option or a value that does not fit.
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
        known = [option for action in parser._actions for option in action.option_strings] + list(_own_options())
        close = difflib.get_close_matches(rest[0].partition("=")[0], known, n=1)
        hint = f": is {close[0]} meant?" if close else ", of this command or of transformers' TrainingArguments"
        raise UserError(f"there is no option {rest[0]}{hint}")
    changes = vars(found)
    if str(changes.get("fsdp")).lower() == "true":
        changes["fsdp"] = True  # transformers would take the word for an old way of saying it
    for length in ("max_steps", "num_train_epochs"):
        if changes.get(length) == 0:
            raise UserError(f"--{length} 0: there must be something to train; without it, it is the recipe's length")
    if "output_dir" in changes:
        raise UserError("--output says where the model goes, not --output_dir")
    return changes


def _own_options() -> Iterator[str]:
    for name in train.__annotations__:
        yield f"--{name.replace('_', '-')}"


def _recipe(name: str) -> "Recipe":
    from ..training import Recipe, get_recipe

    path = Path(name)
    if path.is_file():
        return Recipe.from_file(path)
    if path.suffix in (".json", ".yaml", ".yml"):
        raise UserError(f"there is no file {name}")
    return get_recipe(name)


def _check_output(output: Path, resume: bool) -> None:
    """Before any work is done."""
    check_folder(output, f"--output {output}")
    if not resume and any(output.glob("checkpoint-*")) and int(os.environ.get("RANK", "0")) == 0:
        raise UserError(
            f"{output} holds checkpoints of another run: --resume goes on with it, else choose another folder"
        )


def _last_checkpoint(output: Path, network: Any) -> str | None:
    """The newest checkpoint of this model that was written to its end; None where there is none yet: the run begins."""
    steps = (path.name.removeprefix("checkpoint-") for path in output.glob("checkpoint-*"))
    for step in sorted(map(int, filter(str.isdecimal, steps)), reverse=True):
        path = output / f"checkpoint-{step}"
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))  # comes last
            saved = json.loads((path / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        own = json.loads(network.config.to_json_string())
        if any(saved.get(name) != own.get(name) for name in ("model_type", "id2label")):
            raise UserError(
                f"{path} is of another model or has other classes: --resume takes the same --data, --model and "
                "--recipe as before; or choose another folder"
            )
        return str(path)
    return None


def _divided(data: "SegmentationDataset") -> "list[SegmentationDataset]":
    """Data without parts: some of it is kept for evaluation."""
    held_out = range(0, len(data), HELD_OUT)
    others = [index for index in range(len(data)) if index % HELD_OUT]
    if not others:
        return [data]
    typer.echo(f"the data has no parts: every tenth image is for evaluation, {len(held_out)} of {len(data)}", err=True)
    return [data.select(others), data.select(held_out)]


def _summary(
    network: Any, recipe: "Recipe", parts: "list[SegmentationDataset]", batch: int, arguments: "TrainingArguments"
) -> str:
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in network.parameters())
    images = " and ".join(f"{len(part)} images" for part in parts)
    length = f"{arguments.max_steps} steps" if arguments.max_steps > 0 else f"{arguments.num_train_epochs:g} epochs"
    return (
        f"{type(network).__name__}, {trained / 1e6:.1f} of {total / 1e6:.1f} million parameters to train\n"
        f"{images}, {parts[0].num_labels} classes\n"
        f"{recipe.name}: {length} of {batch} images ({arguments.per_device_train_batch_size} at once, accumulated "
        f"{arguments.gradient_accumulation_steps} times, processes: {arguments.world_size}), "
        f"learning rate {arguments.learning_rate:g}"
    )


@contextlib.contextmanager
def _whole_lines(has_bar: bool) -> Iterator[None]:
    """Where something is raised, what is said about it does not stand behind a progress bar."""
    try:
        yield
    except BaseException:
        if has_bar:
            typer.echo(err=True)
        raise


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Errors of a long run in one line: what a worker process raised comes with its traceback."""
    with one_line_errors():
        try:
            yield
        except (DataError, ValueError, FloatingPointError, OSError, ImportError) as error:
            raise UserError(_last_line(error)) from None


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if not lines[0].startswith("Caught "):  # by a worker
        return " ".join(" ".join(lines).split())[:500]
    return lines[-1].partition(": ")[2] or lines[-1]
