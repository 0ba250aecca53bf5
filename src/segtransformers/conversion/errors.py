# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The error of the conversion, without the imports of the conversion."""


class ConversionError(ValueError):
    """A checkpoint or its description that cannot be converted; the message names what and says what was expected."""
