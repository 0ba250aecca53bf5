# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The version of this package."""

__version__ = "0.2.0"
