# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Errors of the commands that are shown in one line."""

import contextlib
import os
import sys
from collections.abc import Iterator

import typer

from ..escaping import one_line, printable
from ..terminal import write_line
from .output import message


class UserError(Exception):
    """An error that the user can correct. Its message is one line."""


@contextlib.contextmanager
def one_line_errors(*others: type[Exception]) -> Iterator[None]:
    """End the command with exit status 1 and one line for a [`UserError`], an OSError, or one of the errors named."""
    kinds: tuple[type[Exception], ...] = (UserError, OSError, *others)
    try:
        yield
    except BrokenPipeError:  # nobody reads the output any more
        raise
    except kinds as error:
        error_line(describe(error))
        raise typer.Exit(1) from None


@contextlib.contextmanager
def ends_quietly_if_nobody_reads() -> Iterator[None]:
    """End the command with exit status 0 when the reader of its output stops, as `head` does."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # else Python would report the error once more when it flushes the stream at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None


def describe(error: BaseException) -> str:
    """Return the message of an error, without the number of an OSError."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{printable(error.filename, 200)}: {error.strerror}"
    return str(error) or type(error).__name__


def error_line(text: object) -> None:
    """Print an error on standard error."""
    write_line(f"error: {one_line(text)}", sys.stderr)


def note(text: str) -> None:
    """Print a line that is no result on standard error, unless the command has `--quiet`."""
    message(f"note: {one_line(text)}", err=True)
