# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""What happens beside the steps of a training run: epochs, Ctrl-C, pictures."""

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

from ..visualization import distinct_colours, draw_overlay

logger = logging.get_logger(__name__)


class EpochCallback(TrainerCallback):
    """Tells the training data set which epoch begins. (accelerate tells either the sampler or the data set.)"""

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
    """Ctrl-C ends the step and saves a checkpoint; a second one ends at once.

    Several processes stop after the same step: each tells the others after every step, and reads what they told after
    the step before, so that no step waits for it. They do so beside what else they exchange, on the CPU.

    Attributes:
        stopped: whether the last training ended this way.
    """

    def __init__(self) -> None:
        self.requested = self.stopped = False
        self._pending: tuple[torch.Tensor, Any] | None = None
        self._group: Any = None

    @contextlib.contextmanager
    def catching(self) -> Iterator[None]:
        """While this lasts, Ctrl-C only sets `requested`."""
        self.requested = self.stopped = False
        if threading.current_thread() is not threading.main_thread():  # Python allows it nowhere else
            yield
            return
        before = signal.getsignal(signal.SIGINT)

        def note(number: int, frame: Any) -> None:
            self.requested = True
            signal.signal(signal.SIGINT, before)
            logger.warning("Ctrl-C: this step is finished and a checkpoint saved. Press it again to stop at once.")

        signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
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


class PictureCallback(TrainerCallback):
    """Draws images of an evaluation: picture, labels and prediction side by side.

    Args:
        count: of images, the first ones that the main process sees.

    Attributes:
        trackers: the callbacks of the run, of which some may show pictures.
    """

    def __init__(self, count: int):
        self.count = count
        self.trackers: Sequence[TrainerCallback] = ()
        self.start()

    def start(self) -> None:
        """A new evaluation begins."""
        self.kept: list[tuple[torch.Tensor, ...]] = []

    def keep(self, pixel_values: torch.Tensor, labels: torch.Tensor, predicted: torch.Tensor) -> None:
        """Remember an image, `(3, h, w)`, with its labels and prediction, `(H, W)` each."""
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
        palette = getattr(config, "palette", None) or distinct_colours(config.num_labels)
        folder = Path(str(args.output_dir)) / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        drawn = []
        for index, (pixel_values, labels, predicted) in enumerate(self.kept):
            image = picture_of(pixel_values, processing_class).resize((labels.shape[1], labels.shape[0]))
            parts = [np.asarray(image)]
            parts += [np.asarray(draw_overlay(image, part.numpy(), palette)) for part in (labels, predicted)]
            drawn.append(np.concatenate(parts, axis=1))
            Image.fromarray(drawn[-1]).save(folder / f"step-{state.global_step:06d}-{index}.png")
        report_pictures(drawn, self.trackers, state.global_step)


def picture_of(pixel_values: torch.Tensor, processor: Any) -> Image.Image:
    """The picture that was normalised to `(3, h, w)`; without a processor, stretched to the range of its values."""
    pixels = pixel_values.float()
    if getattr(processor, "do_normalize", False):
        mean, std = (torch.tensor(getattr(processor, name)).view(-1, 1, 1) for name in ("image_mean", "image_std"))
        pixels = pixels * std + mean
    elif pixels.max() > 1 or pixels.min() < 0:
        pixels = (pixels - pixels.min()) / (pixels.max() - pixels.min()).clamp(min=1e-6)
    return Image.fromarray((255 * pixels).round().clamp(0, 255).byte().permute(1, 2, 0).numpy())


def report_pictures(pictures: Sequence[np.ndarray], trackers: Sequence[TrainerCallback], step: int) -> None:
    """Show `(H, W, 3)` pictures in those of the trackers that take pictures."""
    for tracker in trackers:
        kind = type(tracker).__name__
        if kind == "TensorBoardCallback" and getattr(tracker, "tb_writer", None) is not None:
            for index, picture in enumerate(pictures):
                tracker.tb_writer.add_image(f"predictions/{index}", picture, step, dataformats="HWC")  # type: ignore[attr-defined]
        elif kind in ("TrackioCallback", "WandbCallback") and getattr(tracker, "_initialized", False):
            library = importlib.import_module("trackio" if kind == "TrackioCallback" else "wandb")
            shown = {f"predictions/{index}": library.Image(picture) for index, picture in enumerate(pictures)}
            library.log({**shown, "train/global_step": step})


__all__ = ["EpochCallback", "InterruptCallback", "PictureCallback"]
