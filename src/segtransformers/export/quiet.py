# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Silence of other packages during an export."""

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Hide all warnings, and of the loggers with these names all messages below errors.

    They are about the packages' own code, and an exported file is checked anyway.
    """
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


__all__ = ["quiet"]
