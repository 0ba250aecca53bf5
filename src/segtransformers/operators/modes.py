# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The modes of the compiled kernels. This module imports nothing heavy, because every command checks the mode."""

import os

MODES = ("auto", "off", "force")


def default_mode() -> str:
    """Read the mode from `SEGTRANSFORMERS_KERNELS`.

    Raises:
        ValueError: if the variable is not one of `MODES`.
    """
    mode = os.environ.get("SEGTRANSFORMERS_KERNELS", "auto").lower() or "auto"
    if mode not in MODES:
        raise ValueError(f"SEGTRANSFORMERS_KERNELS must be one of {', '.join(MODES)}, got {mode!r}")
    return mode
