# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The compiled operators of segtransformers, in the layout of the `kernels` package.

segtransformers finds this package by itself. Other code calls [`load`]:

    operators = segtransformers_kernels.load()
    operators.ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights)
"""

from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parent  # has build/<variant>/


def load() -> ModuleType:
    """Return the operators as a module, for the CUDA device of this machine if the package has code for it.

    Raises:
        FileNotFoundError: if this torch is older than 2.10.
    """
    from kernels import get_local_kernel  # imports torch

    try:
        return get_local_kernel(FOLDER)
    except (OSError, RuntimeError, ValueError):  # for another GPU or another major version of CUDA
        return get_local_kernel(FOLDER, backend="cpu")


__all__ = ["FOLDER", "load"]
