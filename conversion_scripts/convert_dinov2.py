#!/usr/bin/env python
# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Convert a head of DINOv2 with its backbone, which are two files.

Original: https://github.com/facebookresearch/dinov2

python conversion_scripts/convert_dinov2.py --checkpoint HEAD --trunk-weights BACKBONE [--config NAME|FILE] --output DIR
"""

import sys

from segtransformers.conversion.cli import main

if __name__ == "__main__":
    sys.exit(main("dinov2"))
