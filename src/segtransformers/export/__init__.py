# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Export of models to ONNX and `torch.export` files."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .exporting import ExportError, LogitsOnly, describe, export_model, export_size, read_description, traced
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "exporting": (
                "ExportError",
                "LogitsOnly",
                "describe",
                "export_model",
                "export_size",
                "read_description",
                "traced",
            ),
        },
    )

__all__ = [
    "ExportError",
    "LogitsOnly",
    "describe",
    "export_model",
    "export_size",
    "read_description",
    "traced",
]
