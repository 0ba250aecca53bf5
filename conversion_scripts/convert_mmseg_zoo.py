#!/usr/bin/env python
# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Convert a checkpoint of MMSegmentation with a Swin, ConvNeXt or ResNet backbone.

Its source is https://github.com/open-mmlab/mmsegmentation.

python conversion_scripts/convert_mmseg_zoo.py --checkpoint FILE|URL|NAME [--config NAME|FILE] --output DIR
"""

import sys

from segtransformers.conversion.cli import main

if __name__ == "__main__":
    sys.exit(main("mmseg_zoo"))
