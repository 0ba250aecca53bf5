# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Export to ONNX and `torch.export` files."""

from .exporting import ExportError, LogitsOnly, describe, export_model, export_size, read_description, traced

__all__ = ["ExportError", "LogitsOnly", "describe", "export_model", "export_size", "read_description", "traced"]
