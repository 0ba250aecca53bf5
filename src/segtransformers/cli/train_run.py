# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""A training run of `segtransformers train`: model, data, trainer, and the files that it writes."""

import contextlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..files import scratch_folder, write_failure
from ..terminal import write_line
from .checkpoints import has_checkpoints, last_checkpoint, remove_incomplete, save_model
from .common import load_model, why_not_loaded
from .errors import UserError, note
from .evaluate import print_results, write_results
from .output import document, message, result
from .train_options import TrainOptions
from .train_report import listed_weights

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from ..datasets import SegmentationDataset
    from ..datasets.class_counts import ClassCounts
    from ..training import Recipe, SegmentationTrainer
# Functions import torch, transformers and the parts of this package that load them, so that --help is fast.


class TrainingRun:
    """A run of the command.

    Args:
        options: the options of the command.
        recipe: the recipe, with the changes that the options make.
        changes: fields of `TrainingArguments` from the command line.
        parts: the training data and, if there are any, the evaluation data.
        command: the command that repeats the run, for its report.
        model: the source of the model to start from, or None.
        pseudo: data with pseudo labels and their weight, or None.
    """

    def __init__(
        self,
        options: TrainOptions,
        recipe: "Recipe",
        changes: dict[str, Any],
        parts: "list[SegmentationDataset]",
        command: str,
        model: str | None = None,
        pseudo: "tuple[SegmentationDataset, float] | None" = None,
    ):
        from ..training import training_arguments

        self.options, self.recipe, self.parts, self.model, self.pseudo = options, recipe, parts, model, pseudo
        self.command = command
        changes = {"disable_tqdm": True, **changes}  # `training_progress` takes the place of transformers' bars
        self.keeps_best = options.keep_best or options.early_stopping is not None
        if len(parts) == 1:
            changes = {"eval_strategy": "no", **changes}
        if self.keeps_best:
            if changes.get("eval_strategy") == "no":
                raise UserError("--keep-best and --early-stopping need evaluation data: a part named by --eval-split")
            changes = {"metric_for_best_model": "mean_iou", "load_best_model_at_end": True, **changes}
            if options.early_stopping is not None:  # the count of evaluations survives --resume
                changes = {"restore_callback_states_from_checkpoint": options.resume, **changes}
        self.arguments: TrainingArguments = training_arguments(recipe, options.output, **changes)
        self.is_main = self.arguments.process_index == 0

    def run(self) -> None:
        """Train and save the model, and measure it if there are evaluation data.

        Raises:
            UserError: for what the user can correct.
            Exit: after Ctrl-C or SIGTERM.
        """
        from transformers import set_seed
        from transformers.utils import logging

        from ..hub.publishing import check_destination

        logging.disable_progress_bar()
        arguments, output = self.arguments, self.options.output
        if arguments.push_to_hub and arguments.hub_token is None and self.is_main:
            check_destination(arguments.hub_model_id or output.resolve().name)
        set_seed(arguments.seed)
        network, processor = self._with_bands(*self._starting_model())
        self._apply_losses(network)
        self._choose_parameters(network)
        data = self._training_data(processor)
        if self.options.cache_features is not None:
            data = self._with_cached_features(network, data, self.options.cache_features)
        self._fit_batch(network, data)
        trainer = self._trainer(network, processor, data)
        if self.is_main:
            message(self._summary(network))
        self._fit(trainer, network)
        self._save(trainer, network)
        self._finish(trainer, processor)

    def _starting_model(self) -> tuple[Any, Any]:
        from .. import SegMask2FormerForSemanticSegmentation
        from ..training import starting_model

        data, options = self.parts[0], self.options
        if options.binary and data.multi_label:
            raise UserError(
                "--binary needs data with one class for each pixel, and these are multi-label: leave it out"
            )
        try:
            network, processor = starting_model(
                self.model,
                self.recipe,
                data.id2label,
                data.palette,
                crop_size=self.options.crop,
                trunk_weights=options.trunk_weights,
                binary=options.binary,
                multi_label=data.multi_label,
            )
        except (OSError, ValueError, RuntimeError) as error:  # missing files, no network, another kind of model
            name = self.model or self.recipe.name
            raise UserError(f"cannot start from {name}: {why_not_loaded(name, error)}") from None
        if (
            data.num_labels == 1
            and not data.multi_label
            and not isinstance(network, SegMask2FormerForSemanticSegmentation)
        ):
            raise UserError(
                "the data has one class, but this model needs at least two: make the background a class (masks with 0 "
                "and 255: --label-map 0:0,255:1), or choose a recipe and a model with Mask2Former"
            )
        return network, processor

    def _with_bands(self, network: Any, processor: Any) -> tuple[Any, Any]:
        """Return the model and its image processor for the bands of the data."""
        from ..datasets.bands import MOST_SAMPLES, band_statistics, read_statistics
        from ..image_processing import processor_bands
        from ..training import with_bands

        data, options = self.parts[0], self.options
        if data.bands is None:
            own = processor_bands(processor)
            if own is not None:
                numbers = ",".join(map(str, own))
                raise UserError(f"the model takes the bands {numbers} of rasters: pass --bands {numbers}")
            return network, processor
        folder = Path(options.data).expanduser()
        saved = read_statistics(folder)
        statistics = None if saved is None else saved.of_bands(data.bands)
        if statistics is None:
            statistics = band_statistics(data, MOST_SAMPLES)
        elif statistics.dtype != data.band_dtype:
            raise UserError(
                f"{folder} keeps band statistics of {statistics.dtype}, but its images hold {data.band_dtype}: "
                "write them again with segtransformers check-data --bands ... --statistics"
            )
        random = self.model is None and options.trunk_weights is None
        return with_bands(network, processor, statistics, options.colours, random)

    def _class_counts(self) -> "ClassCounts":
        from ..datasets.checking import class_counts

        with self.arguments.main_process_first(desc="counting classes"):  # the others read its cache
            return class_counts(self.parts[0])

    def _apply_losses(self, network: Any) -> None:
        from ..training import apply_losses

        weights = apply_losses(network, self.recipe, self._class_counts)
        if weights is not None and self.is_main:
            message(f"class weights: {listed_weights(weights, self.parts[0].id2label)}")

    def _choose_parameters(self, network: Any) -> None:
        """Freeze the trunk or add low-rank updates, if the options or the recipe want that."""
        from .. import training
        from ..training.bands import check_ignored_bands
        from ..training.starting_points import trunk_name

        options = self.options
        if options.freeze_trunk or self.recipe.freeze_trunk:
            training.freeze_trunk(network)
            keep = options.whole or options.lora_rank is not None
            # a trunk with other bands is none that a name stands for
            keep = keep or getattr(network.config, "input_inflation", None) is not None
            named = training.save_frozen_trunk(network, trunk_name(self.model, options.trunk_weights), keep)
            if named is not None and self.is_main:
                note(
                    f"saved folders name the frozen trunk, {named}, and do not hold its weights; --whole saves them, "
                    "too"
                )
        if options.lora_rank is not None:
            training.add_lora(network, options.lora_rank)
        if self.parts[0].bands is not None:
            check_ignored_bands(network, self.parts[0].bands)

    def _with_cached_features(self, network: Any, data: Any, versions: int) -> Any:
        """Return training data with cached features of the frozen trunk."""
        from ..training.feature_cache import cache_features

        arguments = self.arguments
        if arguments.n_gpu > 1 or arguments.fsdp or arguments.deepspeed:
            raise UserError("--cache-features needs one process per GPU, and neither FSDP nor DeepSpeed")
        with arguments.main_process_first(desc="caching features"):  # the others read the files
            return cache_features(
                network,
                data,
                versions,
                arguments.device,
                workers=arguments.dataloader_num_workers,
                announce=message if self.is_main else lambda text: None,
            )

    def _fit_batch(self, network: Any, data: Any) -> None:
        """Resolve `--batch-size auto`."""
        from ..training import collate
        from ..training.batch_size import fit_batch

        if self.options.batch_size != "auto":
            return
        arguments = self.arguments
        fitted = fit_batch(
            network, self.recipe, arguments, lambda count: collate([data[index % len(data)] for index in range(count)])
        )
        arguments.per_device_train_batch_size = fitted.per_device
        arguments.gradient_accumulation_steps = fitted.accumulation
        if fitted.checkpointing:
            arguments.activation_checkpointing = True
        if self.is_main:
            message(fitted.line())

    @property
    def _batch(self) -> int:
        """Number of images per optimizer step."""
        arguments = self.arguments
        return arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size

    def _training_data(self, processor: Any) -> Any:
        from .. import training
        from ..training.sampling import MixedSampling, build_sampling

        data: Any = self.parts[0]
        settings = self.recipe.sampling
        sampling = None if settings is None else build_sampling(settings, self._class_counts())
        if self.pseudo is not None:
            pseudo, weight = self.pseudo
            sampling = MixedSampling(sampling or len(data), len(pseudo), weight)
            data = training.JoinedDataset([data, pseudo])
        augment = training.TrainingAugmentation.from_recipe(
            self.recipe,
            processor,
            crop_size=self.options.crop,
            multi_label=self.parts[0].multi_label,
            colour_channels=self._colour_channels(),
        )
        repeat = math.ceil(self._batch / len(data))
        return training.TrainingDataset(data, augment, seed=self.arguments.seed, repeat=repeat, sampling=sampling)

    def _colour_channels(self) -> list[int] | None:
        """Return the positions of red, green and blue among the bands of the data, or None."""
        colours, bands = self.options.colours, self.parts[0].bands
        return None if colours is None or bands is None else [bands.index(band) for band in colours]

    def _trainer(self, network: Any, processor: Any, data: Any) -> "SegmentationTrainer":
        from .. import training

        try:
            return training.SegmentationTrainer(
                network,
                self.arguments,
                recipe=self.recipe,
                train_dataset=data,
                eval_dataset=training.EvaluationDataset(self.parts[1], processor) if len(self.parts) > 1 else None,
                processing_class=processor,
                prediction_images=self.options.prediction_images,
                distillation=self._distillation(network, processor),
                callbacks=self._callbacks(),
            )
        except RuntimeError as error:  # a tracker of --report_to is not installed
            raise UserError(last_line(error)) from None

    def _distillation(self, network: Any, processor: Any) -> Any:
        """Load the model of `--teacher`, if there is one."""
        from ..training.distillation import Distillation

        options, device = self.options, self.arguments.device
        if options.teacher is None:
            return None
        if options.cache_features is not None:
            raise UserError("--teacher needs the images, and --cache-features reads stored features in their place")
        teacher, teacher_processor = load_model(options.teacher, str(device), optimize=device.type == "cpu")
        weight, temperature = options.teacher_weight, options.teacher_temperature
        try:
            return Distillation(teacher, network, teacher_processor, processor, weight, temperature)
        except ValueError as error:
            raise UserError(f"--teacher {options.teacher}: {error}") from None

    def _callbacks(self) -> list[Any]:
        from transformers import EarlyStoppingCallback

        patience = self.options.early_stopping
        return [] if patience is None else [EarlyStoppingCallback(early_stopping_patience=patience)]

    def _fit(self, trainer: "SegmentationTrainer", network: Any) -> None:
        """Train, from the last checkpoint with `--resume`, and turn errors into lines with advice."""
        import torch

        from .train_progress import training_progress

        options, arguments = self.options, self.arguments
        checkpoint = last_checkpoint(options.output, network) if options.resume else arguments.resume_from_checkpoint
        try:
            with _whole_lines(not arguments.disable_tqdm and self.is_main), training_progress(trainer):
                trainer.train(resume_from_checkpoint=checkpoint)
        except KeyboardInterrupt as interrupt:
            if self.is_main:
                write_line(f"{interrupt or 'stopped'}; --resume continues from the last checkpoint", sys.stderr)
            raise typer.Exit(130) from None
        except torch.OutOfMemoryError:
            raise UserError(
                "the device has too little memory: try a smaller --per_device_train_batch_size (UperNet needs 2 on one "
                "device), --activation_checkpointing, --bf16 or a smaller --crop-size"
            ) from None
        except ValueError as error:
            if "more than 1 value per channel" in str(error):
                raise UserError(
                    "the model normalises feature maps of one pixel over the batch, which needs at least two images "
                    "per device: --per_device_train_batch_size 2"
                ) from None
            if options.resume and "parameter group" in str(error):
                raise UserError(
                    f"{checkpoint} was trained with other parameters: --resume needs the same --freeze-trunk, "
                    "--lora-rank, --optim and --recipe as before"
                ) from None
            raise
        except Exception as error:
            reason = write_failure(error)
            if reason is None:
                raise
            if self.is_main:
                remove_incomplete(options.output)
            kept = "; --resume continues from the last checkpoint" if has_checkpoints(options.output) else ""
            raise UserError(f"cannot write to {options.output}: {reason}{kept}") from None

    def _save(self, trainer: "SegmentationTrainer", network: Any) -> None:
        from ..training import merge_lora

        output = self.options.output
        if self.options.lora_rank is not None:
            merge_lora(network)
        try:
            if self.is_main:
                write_results(self.recipe.to_dict(), output / "recipe.json")
            save_model(trainer, output)
        except Exception as error:
            reason = write_failure(error)
            if reason is None:
                raise
            raise UserError(f"cannot write to {output}: {reason}; --resume saves the model again") from None

    def _finish(self, trainer: "SegmentationTrainer", processor: Any) -> None:
        """Evaluate the saved model if there are evaluation data, and write results and report."""
        output = self.options.output
        if len(self.parts) < 2:
            if self.is_main:
                self._report(trainer, None, None)
                result(f"written to {output}")
                document(self._document(trainer, None))
            return
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(scratch_folder()) if self._compares else None
            results = self._measure(processor, folder)
            if self.is_main:
                write_results(results, output / "results.json")
                print_results(results)
                self._report(trainer, results, folder)
                files = "model, results.json and report.html" if self.options.report else "model and results.json"
                message(f"{results['images']} images; {files} written to {output}")
                document(self._document(trainer, results))

    def _document(self, trainer: "SegmentationTrainer", results: dict[str, Any] | None) -> dict[str, Any]:
        """Return the JSON document of the command."""
        return {"output": str(self.options.output), "steps": trainer.state.global_step, "results": results}

    @property
    def _compares(self) -> bool:
        """True if this process sees all predictions of the evaluation, with one class for each pixel."""
        from .train_report import are_file_names

        is_alone = self.options.report and self.arguments.world_size == 1
        return is_alone and not self.parts[1].multi_label and are_file_names(self.parts[1].names)

    def _measure(self, processor: Any, predictions: Path | None) -> dict[str, Any]:
        """Evaluate the saved model as `segtransformers evaluate` does.

        Args:
            predictions: folder for the label maps, or None.
        """
        import torch

        from ..evaluation import evaluate_segmentation
        from ..model_loading import load_trained_model

        arguments = self.arguments
        if arguments.world_size > 1:
            torch.distributed.barrier()  # the main process writes the model
        saved: Any = load_trained_model(str(self.options.output), dtype=torch.float32)
        return evaluate_segmentation(
            saved.to(arguments.device),
            processor,
            self.parts[1],
            save_predictions=predictions,
            num_workers=arguments.dataloader_num_workers,
            optimize=True,
        )

    def _report(self, trainer: "SegmentationTrainer", results: dict[str, Any] | None, predictions: Path | None) -> None:
        """Write report.html.

        Args:
            predictions: folder of the label maps of the evaluation data, or None.
        """
        import torch

        from ..training.progress import LossWatch
        from ..training.report import Report
        from ..version import __version__
        from .train_report import duration, predictions_compared, settings_of, write_report

        if not self.options.report:
            return
        state = trainer.state
        confusion, worst = (None, []) if predictions is None else predictions_compared(self.parts[1], predictions)
        seconds = next((entry["train_runtime"] for entry in state.log_history if "train_runtime" in entry), None)
        facts = {"steps": str(state.global_step), "training images": str(len(self.parts[0]))}
        if len(self.parts) > 1:
            facts["evaluation images"] = str(len(self.parts[1]))
        if seconds is not None:
            facts["time"] = duration(seconds)
        watches = [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, LossWatch)]
        software = {"segtransformers": __version__, "torch": torch.__version__}
        report = Report(
            title=f"{self.options.output.resolve().name}: {self.recipe.name}",
            history=state.log_history,
            best_step=state.best_global_step if self.keeps_best else None,
            results=results,
            confusion=confusion,
            worst=worst,
            palette=self.parts[0].palette,
            facts=facts,
            warnings=[watch.warning for watch in watches if watch.warning is not None],
            command=self.command,
            settings=settings_of(self.recipe, self.arguments, software),
        )
        write_report(report, self.options.output)

    def _summary(self, network: Any) -> str:
        arguments = self.arguments
        trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
        total = sum(parameter.numel() for parameter in network.parameters())
        images = " and ".join(f"{len(part)} images" for part in self.parts)
        length = f"{arguments.max_steps} steps" if arguments.max_steps > 0 else f"{arguments.num_train_epochs:g} epochs"
        batches = [f"{arguments.per_device_train_batch_size} per device"]
        if arguments.gradient_accumulation_steps > 1:
            batches.append(f"accumulated {arguments.gradient_accumulation_steps} times")
        if arguments.world_size > 1:
            batches.append(f"{arguments.world_size} processes")
        return (
            f"{type(network).__name__}, {trained / 1e6:.1f} of {total / 1e6:.1f} million parameters trainable\n"
            f"{images}, {self.parts[0].num_labels} classes{', multi-label' if self.parts[0].multi_label else ''}\n"
            f"{self.recipe.name}: {length} of {self._batch} images ({', '.join(batches)}), learning rate "
            f"{arguments.learning_rate:g}"
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


def last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if not lines[0].startswith("Caught "):  # torch's prefix of errors in worker processes
        return " ".join(" ".join(lines).split())[:500]
    return lines[-1].partition(": ")[2] or lines[-1]
