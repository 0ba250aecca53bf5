#!/usr/bin/env python
# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Convert a segmentation checkpoint of ONE-PEACE (https://github.com/OFA-Sys/ONE-PEACE, folder one_peace_vision/seg).

python conversion_scripts/convert_one_peace.py --checkpoint FILE|URL|NAME [--config NAME|FILE] --output DIR
"""

import sys

from segtransformers.conversion.cli import main

if __name__ == "__main__":
    sys.exit(main("one_peace"))
