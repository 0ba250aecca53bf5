# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`python -m segtransformers` is the `segtransformers` command."""

from .cli.application import app

app(prog_name="segtransformers")
