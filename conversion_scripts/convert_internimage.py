#!/usr/bin/env python
# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Convert an InternImage checkpoint (https://github.com/OpenGVLab/InternImage).

A segmentor of MMSegmentation 0.x is converted into a model. An image classifier, from a .pth file or from the Hub, is
converted into a backbone to fine-tune.

python conversion_scripts/convert_internimage.py --checkpoint FILE|URL|NAME [--config NAME|FILE] --output DIR
"""

import sys

from segtransformers.conversion.cli import main

if __name__ == "__main__":
    sys.exit(main("internimage"))
