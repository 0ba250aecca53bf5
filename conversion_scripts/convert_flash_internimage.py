#!/usr/bin/env python
# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Convert a FlashInternImage checkpoint (https://github.com/OpenGVLab/DCNv4).

A segmentor of MMSegmentation 0.x is converted into a model, and an image classifier's .pth file into a backbone to
fine-tune.

python conversion_scripts/convert_flash_internimage.py --checkpoint FILE|URL|NAME [--config NAME|FILE] --output DIR
"""

import sys

from segtransformers.conversion.cli import main

if __name__ == "__main__":
    sys.exit(main("flash_internimage"))
