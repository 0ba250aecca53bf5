# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Find the batch size per device that the memory holds, and whether activation checkpointing is needed for it.

`find_executable_batch_size` of accelerate and `auto_find_batch_size` of transformers search in a similar way. But they
change the number of images per step, each process searches alone, and they cannot turn on checkpointing.
"""

import copy
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn
from transformers import PreTrainedModel, TrainingArguments

from .arguments import build_optimizer
from .machine import free_memory
from .recipes import Recipe

RESERVE = 0.08  # share of a GPU's memory that stays free for fragmentation and for larger samples
CPU_SHARE = 0.7  # of the free memory
CPU_WORKSPACE = 1.6  # memory of a step on a CPU over that of the tensors that backward needs, measured


@dataclass(frozen=True)
class FittedBatch:
    """A batch that fits the memory.

    Attributes:
        per_device: images at once.
        accumulation: such batches per optimizer step.
        checkpointing: whether activations are recomputed in the backward pass to fit.
        reason: the smallest batch that did not fit, or a statement that all fit.
    """

    per_device: int
    accumulation: int
    checkpointing: bool
    reason: str

    def line(self) -> str:
        """Return one line for the log."""
        ending = ", with activation checkpointing" if self.checkpointing else ""
        times = f", accumulated {self.accumulation} times" if self.accumulation > 1 else ""
        return f"batch size {self.per_device}{times}{ending}: {self.reason}"


def fit_batch(
    network: PreTrainedModel, recipe: Recipe, arguments: TrainingArguments, samples: Callable[[int], dict[str, Any]]
) -> FittedBatch:
    """Find the largest batch per device with which the recipe's batch fits the memory.

    Batch sizes are halved until a step fits, at first without activation checkpointing and then with it. Gradient
    accumulation keeps the recipe's number of images per step. On a GPU, steps of a copy of the model run; the model
    itself is not changed. On a CPU, the tensors that one backward pass needs are added up. All processes of a run take
    the same batch size.

    Args:
        network: the model, not yet on its device, with frozen parts frozen.
        samples: returns a batch of so many training samples.

    Raises:
        ValueError: if the recipe's batch cannot be divided among the processes.
        torch.OutOfMemoryError: if even the smallest batch with checkpointing does not fit.
    """
    processes = arguments.world_size * max(arguments.n_gpu, 1)
    share, rest = divmod(recipe.batch_size, processes)
    if rest:
        raise ValueError(
            f"the recipe's batch of {recipe.batch_size} images cannot be divided among {processes} processes: choose "
            "--per_device_train_batch_size and --gradient_accumulation_steps"
        )
    smallest = 2 if share % 2 == 0 and _needs_two_images(network) else 1
    sizes = batch_sizes(share, smallest)
    is_free = not arguments.activation_checkpointing and network.supports_gradient_checkpointing
    candidates = [(size, False) for size in sizes] + ([(size, True) for size in sizes] if is_free else [])
    if arguments.device.type == "cuda":
        index = first_that_fits(
            candidates, lambda size, checkpointing: _step_fits(network, recipe, arguments, samples(size), checkpointing)
        )
    else:
        available = CPU_SHARE * free_memory() / _processes_per_machine(arguments)
        fixed, per_image = step_memory(network, samples(smallest))
        index = first_that_fits(
            candidates, lambda size, checkpointing: checkpointing or fixed + size * per_image <= available
        )
    if index is None:
        raise torch.OutOfMemoryError(f"a batch of {smallest} images does not fit the memory of {arguments.device}")
    size, checkpointing = candidates[index]
    if index == 0:
        reason = "all of the step's images fit the memory at once"
    else:
        before = candidates[index - 1]
        reason = f"{before[0]} images at once{' with checkpointing' if before[1] else ''} do not fit the memory"
    return FittedBatch(size, share // size, checkpointing, reason)


def batch_sizes(share: int, smallest: int = 1) -> list[int]:
    """Return the divisors of `share` from itself down to `smallest`, each at most half of the one before."""
    sizes = [share]
    while True:
        smaller = [size for size in range(smallest, sizes[-1] // 2 + 1) if share % size == 0]
        if not smaller:
            return sizes
        sizes.append(smaller[-1])


def first_that_fits(candidates: Sequence[tuple[int, bool]], fits: Callable[[int, bool], bool]) -> int | None:
    """Return the index of the first candidate that fits in every process, or None.

    Args:
        candidates: (batch size, activation checkpointing).
        fits: tries a candidate in this process.
    """
    for index, candidate in enumerate(candidates):
        if _in_all_processes(fits(*candidate)):
            return index
    return None


def step_memory(network: PreTrainedModel, batch: dict[str, Any]) -> tuple[float, float]:
    """Estimate the bytes of a training step on a CPU: those beside the activations, and those of each image.

    The model is not changed.
    """
    probe = copy.deepcopy(network).train()
    own = {tensor.untyped_storage().data_ptr() for tensor in (*probe.parameters(), *probe.buffers())}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.random.fork_rng(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = probe(**batch).loss  # alive until the sum is taken, so that no address is used twice
        activations = sum(saved.values())
        del loss
    trained = sum(parameter.nbytes for parameter in probe.parameters() if parameter.requires_grad)
    images = len(batch["pixel_values"])
    return 3.0 * trained, CPU_WORKSPACE * activations / images


def _step_fits(
    network: PreTrainedModel, recipe: Recipe, arguments: TrainingArguments, batch: dict[str, Any], checkpointing: bool
) -> bool:
    """Return whether two steps of a copy of the model fit the GPU, beside a reserve and what the run adds to them."""
    device = arguments.device
    dtype = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else None
    probe: Any = None
    try:
        with torch.random.fork_rng(devices=[device]):
            probe = copy.deepcopy(network).to(device).train()  # type: ignore[arg-type]
            trained = sum(parameter.nbytes for parameter in probe.parameters() if parameter.requires_grad)
            total = torch.cuda.get_device_properties(device).total_memory
            # DDP's buckets of gradients and an average of the weights are as large as the trained weights
            copies = (arguments.world_size > 1) + (recipe.weight_average is not None)
            reserve = torch.empty(int(RESERVE * total) + copies * trained, dtype=torch.uint8, device=device)
            if checkpointing or arguments.activation_checkpointing:
                probe.gradient_checkpointing_enable({"use_reentrant": False})
            optimizer = build_optimizer(probe, recipe, arguments)
            moved = {name: value.to(device) for name, value in batch.items()}
            for _ in range(2):
                with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                    loss = probe(**moved).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            del loss, optimizer, moved, reserve
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        del probe
        gc.collect()
        torch.cuda.empty_cache()


def _needs_two_images(network: nn.Module) -> bool:
    """Return whether the model has batch norms, which cannot normalise the pooled map of a single image."""
    return any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def _processes_per_machine(arguments: TrainingArguments) -> int:
    return max(min(arguments.world_size, torch.cuda.device_count() or arguments.world_size), 1)


def _in_all_processes(flag: bool) -> bool:
    if not (distributed.is_available() and distributed.is_initialized()):
        return flag
    shared = torch.tensor(int(flag), device="cuda" if distributed.get_backend() == "nccl" else "cpu")
    distributed.all_reduce(shared, distributed.ReduceOp.MIN)
    return bool(shared)


__all__ = ["FittedBatch", "batch_sizes", "first_that_fits", "fit_batch", "step_memory"]
