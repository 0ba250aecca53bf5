# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Fast paths for inference."""
