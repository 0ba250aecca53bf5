# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`Trainer` for semantic segmentation: recipes, evaluation by mean IoU at the images' own sizes, clean interruption."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Trainer, TrainingArguments
from transformers.trainer_utils import has_length
from transformers.utils import logging

from ..image_processing import argmax_resized
from ..metrics import MeanIoU
from .arguments import build_optimizer, build_scheduler
from .callbacks import EpochCallback, InterruptCallback, PictureCallback
from .samples import SAMPLE_INDEX, TrainingDataset, collate

if TYPE_CHECKING:
    from .recipes import Recipe

logger = logging.get_logger(__name__)

BEST_METRICS = ("mean_iou", "mean_accuracy", "mean_dice", "overall_accuracy", "loss")


class SegmentationTrainer(Trainer):
    """transformers' `Trainer` for any model for semantic segmentation.

    What it adds:

    - With a recipe, `create_optimizer` and `create_scheduler` do as the original did: its groups of parameters, its
      optimizer and its schedule. What `TrainingArguments` can say too (learning rate, weight decay, steps, warm-up, a
      schedule that is not `linear`) is taken from there: [`training_arguments`] makes them from a recipe.
    - Evaluation counts a confusion matrix of each image, at the size of its labels and by the model's own protocol
      (sliding windows), and keeps nothing else. Each image counts once however many processes share them. The results
      are `eval_loss`, `eval_mean_iou`, `eval_mean_accuracy`, `eval_mean_dice` and `eval_overall_accuracy`;
      `class_metrics` then holds those of each class. With a `compute_metrics` of your own, evaluation is `Trainer`'s.
    - The loss of Mask2Former is a mean over masks: under gradient accumulation over all those of a step, so that it
      does not depend on how a batch is divided into equal parts. (`Trainer` takes the mean of the parts' means.)
    - Ctrl-C ends the step, saves a checkpoint and then raises `KeyboardInterrupt`; a second one ends at once.
    - A loss that is no finite number raises `FloatingPointError` and names the batch.
    - On several GPUs batch norms become `torch.nn.SyncBatchNorm`.

    Args:
        model, args, train_dataset, eval_dataset: as of `Trainer`. Items are dicts of `pixel_values` `(3, h, w)` and
            `labels` `(H, W)`, as those of [`TrainingDataset`] and [`EvaluationDataset`]; in evaluation images may have
            different sizes, and labels other sizes than their images.
        recipe: whose optimizer and schedule to use; None is `Trainer`'s own.
        pictures: how many images of each evaluation are drawn with their labels and the prediction, into the folder
            `pictures` of the output folder and into TensorBoard, trackio or Weights & Biases where they are reported
            to.
        kwargs: other arguments of `Trainer`.
    """

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        *,
        recipe: "Recipe | None" = None,
        pictures: int = 0,
        **kwargs: Any,
    ):
        self.recipe = recipe
        self.class_metrics: dict[str, Any] = {}
        self._metric: MeanIoU | None = None
        self._own_metric = kwargs.get("compute_metrics") is None
        self._counting = self._is_gathered = False
        self._interrupt = InterruptCallback()
        if args is not None:
            sets = kwargs.get("eval_dataset")
            _check_arguments(args, self._own_metric, list(sets) if isinstance(sets, dict) else [])
        if self._own_metric:
            kwargs["compute_metrics"] = self._add_counts
            if args is not None:
                args.batch_eval_metrics = True
        if args is not None and args.ddp_find_unused_parameters is None and _uses_all_parameters(model):
            args.ddp_find_unused_parameters = False  # Trainer looks for them otherwise, in every step
        kwargs.setdefault("data_collator", collate)
        if isinstance(kwargs.get("train_dataset"), TrainingDataset):
            kwargs["train_dataset"].with_index = True  # so that a batch can be named
        super().__init__(model, args, **kwargs)
        self.args.batch_eval_metrics = self.args.batch_eval_metrics or self._own_metric
        self.add_callback(self._interrupt)
        self.add_callback(EpochCallback())
        self.pictures = PictureCallback(pictures) if pictures else None
        if self.pictures is not None:
            self.pictures.trackers = self.callback_handler.callbacks
            self.add_callback(self.pictures)
        if self.args.world_size > 1:
            self._synchronize_batch_norms()
        if self.is_fsdp_enabled:
            self._name_shards()

    def _synchronize_batch_norms(self) -> None:
        network: Any = self.model
        if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
            return
        if self.args.device.type == "cpu":
            logger.warning(
                "torch has no synchronised batch norm on a CPU: each process normalises by its own part of the batch"
            )
            return
        nn.SyncBatchNorm.convert_sync_batchnorm(network)

    def _name_shards(self) -> None:
        """What FSDP gathers together, where nobody says: accelerate takes the input embedding apart from it."""
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
        is_chosen = self.args.lr_scheduler_type != TrainingArguments.lr_scheduler_type  # another than the recipe's
        if self.recipe is None or self.lr_scheduler is not None or is_chosen:
            return super().create_scheduler(num_training_steps, optimizer)
        scheduled: Any = self.optimizer if optimizer is None else optimizer
        self.lr_scheduler = build_scheduler(scheduled, self.recipe, self.args, num_training_steps)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    # training

    def train(self, *args: Any, **kwargs: Any) -> Any:
        with self._interrupt.catching():
            result = super().train(*args, **kwargs)
        if self._interrupt.stopped:
            raise KeyboardInterrupt(f"stopped after step {self.state.global_step}; a checkpoint is saved")
        return result

    def get_train_dataloader(self) -> DataLoader:
        loader = super().get_train_dataloader()
        if has_length(loader) and not len(loader):
            data: Any = self.train_dataset
            batch = self.args.train_batch_size * self.args.world_size
            raise ValueError(
                f"{len(data)} samples are fewer than the {batch} of a batch, and dataloader_drop_last leaves none of "
                f"them: make the TrainingDataset with repeat={math.ceil(batch / len(data))}"
            )
        return loader

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], torch.Tensor | int | None]:
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        count_masks = getattr(self.accelerator.unwrap_model(self.model), "count_masks", None)
        labels = [batch.get("labels") for batch in batches]
        is_one_device = self.args.n_gpu <= 1  # `nn.DataParallel` shares out tensors, and no single numbers
        if (
            count_masks
            and is_one_device
            and len(batches) > 1
            and all(isinstance(part, torch.Tensor) for part in labels)
        ):
            mean_masks = torch.stack([count_masks(part) for part in labels]).float().mean()
            batches = [{**batch, "mean_masks": mean_masks} for batch in batches]
        return batches, items

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        indices = inputs.pop(SAMPLE_INDEX, None)
        if not isinstance(inputs.get("pixel_values"), torch.Tensor):
            raise ValueError(f"the images of a training batch must have one size: {self._named(indices)} have not")
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss.item()} in step {self.state.global_step + 1}, in the batch of "
                f"{self._named(indices)}: no step was made with it. Look at these samples, lower the learning rate, "
                "or train in bf16 or float32 instead of fp16"
            )
        return loss

    def _named(self, indices: torch.Tensor | None) -> str:
        """The samples of a batch, for a message."""
        if indices is None:
            return "samples without a name"
        name = getattr(self.train_dataset, "name", lambda index: f"sample {index}")
        return ", ".join(name(index) for index in indices.tolist())

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        if SAMPLE_INDEX not in columns:
            columns.append(SAMPLE_INDEX)  # the collator may see it: it never reaches the model

    # evaluation

    def evaluation_loop(self, dataloader: Any, description: str, *args: Any, **kwargs: Any) -> Any:
        self._counting = self._own_metric and description != "Prediction"
        self._metric = None  # the last evaluation may have been interrupted
        if self.pictures is not None:
            self.pictures.start()
        self._is_gathered = False
        try:
            return super().evaluation_loop(dataloader, description, *args, **kwargs)
        finally:
            if self._is_gathered:
                self._gather_shards(self.model_wrapped, False)

    def _gather_shards(self, model: Any, whole: bool) -> None:
        """Under FSDP, whether every process holds all parameters: its images need as many windows as they need, and
        could not be waited for by processes that gather parameters for each of theirs."""
        from torch.distributed.fsdp import FSDPModule

        for module in model.modules():
            if isinstance(module, FSDPModule):
                if whole:
                    module.unshard()
                else:
                    module.reshard()
                if module is not model:  # it keeps its own parameters after a forward anyway
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
            in [`evaluate`], the mean loss, the confusion matrices `(B, num_labels, num_labels + 1)` as of [`MeanIoU`],
            and `(B,)` zeros in place of labels; otherwise as `Trainer`.
        """
        if self.is_fsdp_enabled and not self._is_gathered:
            self._gather_shards(model, True)
            self._is_gathered = True
        inputs = {name: value for name, value in inputs.items() if name != SAMPLE_INDEX}
        if not self._counting or prediction_loss_only:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if "labels" not in inputs:
            raise ValueError("samples need labels to be evaluated; `predict` works without")
        images: Any
        labels: Any
        images, labels = (self._prepare_input(inputs[name]) for name in ("pixel_values", "labels"))
        losses, counts = [], []
        with torch.no_grad():
            for start, stop in _runs(images):
                shape = images[start].shape[1:]
                batch = {
                    "pixel_values": torch.stack(list(images[start:stop])),
                    "labels": torch.stack([_nearest(one, shape) for one in labels[start:stop]]),
                }
                with self.compute_loss_context_manager():
                    loss, outputs = self.compute_loss(model, batch, return_outputs=True)
                losses.append(loss.detach().float() * (stop - start))
                for index, logits in enumerate(outputs["logits"], start=start):
                    metric, (height, width) = self._new_metric(), labels[index].shape
                    predicted = argmax_resized(logits, (height, width))
                    metric.add(prediction=predicted, reference=labels[index])
                    counts.append(metric.confusion)
                    if self.pictures is not None and self.is_world_process_zero():
                        self.pictures.keep(images[index], labels[index], predicted)
        confusion = torch.stack(counts)
        return torch.stack(losses).sum() / len(images), confusion, torch.zeros(len(confusion), device=confusion.device)

    def _new_metric(self) -> MeanIoU:
        config = self.accelerator.unwrap_model(self.model).config
        return MeanIoU(config.num_labels, ignore_index=getattr(config, "semantic_loss_ignore_index", 255))

    def _add_counts(self, eval_prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """`compute_metrics` of the matrices that [`prediction_step`] gives, gathered from all processes."""
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


def _check_arguments(args: TrainingArguments, own_metric: bool, sets: Sequence[str]) -> None:
    """Refuse before any work is done what would end a run later.

    Args:
        sets: names of the sets to evaluate on, where there are several.
    """
    if args.label_smoothing_factor:
        raise ValueError(f"label_smoothing_factor={args.label_smoothing_factor} is not for label maps: leave it at 0")
    best = args.metric_for_best_model
    known = [f"{name}_{metric}" for name in sets for metric in BEST_METRICS] or BEST_METRICS
    if own_metric and best is not None and best.removeprefix("eval_") not in known:
        raise ValueError(f"metric_for_best_model must be one of {', '.join(known)}, got {best!r}")


def _uses_all_parameters(model: Any) -> bool:
    """Whether every parameter gets a gradient: so it is in our models, but not in every backbone of transformers."""
    return all(
        type(part).__module__.startswith(__package__.partition(".")[0])
        for part in (model, getattr(model, "backbone", None))
    )


def _runs(images: Sequence[torch.Tensor]) -> list[tuple[int, int]]:
    """First and one past the last of neighbours with the same size: they share a call of the model."""
    starts = [index for index, image in enumerate(images) if not index or image.shape != images[index - 1].shape]
    return list(zip(starts, [*starts[1:], len(images)], strict=True))


def _nearest(labels: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """A label map `(H, W)` at the size of its picture: the loss needs it there."""
    if labels.shape == size:
        return labels
    resized = nn.functional.interpolate(labels[None, None].float(), size=tuple(size), mode="nearest")
    return resized[0, 0].to(labels.dtype)


__all__ = ["SegmentationTrainer"]
