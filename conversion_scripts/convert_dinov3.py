#!/usr/bin/env python
# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Convert a head of DINOv3 with its backbone, which are two files.

Original: https://github.com/facebookresearch/dinov3

python conversion_scripts/convert_dinov3.py --checkpoint HEAD --trunk-weights BACKBONE [--config NAME|FILE] --output DIR
"""

import sys

from segtransformers.conversion.cli import main

if __name__ == "__main__":
    sys.exit(main("dinov3"))
