# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Convert original checkpoints into models of this package.

There is one module for each family of backbones and each head, with the renaming of tensors as data ([`mapping.Rule`]).
Reading files and writing folders are separate modules.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .checkpoint import read_checkpoint
    from .convert import convert_checkpoint
    from .converter import convert_to_folder
    from .errors import ConversionError
    from .trunks import load_pretrained_trunk
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "checkpoint": ("read_checkpoint",),
            "convert": ("convert_checkpoint",),
            "converter": ("convert_to_folder",),
            "errors": ("ConversionError",),
            "trunks": ("load_pretrained_trunk",),
        },
    )

__all__ = ["ConversionError", "convert_checkpoint", "convert_to_folder", "load_pretrained_trunk", "read_checkpoint"]
