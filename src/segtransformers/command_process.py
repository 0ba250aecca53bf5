# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Set up the process of a command."""

import contextlib
import io
import signal
import sys
import threading
from typing import Any, NoReturn

TERMINATED = 128 + signal.SIGTERM  # exit status, as of a shell


def prepare_process() -> None:
    """Make any text printable, and SIGTERM as clean as Ctrl-C.

    A character that the console's encoding lacks is printed as an escape. SIGTERM ends the process like an exception,
    so that incomplete files are deleted.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(ValueError):  # it is closed
                stream.reconfigure(errors="backslashreplace")
    if threading.current_thread() is threading.main_thread():  # Python sets handlers in the main thread only
        signal.signal(signal.SIGTERM, _exit)


def _exit(number: int, frame: Any) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # another one must not interrupt the deletion
    raise SystemExit(TERMINATED)
