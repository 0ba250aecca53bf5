# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Processes that torchrun or accelerate launch started."""

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

from .errors import UserError

Value = TypeVar("Value")


@contextlib.contextmanager
def process_group() -> Iterator[tuple[int, str | None]]:
    """Join the processes that torchrun or accelerate launch started; yield the rank and the device of this one."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield 0, None
        return
    import torch
    from torch import distributed

    local = int(os.environ.get("LOCAL_RANK", "0"))
    # gloo is enough to exchange a few counts; the timeout is long because processes may finish far apart
    distributed.init_process_group("gloo", timeout=datetime.timedelta(days=7))
    try:
        count = torch.cuda.device_count()
        yield distributed.get_rank(), f"cuda:{local % count}" if count else "cpu"
    finally:
        distributed.destroy_process_group()


def number_of_processes() -> int:
    """Return how many processes work together within [`process_group`]."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def in_first_process(make: Callable[[], Value], failures: tuple[type[Exception], ...] = (UserError,)) -> Value:
    """Call `make` in the first process, and return its result, or raise its error, in every process.

    Args:
        failures: the errors that are passed on.
    """
    if number_of_processes() < 2:
        return make()
    from torch import distributed

    found: list = [None]
    if distributed.get_rank() == 0:
        try:
            found = [make()]
        except failures as error:
            found = [error]
    distributed.broadcast_object_list(found)
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def from_all_processes(values: list[Value]) -> list[Value]:
    """Return the values of all processes, those of the first one first."""
    if number_of_processes() < 2:
        return values
    from torch import distributed

    gathered: list[list[Value]] = [[] for _ in range(number_of_processes())]
    distributed.all_gather_object(gathered, values)
    return [value for one in gathered for value in one]
