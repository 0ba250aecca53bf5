# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Callbacks of a training run: the epoch of the dataset, Ctrl-C and SIGTERM, and images of predictions."""

import contextlib
import importlib
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from ..image_processing import label_map_classes, processor_bands
from ..visualization import draw_comparison

logger = logging.get_logger(__name__)


class EpochCallback(TrainerCallback):
    """Set the epoch of the training dataset. (accelerate sets that of the sampler or of the dataset, not of both.)"""

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **_: Any,
    ) -> None:
        data: Any = getattr(train_dataloader, "dataset", None)
        if hasattr(data, "set_epoch"):
            data.set_epoch(int(state.epoch or 0))


class InterruptCallback(TrainerCallback):
    """Finish the step and save a checkpoint at Ctrl-C or SIGTERM; a second one stops at once.

    All processes stop after the same step. Each starts an asynchronous exchange of its flag after every step, in a
    group of its own on the CPU, and reads the result one step later, so that no step waits for the exchange.

    Attributes:
        requested: whether Ctrl-C was pressed, or SIGTERM sent, in this process.
        stopped: whether the last training ended for this reason.
    """

    def __init__(self) -> None:
        self.requested = self.stopped = False
        self._pending: tuple[torch.Tensor, Any] | None = None
        self._group: Any = None

    @contextlib.contextmanager
    def catching(self) -> Iterator[None]:
        """Make the first Ctrl-C or SIGTERM set `requested` inside this context."""
        self.requested = self.stopped = False
        if threading.current_thread() is not threading.main_thread():  # Python sets handlers in the main thread only
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        def request(number: int, frame: Any) -> None:
            self.requested = True
            restore()
            name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
            logger.warning(f"{name}: the run stops after this step and saves a checkpoint. A second one stops at once.")

        for number in before:
            signal.signal(number, request)
        try:
            yield
        finally:
            restore()
            if self._pending is not None:
                self._pending[1].wait()
                self._pending = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if args.world_size > 1 and self._group is None:
            self._group = distributed.new_group(backend="gloo")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if self._agreed():
            self.stopped = True
            control.should_save, control.should_evaluate, control.should_training_stop = True, False, True
        return control

    def _agreed(self) -> bool:
        """Return whether any process had a request at the previous step (with one process, at this step)."""
        if self._group is None:
            return self.requested
        before = self._pending
        flag = torch.tensor(float(self.requested))
        work = distributed.all_reduce(flag, distributed.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending = (flag, work)
        if before is None:
            return False
        before[1].wait()
        return bool(before[0])


class PredictionImageCallback(TrainerCallback):
    """Draw the first images of an evaluation, each beside its label map and the prediction.

    Args:
        count: number of images.

    Attributes:
        trackers: the callbacks of the run. Trackers among them that accept images get the drawings.
    """

    def __init__(self, count: int):
        self.count = count
        self.trackers: Sequence[TrainerCallback] = ()
        self.start()

    def start(self) -> None:
        """Forget the images of the previous evaluation."""
        self.kept: list[tuple[torch.Tensor, ...]] = []

    def keep(self, pixel_values: torch.Tensor, labels: torch.Tensor, predicted: torch.Tensor) -> None:
        """Keep an image `(3, h, w)` with its label map and prediction, up to `count` images.

        Both are `(H, W)`, or masks `(num_labels, H, W)`.
        """
        if len(self.kept) < self.count:
            self.kept.append(tuple(tensor.cpu() for tensor in (pixel_values, labels, predicted)))

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        processing_class: Any = None,
        **_: Any,
    ) -> None:
        if not self.kept:
            return
        config = model.config
        folder = Path(str(args.output_dir)) / "predictions"
        folder.mkdir(parents=True, exist_ok=True)
        drawn = []
        for index, (pixel_values, labels, predicted) in enumerate(self.kept):
            image = denormalized(pixel_values, processing_class).resize((labels.shape[-1], labels.shape[-2]))
            if labels.dim() == 3:
                labels = labels == 1  # without the pixels that do not count
            label_maps = {"label map": labels.numpy(), "prediction": predicted.numpy()}
            comparison = draw_comparison(image, label_maps, label_map_classes(config), getattr(config, "palette", None))
            comparison.save(folder / f"step-{state.global_step:06d}-{index}.png")
            drawn.append(np.asarray(comparison))
        report_images(drawn, self.trackers, state.global_step)


def denormalized(pixel_values: torch.Tensor, processor: Any) -> Image.Image:
    """Return the image of normalised values `(channels, h, w)`.

    Without a processor, their range is stretched to 0..255. Of an image with other bands than RGB, the first three are
    drawn, or one as grey, with the range of two deviations around their mean.
    """
    pixels = pixel_values.float()
    if processor_bands(processor) is not None:
        pixels = (pixels[:3] if len(pixels) >= 3 else pixels[:1].expand(3, -1, -1)) / 4 + 0.5
    elif getattr(processor, "do_normalize", False):
        mean, std = (torch.tensor(getattr(processor, name)).view(-1, 1, 1) for name in ("image_mean", "image_std"))
        pixels = pixels * std + mean
    elif pixels.max() > 1 or pixels.min() < 0:
        pixels = (pixels - pixels.min()) / (pixels.max() - pixels.min()).clamp(min=1e-6)
    return Image.fromarray((255 * pixels).round().clamp(0, 255).byte().permute(1, 2, 0).numpy())


def report_images(images: Sequence[np.ndarray], trackers: Sequence[TrainerCallback], step: int) -> None:
    """Send images `(H, W, 3)` to TensorBoard, trackio or Weights & Biases, if the run reports to them."""
    for tracker in trackers:
        kind = type(tracker).__name__
        if kind == "TensorBoardCallback" and getattr(tracker, "tb_writer", None) is not None:
            for index, image in enumerate(images):
                tracker.tb_writer.add_image(f"predictions/{index}", image, step, dataformats="HWC")  # type: ignore[attr-defined]
        elif kind in ("TrackioCallback", "WandbCallback") and getattr(tracker, "_initialized", False):
            library = importlib.import_module("trackio" if kind == "TrackioCallback" else "wandb")
            shown = {f"predictions/{index}": library.Image(image) for index, image in enumerate(images)}
            library.log({**shown, "train/global_step": step})


__all__ = ["EpochCallback", "InterruptCallback", "PredictionImageCallback"]
