#!/usr/bin/env python
# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Convert a Segmenter checkpoint of MMSegmentation (https://github.com/open-mmlab/mmsegmentation) or of the official
repository (https://github.com/rstrudel/segmenter), whose config variant.yml is read from the same folder.

python conversion_scripts/convert_segmenter.py --checkpoint FILE|URL|NAME [--config NAME|FILE] --output DIR
"""

import sys

from segtransformers.conversion.cli import main

if __name__ == "__main__":
    sys.exit(main("segmenter"))
