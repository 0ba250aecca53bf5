# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The commands of the command line: one file each, collected in `cli.py`."""
