#!/usr/bin/env python
# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Convert a segmentor of EVA-02 (https://github.com/baaivision/EVA, EVA-02/seg).

python conversion_scripts/convert_eva02.py --checkpoint FILE|URL|NAME [--config NAME|FILE] --output DIR
"""

import sys

from segtransformers.conversion.cli import main

if __name__ == "__main__":
    sys.exit(main("eva02"))
