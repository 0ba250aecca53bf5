# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The error of the conversion, in a module that imports nothing heavy."""


class ConversionError(ValueError):
    """The checkpoint or its config cannot be converted."""
