#!/usr/bin/env python
# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Convert a ViT-Adapter checkpoint of MMSegmentation 0.x (https://github.com/czczup/ViT-Adapter).

python conversion_scripts/convert_vit_adapter.py --checkpoint FILE|URL|NAME [--config NAME|FILE] --output DIR
"""

import sys

from segtransformers.conversion.cli import main

if __name__ == "__main__":
    sys.exit(main("vit_adapter"))
