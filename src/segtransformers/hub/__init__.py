# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Hugging Face Hub: registration of our classes, model cards and uploads."""
