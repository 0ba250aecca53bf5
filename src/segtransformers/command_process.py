# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Set up the process of a command."""

import contextlib
import io
import os
import signal
import sys
import threading
import time
from typing import Any

TERMINATED = 128 + signal.SIGTERM  # exit status, as of a shell
GRACE = 5.0  # seconds in which another SIGTERM is ignored, so that it does not interrupt the deletion of files
_terminated_at: float | None = None  # time of the last SIGTERM


def prepare_process() -> None:
    """Make any text printable, and SIGTERM as clean as Ctrl-C.

    A character that the console's encoding lacks is printed as an escape. SIGTERM ends the process like an exception,
    so that incomplete files are deleted. Libraries that replace this exception by another one cause no traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(ValueError):  # it is closed
                stream.reconfigure(errors="backslashreplace")
    if threading.current_thread() is threading.main_thread():  # Python sets handlers in the main thread only
        signal.signal(signal.SIGTERM, _exit)
        sys.excepthook = _show_unless_terminated


def _exit(number: int, frame: Any) -> None:
    global _terminated_at
    now = time.monotonic()
    if _terminated_at is None or now - _terminated_at > GRACE:  # the first one, or a library has swallowed it
        _terminated_at = now
        raise SystemExit(TERMINATED)


def _show_unless_terminated(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    if _terminated_at is None:
        sys.__excepthook__(kind, error, trace)
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(TERMINATED)
