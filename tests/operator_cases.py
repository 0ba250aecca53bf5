# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Recorded cases of the deformable operators, and a record of the operators that run."""

import torch
from test_deformable_convolution import arguments as convolution_arguments
from test_operators import arguments as attention_arguments
from torch.profiler import ProfilerActivity, profile

from segtransformers.operators import (
    DeformableConvolutionV3,
    DeformableConvolutionV4,
    MultiScaleDeformableAttention,
    dcnv3_fallback,
    dcnv3_reference,
    dcnv4_fallback,
    dcnv4_reference,
    ms_deform_attn_fallback,
    ms_deform_attn_reference,
)


class OperatorCalls:
    """Record the names of the operators that run in a block, such as `aten::linear`."""

    def __enter__(self):
        self.profile = profile(activities=[ProfilerActivity.CPU])
        self.profile.__enter__()
        return self

    def __exit__(self, *error):
        self.profile.__exit__(*error)
        self.names = {event.key for event in self.profile.key_averages()}

    def compiled(self) -> set[str]:
        """Return the names of the compiled operators that ran."""
        return {name.partition("::")[2] for name in self.names if name.startswith("_deformable_ops")}


def case(name: str):
    """Return layer, reference, fallback, names of the tensor arguments, recorded tensors and settings of a case."""
    if name.startswith("dcnv3"):
        tensors, settings = convolution_arguments(name)
        keys = ("value", "offset", "mask")
        return DeformableConvolutionV3(), dcnv3_reference, dcnv3_fallback, keys, tensors, settings
    if name.startswith("dcnv4"):
        tensors, settings = convolution_arguments(name)
        keys = ("value", "offset_mask")
        return DeformableConvolutionV4(), dcnv4_reference, dcnv4_fallback, keys, tensors, settings
    tensors, shapes = attention_arguments(name)
    keys = ("value", "sampling_locations", "attention_weights")
    settings = {"spatial_shapes": shapes}
    return MultiScaleDeformableAttention(), ms_deform_attn_reference, ms_deform_attn_fallback, keys, tensors, settings


def layer_call(layer, arguments: dict) -> torch.Tensor:
    if isinstance(layer, (DeformableConvolutionV3, DeformableConvolutionV4)):
        return layer(**arguments)
    shapes = arguments["spatial_shapes"]
    starts = torch.tensor([sum(h * w for h, w in shapes[:level]) for level in range(len(shapes))])
    return layer(
        arguments["value"],
        torch.tensor(shapes),
        shapes,
        starts,
        arguments["sampling_locations"],
        arguments["attention_weights"],
        64,
    )
