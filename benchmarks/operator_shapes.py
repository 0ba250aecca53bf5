# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Arguments of the operators in the shapes of released models. This module needs torch alone."""

from collections.abc import Callable

import torch


def grids(size: int, *strides: int) -> list[tuple[int, int]]:
    return [(size // stride, size // stride) for stride in strides]


def attention(queries: list[tuple[int, int]], values: list[tuple[int, int]], heads: int, channels: int) -> dict:
    """Return arguments with queries at pixel centres, four points and offsets of a few pixels."""
    references = []
    for height, width in queries:
        y, x = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
        references.append(torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1).flatten(0, 1))
    reference = torch.cat(references)[None, :, None]
    shape = (1, reference.shape[1], heads, len(values), 4)
    offsets, logits = torch.randn(*shape, 2) * 2, torch.randn(shape)
    locations = reference[:, :, :, None, None] + offsets / torch.tensor(values).flip(-1)[:, None]
    weights = logits.flatten(3).softmax(-1).view(shape)
    value = torch.randn(1, sum(height * width for height, width in values), heads, channels)
    return {
        "value": value,
        "spatial_shapes": values,
        "sampling_locations": locations,
        "attention_weights": weights,
        "fused": (reference, offsets, logits),
    }


def convolution(size: int, groups: int) -> dict:
    mask = torch.randn(1, size, size, groups, 9).softmax(-1).flatten(3)
    return {
        "value": torch.randn(1, size, size, groups * 16),
        "offset": torch.randn(1, size, size, groups * 18),
        "mask": mask,
        "kernel_size": (3, 3),
        "stride": (1, 1),
        "padding": (1, 1),
        "dilation": (1, 1),
        "groups": groups,
        "offset_scale": 1.0,
        "remove_center": False,
    }


def packed_convolution(size: int, groups: int) -> dict:
    """Return arguments of DCNv4, with raw weights."""
    case = convolution(size, groups)
    settings = {name: value for name, value in case.items() if name not in ("value", "offset", "mask")}
    width = -(-27 * groups // 8) * 8
    return {"value": case["value"], "offset_mask": torch.randn(1, size, size, width), **settings}


CASES: dict[str, Callable[[], dict]] = {
    "injector, ViT-Adapter-T at 512": lambda: attention(grids(512, 16), grids(512, 8, 16, 32), 6, 32),
    "extractor, ViT-Adapter-T at 512": lambda: attention(grids(512, 8, 16, 32), grids(512, 16), 6, 32),
    "injector, ViT-Adapter-L at 896": lambda: attention(grids(896, 16), grids(896, 8, 16, 32), 16, 32),
    "extractor, ViT-Adapter-L at 896": lambda: attention(grids(896, 8, 16, 32), grids(896, 16), 16, 32),
    "pixel decoder, 1024 wide, at 896": lambda: attention(grids(896, 32, 16, 8), grids(896, 32, 16, 8), 32, 32),
    "DCNv3, InternImage-T at 512, stage 1": lambda: convolution(128, 4),
    "DCNv3, InternImage-T at 512, stage 2": lambda: convolution(64, 8),
    "DCNv3, InternImage-T at 512, stage 3": lambda: convolution(32, 16),
    "DCNv3, InternImage-T at 512, stage 4": lambda: convolution(16, 32),
    "DCNv4, FlashInternImage-T at 512, stage 1": lambda: packed_convolution(128, 4),
    "DCNv4, FlashInternImage-T at 512, stage 2": lambda: packed_convolution(64, 8),
    "DCNv4, FlashInternImage-T at 512, stage 3": lambda: packed_convolution(32, 16),
    "DCNv4, FlashInternImage-T at 512, stage 4": lambda: packed_convolution(16, 32),
}
