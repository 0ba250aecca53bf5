# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The machine that a training run is on: processors, memory, and the pre-trained models that it can reach."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..hub_names import is_cached
from ..models.trunk import check_trunk_available, trunk_repository
from ..packaged import packaged_model_path
from .parameter_efficient import half_precision

GIB = 1 << 30
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, kw_only=True)
class MachineSummary:
    """What automatic choices depend on.

    Attributes:
        gpus: number of CUDA devices.
        gpu_memory: GiB of the smallest GPU.
        precision: fast precision of the GPUs, "bf16" or "fp16"; "fp32" without a GPU.
        cores: CPU cores that this process may use.
        memory: GiB of memory that are free for this process.
        hub: whether the Hub can be reached.
        cached: names of the trunks whose weights are in the local cache.
        packaged: whether the packaged model is installed.
    """

    gpus: int = 0
    gpu_memory: float = 0.0
    precision: str = "fp32"
    cores: int = 1
    memory: float = 8.0
    hub: bool = False
    cached: tuple[str, ...] = ()
    packaged: bool = True


def describe_machine(trunks: Iterable[str], use_gpu: bool = True) -> MachineSummary:
    """Describe this machine.

    Args:
        trunks: names of timm's trunks to look for. The Hub is asked for the first one.
        use_gpu: whether GPUs count.
    """
    names = list(trunks)
    gpus = torch.cuda.device_count() if use_gpu and torch.cuda.is_available() else 0
    sizes = [torch.cuda.get_device_properties(index).total_memory / GIB for index in range(gpus)]
    return MachineSummary(
        gpus=gpus,
        gpu_memory=min(sizes, default=0.0),
        precision=fast_precision() if gpus else "fp32",
        cores=usable_cores(),
        memory=free_memory() / GIB,
        hub=_hub_is_reachable(names[0]) if names else False,
        cached=tuple(name for name in names if is_cached(trunk_repository(name), "model")),
        packaged=Path(packaged_model_path(), "config.json").is_file(),
    )


def fast_precision() -> str:
    """Return the precision in which this machine trains fastest: "bf16", "fp16" or "fp32"."""
    return {torch.bfloat16: "bf16", torch.float16: "fp16", None: "fp32"}[half_precision()]


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_memory() -> int:
    """Return the bytes of memory that are free for this process: those of the machine, or less in a container."""
    import psutil  # a dependency of accelerate, which only training needs

    free = psutil.virtual_memory().available
    try:
        limit = (CGROUP / "memory.max").read_text(encoding="utf-8").strip()
        used = int((CGROUP / "memory.current").read_text(encoding="utf-8"))
        cached = dict(line.split() for line in (CGROUP / "memory.stat").read_text(encoding="utf-8").splitlines())
        if limit != "max":
            free = min(free, int(limit) - used + int(cached.get("inactive_file", 0)))
    except (OSError, ValueError):  # no container, or no version 2 of control groups
        pass
    return max(free, 0)


def _hub_is_reachable(trunk: str) -> bool:
    try:
        return check_trunk_available(trunk)
    except OSError:
        return False


__all__ = ["MachineSummary", "describe_machine", "fast_precision", "free_memory", "usable_cores"]
