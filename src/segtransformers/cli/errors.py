# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Errors of the commands that are shown in one line."""

import contextlib
from collections.abc import Iterator

import typer


class UserError(Exception):
    """An error that the user can correct. Its message is one line."""


@contextlib.contextmanager
def one_line_errors(*others: type[Exception]) -> Iterator[None]:
    """End the command with exit status 1 and the message of a [`UserError`], or of one of the other errors named."""
    kinds: tuple[type[Exception], ...] = (UserError, *others)
    try:
        yield
    except kinds as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
