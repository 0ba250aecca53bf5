# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The `segtransformers` command."""

from .application import app

__all__ = ["app"]
