# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Processes that torchrun or accelerate launch started."""

import contextlib
import datetime
import os
from collections.abc import Iterator


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
