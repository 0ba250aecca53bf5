# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The base of all models with a backbone and a segmentation head."""
