# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Export of models to ONNX, OpenVINO and `torch.export` files, and their use."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .description import describe, export_size, read_description
    from .errors import ExportError
    from .exporting import LogitsOnly, export_model, traced
    from .options import ExportOptions
    from .runtime import ExportedModel
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "errors": ("ExportError",),
            "options": ("ExportOptions",),
            "runtime": ("ExportedModel",),
            "description": ("describe", "export_size", "read_description"),
            "exporting": ("LogitsOnly", "export_model", "traced"),
        },
    )

__all__ = [
    "ExportError",
    "ExportOptions",
    "ExportedModel",
    "LogitsOnly",
    "describe",
    "export_model",
    "export_size",
    "read_description",
    "traced",
]
