# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Backbones, heads and losses. Nothing in here knows who calls it."""
