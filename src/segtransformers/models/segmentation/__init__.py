# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""What all models with a backbone and a segmentation head share."""
