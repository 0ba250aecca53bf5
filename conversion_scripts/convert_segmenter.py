#!/usr/bin/env python
# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Convert a Segmenter checkpoint of MMSegmentation or of the official repository.

MMSegmentation is at https://github.com/open-mmlab/mmsegmentation, the official repository at
https://github.com/rstrudel/segmenter. The config of an official checkpoint, variant.yml, is read from the same folder.

python conversion_scripts/convert_segmenter.py --checkpoint FILE|URL|NAME [--config NAME|FILE] --output DIR
"""

import sys

from segtransformers.conversion.cli import main

if __name__ == "__main__":
    sys.exit(main("segmenter"))
