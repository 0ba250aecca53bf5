# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Moving average of the weights (EMA), which evaluations use and which becomes the model when training ends."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

if TYPE_CHECKING:
    from .recipe_settings import WeightAverageSettings


class WeightAverage(TrainerCallback):
    """Average the trainable parameters of a model during training.

    Buffers, such as the statistics of batch norms, are not averaged: the model's own are used. With FSDP each process
    averages and saves its own shards.

    Args:
        settings: a [`WeightAverageSettings`].

    Attributes:
        updates: number of updates so far.
    """

    def __init__(self, settings: "WeightAverageSettings"):
        self.settings = settings
        self.updates = 0
        self._model: nn.Module | None = None
        self._averages: dict[str, torch.Tensor] = {}
        self._is_applied = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        self.start(model)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        self.update(state.global_step)

    def start(self, model: nn.Module) -> None:
        """Begin with the model's present weights, unless averages of a checkpoint have been loaded."""
        self._model, self._is_applied = model, False
        if not self._averages:
            self._averages = {name: _wide(parameter).clone() for name, parameter in self._parameters()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after optimizer step `step`, which counts from 1."""
        settings, done = self.settings, self.updates
        if settings.definition == "mmcv":
            # mmcv's counter is that of the step before; its average starts from the initial weights
            if (step - 1) % settings.interval:
                return
            ramp = step / max(settings.warmup_steps + step - 1, 1)
            weight = min((1 - settings.decay) ** settings.interval, ramp)
        else:
            if step % settings.interval:
                return
            ramp = 1 / (done + 1) if settings.warmup or not done else 0.0
            weight = max(1 - settings.decay, ramp)
        for name, parameter in self._parameters():
            self._averages[name].lerp_(_wide(parameter), weight)
        self.updates = done + 1

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages into the model inside this context."""
        if self._model is None or self._is_applied or not self.updates:
            yield
            return
        raw = {name: parameter.clone() for name, parameter in self._parameters()}
        self._copy(self._averages)
        self._is_applied = True
        try:
            yield
        finally:
            self._copy(raw)
            self._is_applied = False

    def finish(self) -> None:
        """Put the averages into the model for good."""
        if self._model is not None and self.updates and not self._is_applied:
            self._copy(self._averages)
            self._is_applied = True

    def save(self, folder: Path, rank: int) -> None:
        """Write the averages into the folder of a checkpoint: this process' shards, or all of them in process 0.

        Raises:
            OSError: if the file cannot be written.
        """
        if self._averages and (rank == 0 or self._is_sharded()):
            folder.mkdir(parents=True, exist_ok=True)  # with FSDP, another process may not have created it yet
            tensors = {name: tensor.contiguous() for name, tensor in self._averages.items()}
            save_file(tensors, _file(folder, rank if self._is_sharded() else 0), {"updates": str(self.updates)})

    def load(self, folder: Path, model: nn.Module, rank: int) -> None:
        """Read the averages from the folder of a checkpoint.

        Raises:
            ValueError: if the checkpoint has no averages, or those of another model.
        """
        self._model, self._is_applied = model, False
        expected = {name: _wide(parameter) for name, parameter in self._parameters()}
        path = _file(folder, rank if self._is_sharded() else 0)
        try:
            with safe_open(path, "pt") as file:
                saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                updates = int(file.metadata()["updates"])
        except FileNotFoundError:
            raise ValueError(
                f"{folder} has no {path.name}: it was trained without an average of the weights, or on another number "
                "of processes; continue without the average, or start anew"
            ) from None
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error}") from None
        different = sorted(
            name
            for name in saved.keys() | expected.keys()
            if name not in saved or name not in expected or saved[name].shape != expected[name].shape
        )
        if different:
            raise ValueError(
                f"{path} is the average of another model: {len(different)} parameters differ, such as {different[0]}; "
                "continue with the same model, the same trained parts and, with FSDP, as many processes"
            )
        self._averages = {name: saved[name].to(expected[name]) for name in expected}
        self.updates = updates

    @torch.no_grad()
    def _copy(self, tensors: dict[str, torch.Tensor]) -> None:
        for name, parameter in self._parameters():
            parameter.copy_(tensors[name])

    def _parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield name and data of each trainable parameter; with FSDP the data are this process' shard."""
        assert self._model is not None
        for name, parameter in self._model.named_parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                data = parameter.detach()
                yield name, data.to_local() if hasattr(data, "to_local") else data

    def _is_sharded(self) -> bool:
        assert self._model is not None
        return any(hasattr(parameter, "to_local") for parameter in self._model.parameters())


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in float32 or wider: averages change by less than half precision can show."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _file(folder: Path, rank: int) -> Path:
    return folder / (f"weight_average-{rank}.safetensors" if rank else "weight_average.safetensors")


__all__ = ["WeightAverage"]
