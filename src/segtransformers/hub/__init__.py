# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Hugging Face Hub: model cards and uploads, and the registration of our classes with transformers."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .model_card import write_model_card
    from .publishing import PublishingError, push_folder
else:
    __getattr__, __dir__ = lazy_names(
        __name__, {"model_card": ("write_model_card",), "publishing": ("PublishingError", "push_folder")}
    )

__all__ = ["PublishingError", "push_folder", "write_model_card"]
