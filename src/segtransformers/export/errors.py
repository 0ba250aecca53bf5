# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Errors of exports and of exported files."""

import importlib.util


class ExportError(RuntimeError):
    """The model cannot be exported, or the file computes something else than the model."""


def reason(error: BaseException) -> str:
    """Return the first line of the original error: exporters wrap it in errors with general advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def require(*packages: str, extra: str = "export") -> None:
    """Check that packages are installed.

    Raises:
        ImportError: naming those that are not.
    """
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ImportError(
            f"this needs {' and '.join(missing)}, which is not installed: pip install 'segtransformers[{extra}]'"
        )


__all__ = ["ExportError", "reason", "require"]
