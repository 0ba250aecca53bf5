# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Processes of this machine that share the rows of rasters. Each loads the model once."""

import functools
import multiprocessing
import os
import sys
import time
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

from ..escaping import one_line
from ..freed_memory import keep_freed_memory
from ..terminal import progress_bar
from .common import load_model
from .errors import UserError, describe
from .segment_raster import FAILURES, kept_rows, raster_write_failure, share_of

if TYPE_CHECKING:
    from ..inference.raster_segmentation import RasterJob

POLL_SECONDS = 0.2
Task = tuple[int, "RasterJob", list[slice]]  # index of the raster, and its pieces


def run_workers(
    tasks: Sequence[Task], name: str, device: str | None, precision: str, workers: int
) -> Generator[tuple[int, str | None], None, None]:
    """Segment pieces of rasters in several processes.

    Args:
        tasks: the rasters.
        name: of the model.
        device, precision: of the command line.
        workers: number of processes.

    Yields:
        the index of each raster when all its pieces are written, with None, or with the message of an error.

    Raises:
        UserError: if a process cannot write, or ends early.
    """
    if not tasks:
        return
    context = multiprocessing.get_context("spawn")
    messages = context.SimpleQueue()
    threads = max((os.cpu_count() or 1) // workers, 1)
    shares = [
        [(index, job, share_of(pieces, rank, workers)) for index, job, pieces in tasks] for rank in range(workers)
    ]
    processes = [
        # daemons end with this process
        context.Process(target=_work, args=(share, name, device, precision, threads, messages), daemon=True)
        for share in shares
    ]
    missing = {index: sum(piece.stop - piece.start for piece in pieces) for index, _, pieces in tasks}
    for process in processes:
        process.start()
    try:
        with progress_bar(sum(missing.values()), "row") as bar:
            while missing:
                # before the messages are read, so that those of processes that have ended are not missed
                has_ended = all(not process.is_alive() for process in processes)
                has_ended = has_ended or any(process.exitcode for process in processes)
                while not messages.empty():
                    index, rows, error = messages.get()
                    bar.update(rows)
                    if index is None:
                        raise UserError(error)
                    if index in missing:
                        missing[index] -= rows
                        if error is not None or missing[index] == 0:
                            del missing[index]
                            yield index, error
                if missing and has_ended:
                    codes = ", ".join(str(process.exitcode) for process in processes)
                    raise UserError(
                        f"the processes ended early, with status {codes}: too little memory? Repeat the command with "
                        "--resume and fewer --workers, which continues from the finished rows"
                    )
                time.sleep(POLL_SECONDS)
    finally:
        for process in processes:
            if missing:
                process.terminate()
            process.join()


def _report(messages: Any, index: int, rows: int) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():  # it was killed, and nobody reads the messages
        sys.exit(1)
    messages.put((index, rows, None))


def _work(share: list[Task], name: str, device: str | None, precision: str, threads: int, messages: Any) -> None:
    """Segment pieces in a process of its own. Messages are the raster, its rows that are done, and an error.

    A message without a raster is an error of the whole process.
    """
    keep_freed_memory()
    import torch

    from ..inference.raster_segmentation import write_pieces

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads)
    try:
        network, processor = load_model(name, device, optimize=True, precision=precision)
    except FAILURES as error:
        messages.put((None, 0, one_line(describe(error))))
        return
    for index, job, pieces in share:
        try:
            write_pieces(network, processor, job, pieces, functools.partial(_report, messages, index))
        except FAILURES as error:
            failure = raster_write_failure(error)
            if failure is not None:
                messages.put((None, 0, f"{failure}. {kept_rows(job.log)}"))
                return
            messages.put((index, 0, one_line(describe(error))))
