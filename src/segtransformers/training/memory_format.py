# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Memory format of a model that is trained on a CPU."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from ..models.segmentation.modeling_segmentation import BackboneForSemanticSegmentation


@contextlib.contextmanager
def channels_last_convolutions(model: nn.Module, device: torch.device) -> Iterator[bool]:
    """Lay out a model's convolutions with channels last within a block, if its training steps are faster with them.

    Values and names of parameters stay as they are. Measured on a CPU by `benchmarks/models.py --training`: a step of
    UperNet takes 2 to 10 % less time, one of Mask2Former not. Other devices were not measured.

    Yields:
        whether images should have channels last, too.
    """
    has_pixel_head = any(isinstance(module, BackboneForSemanticSegmentation) for module in model.modules())
    if device.type != "cpu" or not has_pixel_head:
        yield False
        return
    convolutions = [module for module in model.modules() if type(module) in (nn.Conv2d, nn.ConvTranspose2d)]
    for module in convolutions:
        module.to(memory_format=torch.channels_last)
    try:
        yield True
    finally:  # so that the trained model computes exactly what the saved one does
        for module in convolutions:
            module.to(memory_format=torch.contiguous_format)


__all__ = ["channels_last_convolutions"]
