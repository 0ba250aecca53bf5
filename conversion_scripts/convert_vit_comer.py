#!/usr/bin/env python
# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Convert a ViT-CoMer checkpoint of MMSegmentation 0.x (https://github.com/Traffic-X/ViT-CoMer).

python conversion_scripts/convert_vit_comer.py --checkpoint FILE|URL|NAME [--config NAME|FILE] --output DIR
"""

import sys

from segtransformers.conversion.cli import main

if __name__ == "__main__":
    sys.exit(main("vit_comer"))
