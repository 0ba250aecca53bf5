# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Machine, commit, date and operators, as all benchmarks write them into their results, and what several share."""

import contextlib
import functools
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segtransformers import keep_freed_memory
from segtransformers.operators import dispatcher


@dataclass(frozen=True)
class Pass:
    """A forward pass: its start by `time.perf_counter`, its seconds, and the input's shape."""

    start: float
    seconds: float
    shape: tuple[int, ...]


def machine_name() -> str:
    """Return the name of the processor and the number of cores."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {os.cpu_count()} cores"


def commit() -> str:
    """Return the short hash of the checkout's commit, empty outside of a checkout."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    ).stdout.strip()


def operators() -> str:
    """Describe the operators in use, without the folder of their build."""
    return re.sub(r"; [^()]*\)", ")", dispatcher.describe())


def keep_memory() -> None:
    """Keep freed memory as the commands do, or say on standard error that this process does not."""
    if not keep_freed_memory():
        print("freed memory is not kept: this needs glibc, and no settings of its malloc", file=sys.stderr)


def today() -> str:
    return date.today().isoformat()


def show(found: dict[str, Any], file: Path | None) -> None:
    """Print results as JSON, and write them into a file if one is given."""
    text = json.dumps(found, indent=2)
    print(text)
    if file is not None:
        file.write_text(text + "\n")


@contextlib.contextmanager
def watched_passes(kind: type[nn.Module]) -> Iterator[list[Pass]]:
    """Record every forward pass of models of a class.

    The class is changed, because a model with hooks or a `forward` of its own takes no fast ways.
    """
    passes: list[Pass] = []
    forward = kind.forward

    @functools.wraps(forward)
    def watched(self: nn.Module, pixel_values: torch.Tensor, *arguments: Any, **keywords: Any) -> Any:
        start = time.perf_counter()
        output = forward(self, pixel_values, *arguments, **keywords)
        passes.append(Pass(start, time.perf_counter() - start, tuple(pixel_values.shape)))
        return output

    kind.forward = watched  # type: ignore[method-assign]
    try:
        yield passes
    finally:
        kind.forward = forward  # type: ignore[method-assign]


__all__ = ["Pass", "commit", "machine_name", "operators", "show", "today", "watched_passes"]
