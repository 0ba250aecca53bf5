# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The page of `segtransformers demo` as a Space. README.md describes the variable that names its models."""

import os

from segtransformers.cli.demo_page import launch

launch(os.environ.get("SEGTRANSFORMERS_MODELS", "").split())
