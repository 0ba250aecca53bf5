# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`python -m segtransformers` is the `segtransformers` command."""

from .cli.application import app

if __name__ == "__main__":  # processes of `segment --workers` import this module
    app(prog_name="segtransformers")
