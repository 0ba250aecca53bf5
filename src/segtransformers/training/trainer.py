# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`Trainer` for semantic segmentation with recipes, evaluation by mean IoU at label size, and clean interruption."""

import contextlib
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Trainer, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, has_length
from transformers.utils import logging

from ..escaping import printable
from ..image_processing import decision_of, label_map_classes, resized_labels
from ..metrics import MeanIoU, MultiLabelIoU
from .arguments import build_optimizer, build_scheduler
from .callbacks import EpochCallback, InterruptCallback, PredictionImageCallback
from .distillation import Distillation
from .feature_cache import FEATURES
from .memory_format import channels_last_convolutions
from .parameter_efficient import unsaved_statistics
from .progress import LossWatch, Pace
from .samples import SAMPLE_INDEX, EvaluationDataset, IndexedDataset, TrainingDataset, collate
from .unused_parameters import unused_parameters_decided
from .weight_average import WeightAverage

if TYPE_CHECKING:
    from .recipes import Recipe

logger = logging.get_logger(__name__)

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
BEST_METRICS = (
    "mean_iou",
    "mean_accuracy",
    "mean_dice",
    "mean_precision",
    "mean_recall",
    "overall_accuracy",
    "loss",
)


class SegmentationTrainer(Trainer):
    """transformers' `Trainer` for any semantic segmentation model.

    It adds:

    - Recipes. `create_optimizer` and `create_scheduler` follow the recipe's parameter groups, optimizer and schedule.
      Settings that `TrainingArguments` has too (learning rate, weight decay, steps, warm-up, and any schedule except
      `linear`) come from the arguments; [`training_arguments`] fills them from a recipe.
    - Evaluation by confusion matrices at label size, with the model's own protocol (sliding windows) and constant
      memory. Each image counts once for any number of processes. The results are `eval_loss`, `eval_mean_iou`,
      `eval_mean_accuracy`, `eval_mean_dice`, `eval_mean_precision`, `eval_mean_recall` and `eval_overall_accuracy`;
      `class_metrics` holds the values of each class. Multi-label models are measured by [`MultiLabelIoU`]. With your
      own `compute_metrics`, evaluation is that of `Trainer`.
    - The mean of Mask2Former's loss over all masks of an optimizer step, and the mean of other losses over all its
      valid pixels. `Trainer` alone averages the means of the accumulated batches and of the processes, which depend on
      how the images are divided among them.
    - An average of the weights (EMA), if the recipe has one. Evaluations and the saved model use it; checkpoints hold
      both, so that a resumed run is the same as an uninterrupted one. When `train` returns, the model has the average.
    - Ctrl-C and SIGTERM finish the step, save a checkpoint and raise `KeyboardInterrupt`. A second one stops at once.
    - Any other error during training saves a checkpoint of the last step before it is raised, except with FSDP and
      DeepSpeed. An error in an evaluation names the samples of the batch.
    - Logs with `images_per_second`, `waiting_for_data` (a share of the time) and `minutes_left`, and warnings if the
      loss does not fall or if data loading limits the speed.
    - An infinite or NaN loss raises `FloatingPointError` with the names of the batch's samples.
    - Batch norms become `torch.nn.SyncBatchNorm` on several GPUs.
    - DDP looks for unused parameters in each step unless [`uses_all_parameters`] finds that the model has none, or
      `args.ddp_find_unused_parameters` is set.

    Args:
        model, args, train_dataset, eval_dataset: see `Trainer`. Items are dicts of `pixel_values` `(3, h, w)` and
            `labels` `(H, W)`, or `(num_labels, H, W)` for a multi-label model, as from [`TrainingDataset`] and
            [`EvaluationDataset`]. In evaluation, images may have different sizes, and label maps may differ in size
            from their images.
        recipe: the recipe for optimizer and schedule; None uses those of `Trainer`.
        prediction_images: number of images per evaluation to draw beside their label maps and predictions. They go to
            the folder `predictions` of the output folder and to TensorBoard, trackio or Weights & Biases, if the run
            reports to these.
        distillation: a trained model whose predictions the model learns besides the labels.
        kwargs: other arguments of `Trainer`.
    """

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        *,
        recipe: "Recipe | None" = None,
        prediction_images: int = 0,
        distillation: Distillation | None = None,
        **kwargs: Any,
    ):
        self.recipe = recipe
        self.class_metrics: dict[str, Any] = {}
        self._metric: MeanIoU | None = None
        self._evaluated: Any = None  # the dataset of the latest evaluation
        self._own_metric = kwargs.get("compute_metrics") is None
        self._counting = self._is_gathered = False
        self._distillation = distillation
        self._channels_last = False
        self._interrupt = InterruptCallback()
        self._pace = Pace()
        if args is not None:
            sets = kwargs.get("eval_dataset")
            _check_arguments(args, self._own_metric, list(sets) if isinstance(sets, dict) else [])
        if self._own_metric:
            kwargs["compute_metrics"] = self._add_counts
            if args is not None:
                args.batch_eval_metrics = True
        kwargs.setdefault("data_collator", collate)
        with unused_parameters_decided(args, model):
            super().__init__(model, args, **kwargs)
        self.args.batch_eval_metrics = self.args.batch_eval_metrics or self._own_metric
        if distillation is not None:
            distillation.teacher.to(self.args.device)
        self.add_callback(self._interrupt)
        self.add_callback(EpochCallback())
        self.add_callback(self._pace)
        self.add_callback(LossWatch())
        average = recipe.weight_average if recipe is not None else None
        self.weight_average = WeightAverage(average) if average is not None else None
        if self.weight_average is not None:
            self.add_callback(self.weight_average)
        self.prediction_images = PredictionImageCallback(prediction_images) if prediction_images else None
        if self.prediction_images is not None:
            self.prediction_images.trackers = self.callback_handler.callbacks
            self.add_callback(self.prediction_images)
        norms = unsaved_statistics(self.model)  # type: ignore[arg-type]
        if norms:
            logger.warning(
                f"the saved adapter will lack the running statistics of {len(norms)} batch norms, such as {norms[0]}, "
                "which training changes: create its config with segtransformers.training.lora_config"
            )
        if self.args.world_size > 1:
            self._synchronize_batch_norms()
        if self.is_fsdp_enabled:
            self._name_shards()

    def _synchronize_batch_norms(self) -> None:
        network: Any = self.model
        if not any(isinstance(module, BATCH_NORMS) for module in network.modules()):
            return
        if self.args.device.type == "cpu":
            if self.args.process_index == 0:
                logger.warning(
                    "torch has no synchronised batch norm on a CPU: each process normalises over its own images"
                )
            return
        nn.SyncBatchNorm.convert_sync_batchnorm(network)

    def _name_shards(self) -> None:
        """Set the layer classes that FSDP wraps, unless the user did.

        accelerate wraps the input embedding separately, so classes that contain it are left out.
        """
        plugin, network = self.accelerator.state.fsdp_plugin, self.model
        embedding = getattr(network, "get_input_embeddings", lambda: None)()
        names = set(getattr(network, "_no_split_modules", None) or ())
        for module in network.modules():  # type: ignore[union-attr]
            if type(module).__name__ in names and any(part is embedding for part in module.modules()):
                names.remove(type(module).__name__)
        if names and not plugin.transformer_cls_names_to_wrap:
            plugin.transformer_cls_names_to_wrap = sorted(names)

    # the recipe

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.recipe is None or self.optimizer is not None:
            return super().create_optimizer(model)
        network: Any = self.model if model is None else model
        self.optimizer = build_optimizer(network, self.recipe, self.args)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        is_replaced = self.args.lr_scheduler_type != TrainingArguments.lr_scheduler_type
        if self.recipe is None or self.lr_scheduler is not None or is_replaced:
            return super().create_scheduler(num_training_steps, optimizer)
        scheduled: Any = self.optimizer if optimizer is None else optimizer
        self.lr_scheduler = build_scheduler(scheduled, self.recipe, self.args, num_training_steps)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    # training

    def train(self, *args: Any, **kwargs: Any) -> Any:
        is_whole = not (self.is_fsdp_enabled or self.is_deepspeed_enabled)
        network: Any = self.model
        layout = channels_last_convolutions(network, self.args.device) if is_whole else contextlib.nullcontext(False)
        with self._interrupt.catching(), self._saving_at_errors(), layout as self._channels_last:
            result = super().train(*args, **kwargs)
        if self.weight_average is not None and not self._interrupt.stopped:
            self.weight_average.finish()
        if self._interrupt.stopped:
            raise KeyboardInterrupt(f"stopped after step {self.state.global_step}; a checkpoint is saved")
        return result

    @contextlib.contextmanager
    def _saving_at_errors(self) -> Iterator[None]:
        """Save the weights and the state of the last step before an error is raised, so that the run can continue."""
        try:
            yield
        except Exception:
            step = self.state.global_step
            folder = Path(str(self.args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{step}"
            is_plain = not (self.is_fsdp_enabled or self.is_deepspeed_enabled)
            if step and self.args.should_save and is_plain and not folder.exists():
                self._save_checkpoint_at_error(folder)
            raise

    def _save_checkpoint_at_error(self, folder: Path) -> None:
        scheduler: Any = self.lr_scheduler
        optimizer: Any = self.optimizer
        try:
            self.save_model(str(folder), _internal_call=True)
            torch.save(optimizer.state_dict(), folder / "optimizer.pt")
            torch.save(scheduler.state_dict(), folder / "scheduler.pt")
            self.state.save_to_json(str(folder / "trainer_state.json"))
        except Exception as error:  # such as a full disk; the first error is the one to show
            logger.warning(f"no checkpoint of step {self.state.global_step} could be saved: {error}")
            shutil.rmtree(folder, ignore_errors=True)
        else:
            logger.warning(f"a checkpoint of step {self.state.global_step} is saved in {folder}")

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model with the average of its weights. A checkpoint gets the weights and the average."""
        average = self.weight_average
        if average is None:
            return super().save_model(output_dir, _internal_call)
        if _internal_call:
            super().save_model(output_dir, _internal_call)
            average.save(Path(str(output_dir)), self.args.process_index)
            return None
        with average.applied():
            return super().save_model(output_dir, _internal_call)

    def _load_from_checkpoint(self, resume_from_checkpoint: Any, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.weight_average is not None:
            network: Any = self.model if model is None else model
            self.weight_average.load(Path(str(resume_from_checkpoint)), network, self.args.process_index)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.weight_average is not None:
            network: Any = self.model
            self.weight_average.load(Path(str(self.state.best_model_checkpoint)), network, self.args.process_index)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        own: Any = self.eval_dataset
        is_name = isinstance(eval_dataset, str)
        self._evaluated = own if eval_dataset is None else own[eval_dataset] if is_name else eval_dataset
        several = isinstance(own, dict)
        self.eval_dataset = {name: _indexed(part) for name, part in own.items()} if several else _indexed(own)
        try:
            return super().get_eval_dataloader(eval_dataset if is_name else _indexed(eval_dataset))
        finally:
            self.eval_dataset = own

    def get_train_dataloader(self) -> DataLoader:
        own = self.train_dataset
        if isinstance(own, TrainingDataset):
            self.train_dataset = IndexedDataset(own)
        try:
            loader = super().get_train_dataloader()
        finally:
            self.train_dataset = own
        if has_length(loader) and not len(loader):
            data: Any = self.train_dataset
            batch = self.args.train_batch_size * self.args.world_size
            raise ValueError(
                f"{len(data)} samples are fewer than a batch of {batch}, and dataloader_drop_last drops them all: "
                f"create the TrainingDataset with repeat={math.ceil(batch / len(data))}"
            )
        return loader

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], torch.Tensor | int | None]:
        with self._pace.loading():
            batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        labels = [batch.get("labels") for batch in batches]
        network = self.accelerator.unwrap_model(self.model)
        is_one_device = self.args.n_gpu <= 1  # `nn.DataParallel` cannot scatter these tensors
        if not is_one_device or not batches or not all(isinstance(part, torch.Tensor) for part in labels):
            return batches, items
        means: dict[str, torch.Tensor] = {}
        if len(batches) > 1 and hasattr(network, "count_masks"):
            means["mean_masks"] = torch.stack([network.count_masks(part) for part in labels]).float().mean(0)
        if (len(batches) > 1 or self.args.world_size > 1) and hasattr(network, "count_classes"):
            counts = [network.count_classes(part) for part in labels]
            if counts[0] is not None:
                mean = torch.stack(counts).double().mean(0).to(device)
                means["mean_class_counts"] = self.accelerator.reduce(mean, "mean").float()
        return ([{**batch, **means} for batch in batches] if means else batches), items

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        indices = inputs.pop(SAMPLE_INDEX, None)
        if not isinstance(inputs.get("pixel_values"), torch.Tensor):
            names = self._names(indices, self.train_dataset)
            raise ValueError(f"the images of a training batch must have the same size; {names} differ")
        if self._channels_last:
            inputs["pixel_values"] = inputs["pixel_values"].contiguous(memory_format=torch.channels_last)
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            names = self._names(indices, self.train_dataset)
            raise FloatingPointError(
                f"the loss is {loss.item()} in step {self.state.global_step + 1}, in the batch of {names}; the weights "
                "are those before this step. Check these samples, lower the learning rate, or train in bf16 "
                "or float32 instead of fp16"
            )
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if self._distillation is not None and model.training:
            loss = loss + self._distillation.loss(outputs.logits, inputs["pixel_values"])
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log values; those of training steps with images per second and the time left."""
        step = self.state.global_step
        if "loss" in logs:
            images = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
            logs = {**logs, **self._pace.figures(step, self.state.max_steps, images)}
        else:
            self._pace.pause(float(logs.get("eval_runtime", 0.0)))
        super().log(logs, start_time)

    def _names(self, indices: torch.Tensor | None, data: Any) -> str:
        """Return the names of a batch's samples for a message."""
        if indices is None:
            return "unnamed samples"
        name = getattr(data, "name", lambda index: f"sample {index}")
        return ", ".join(printable(name(index)) for index in indices.tolist())

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        # for the collator: the model never gets the index, and takes features by `use_cached_features`
        columns += [name for name in (SAMPLE_INDEX, FEATURES) if name not in columns]

    # evaluation

    def evaluation_loop(self, dataloader: Any, description: str, *args: Any, **kwargs: Any) -> Any:
        self._counting = self._own_metric and description != "Prediction"
        self._metric = None  # an interrupted evaluation leaves its counts
        if self.prediction_images is not None:
            self.prediction_images.start()
        self._is_gathered = False
        with self.weight_average.applied() if self.weight_average is not None else contextlib.nullcontext():
            try:
                return super().evaluation_loop(dataloader, description, *args, **kwargs)
            finally:
                if self._is_gathered:
                    self._gather_shards(self.model_wrapped, False)

    def _gather_shards(self, model: Any, whole: bool) -> None:
        """Gather all FSDP shards in every process, or free them again.

        Evaluation needs whole parameters, because processes run different numbers of windows and a gather per forward
        would wait for processes that do not call it.
        """
        from torch.distributed.fsdp import FSDPModule

        for module in model.modules():
            if isinstance(module, FSDPModule):
                if whole:
                    module.unshard()
                else:
                    module.reshard()
                if module is not model:  # the root always keeps its parameters after a forward
                    module.set_reshard_after_forward(not whole, recurse=False)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, Any, Any]:
        """
        Returns:
            in [`evaluate`], the mean loss, confusion matrices `(B, num_labels, num_labels + 1)` as in [`MeanIoU`] (or
            `(B, num_labels, 4)` as in [`MultiLabelIoU`]), and `(B,)` zeros in place of labels; otherwise see `Trainer`.
        """
        if self.is_fsdp_enabled and not self._is_gathered:
            self._gather_shards(model, True)
            self._is_gathered = True
        indices = inputs.get(SAMPLE_INDEX)
        inputs = {name: value for name, value in inputs.items() if name != SAMPLE_INDEX}
        if not self._counting or prediction_loss_only:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        try:
            return self._count(model, inputs)
        except (ValueError, RuntimeError) as error:
            names = self._names(indices, self._evaluated)
            kind = ValueError if isinstance(error, ValueError) else RuntimeError  # subclasses may need other arguments
            raise kind(f"in the evaluation of {names}: {error}") from error

    def _count(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the mean loss of a batch, its confusion matrices, and zeros in place of labels."""
        if "labels" not in inputs:
            raise ValueError("evaluation needs samples with labels; `predict` works without labels")
        images: Any
        labels: Any
        images, labels = (self._prepare_input(inputs[name]) for name in ("pixel_values", "labels"))
        losses, counts, decision = [], [], decision_of(self.accelerator.unwrap_model(self.model).config)
        with torch.no_grad():
            for start, stop in _equal_size_runs(images):
                size = images[start].shape[1:]
                batch = {
                    "pixel_values": torch.stack(list(images[start:stop])),
                    "labels": torch.stack([_resized_labels(one, size) for one in labels[start:stop]]),
                }
                with self.compute_loss_context_manager():
                    loss, outputs = self.compute_loss(model, batch, return_outputs=True)
                losses.append(loss.detach().float() * (stop - start))
                for index, logits in enumerate(outputs["logits"], start=start):
                    metric, (height, width) = self._new_metric(), labels[index].shape[-2:]
                    predicted = resized_labels(logits, (height, width), decision)
                    metric.add(prediction=predicted, reference=labels[index])
                    counts.append(metric.confusion)
                    if self.prediction_images is not None and self.is_world_process_zero():
                        self.prediction_images.keep(images[index], labels[index], predicted)
        confusion = torch.stack(counts)
        return torch.stack(losses).sum() / len(images), confusion, torch.zeros(len(confusion), device=confusion.device)

    def _new_metric(self) -> MeanIoU:
        config = self.accelerator.unwrap_model(self.model).config
        ignored, decision = getattr(config, "semantic_loss_ignore_index", 255), decision_of(config)
        if decision.multi_label:
            return MultiLabelIoU(config.num_labels, ignored, decision.threshold or 0.5)
        return MeanIoU(len(label_map_classes(config)), ignored)

    def _add_counts(self, eval_prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """Add the confusion matrices of all processes and compute the metrics: Trainer's `compute_metrics`."""
        if self._metric is None:
            self._metric = self._new_metric()
        if not self._counting:  # `predict`
            return self._metric(eval_prediction, compute_result)
        total = torch.as_tensor(eval_prediction.predictions).sum(0)
        self._metric.confusion = self._metric.confusion.to(total.device) + total
        if not compute_result:
            return {}
        figures = self._metric.compute()
        self._metric = None
        self.class_metrics = {name: value for name, value in figures.items() if name.startswith("per_category")}
        return {name: value for name, value in figures.items() if name not in self.class_metrics}


def _indexed(data: Any) -> Any:
    return IndexedDataset(data) if isinstance(data, EvaluationDataset) else data


def _check_arguments(args: TrainingArguments, own_metric: bool, sets: Sequence[str]) -> None:
    """Raise ValueError for arguments that would end the run later.

    Args:
        sets: names of the evaluation datasets, if there are several.
    """
    if args.label_smoothing_factor:
        raise ValueError(f"label_smoothing_factor must be 0 for label maps, got {args.label_smoothing_factor}")
    best = args.metric_for_best_model
    known = [f"{name}_{metric}" for name in sets for metric in BEST_METRICS] or BEST_METRICS
    if own_metric and best is not None and best.removeprefix("eval_") not in known:
        raise ValueError(f"metric_for_best_model must be one of {', '.join(known)}, got {best!r}")


def _equal_size_runs(images: Sequence[torch.Tensor]) -> list[tuple[int, int]]:
    """Return (start, stop) of consecutive images with the same size, which can share a call of the model."""
    starts = [index for index, image in enumerate(images) if not index or image.shape != images[index - 1].shape]
    return list(zip(starts, [*starts[1:], len(images)], strict=True))


def _resized_labels(labels: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Resize a label map `(H, W)`, or masks `(C, H, W)`, to the size of the image, for the loss."""
    if labels.shape[-2:] == size:
        return labels
    channels = labels.reshape(1, -1, *labels.shape[-2:]).float()
    resized = nn.functional.interpolate(channels, size=tuple(size), mode="nearest")
    return resized.reshape(*labels.shape[:-2], *size).to(labels.dtype)


__all__ = ["SegmentationTrainer"]
