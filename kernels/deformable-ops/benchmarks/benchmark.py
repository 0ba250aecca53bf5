# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Benchmark for `kernels benchmark`: compare each operator with plain PyTorch on shapes of released models.

`benchmarks/operators.py` of the repository has more shapes and implementations, and the backward pass.
"""

import torch
from kernels.benchmark import Benchmark
from torch.nn import functional as F


def attention_reference(value, shapes, locations, weights):
    """Compute deformable attention by `grid_sample`; the shapes are in `deformable_ops/functions.py`."""
    batch, _, heads, channels = value.shape
    values = value.split([height * width for height, width in shapes], dim=1)
    total = 0
    for level, (height, width) in enumerate(shapes):
        image = values[level].permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
        weight = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]
        total = total + (F.grid_sample(image, grid, align_corners=False) * weight).sum(-1)
    return total.unflatten(0, (batch, heads)).permute(0, 3, 1, 2).flatten(2)


def convolution_reference(value, offset, mask, groups):
    """Compute DCNv3 with a 3x3 kernel and padding 1."""
    _, height, width, channels = value.shape
    steps = torch.arange(-1.0, 2, device=value.device)
    points = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1).reshape(9, 2)  # in column order
    y, x = torch.arange(height, device=value.device) + 0.5, torch.arange(width, device=value.device) + 0.5
    centre = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[:, :, None, None]
    pixels = centre + points + offset.unflatten(-1, (groups, 9, 2))
    locations = (pixels / torch.tensor([width, height], device=value.device)).flatten(1, 2)
    return attention_reference(
        value.flatten(1, 2).unflatten(-1, (groups, channels // groups)),
        [(height, width)],
        locations[:, :, :, None],
        mask.unflatten(-1, (groups, 9)).flatten(1, 2)[:, :, :, None],
    ).unflatten(1, (height, width))


class DeformableOps(Benchmark):
    seed = 0

    def setup(self):
        device = self.device
        if device == "cuda" and not torch.cuda.is_available():  # a torch for CUDA on a machine without a GPU
            device = "cpu"
        self.shapes = [(64, 64), (32, 32), (16, 16)]
        tokens = sum(height * width for height, width in self.shapes)
        self.value = torch.randn(1, tokens, 6, 32, device=device)
        self.references = torch.rand(1, 1024, 1, 2, device=device)
        self.offsets = 2 * torch.randn(1, 1024, 6, 3, 4, 2, device=device)
        self.logits = torch.randn(1, 1024, 6, 3, 4, device=device)
        sides = torch.tensor(self.shapes, device=device).flip(-1)
        self.locations = self.references[:, :, :, None, None] + self.offsets / sides[:, None]
        self.weights = self.logits.flatten(-2).softmax(-1).unflatten(-1, (3, 4))

    def setup_dcnv3(self):
        self.setup()
        device = self.value.device
        self.pixels = torch.randn(1, 64, 64, 8 * 16, device=device)
        self.offset = torch.randn(1, 64, 64, 8 * 9 * 2, device=device)
        self.mask = torch.randn(1, 64, 64, 8, 9, device=device).softmax(-1).flatten(3)

    def setup_dcnv4(self):
        self.setup_dcnv3()
        parts = [tensor.unflatten(-1, (8, -1)) for tensor in (self.offset, self.mask)]
        self.offset_mask = torch.cat(parts, -1).flatten(3)  # 8 groups of 27 numbers, a multiple of 8

    def benchmark_ms_deform_attn(self):
        self.out = self.kernel.ms_deform_attn(self.value, self.shapes, self.locations, self.weights)

    def verify_ms_deform_attn(self):
        return attention_reference(self.value, self.shapes, self.locations, self.weights)

    def benchmark_ms_deform_attn_fused(self):
        self.out = self.kernel.ms_deform_attn_fused(self.value, self.shapes, self.references, self.offsets, self.logits)

    def verify_ms_deform_attn_fused(self):
        return self.verify_ms_deform_attn()

    def benchmark_dcnv3(self):
        self.out = self.kernel.dcnv3(self.pixels, self.offset, self.mask, (3, 3), (1, 1), (1, 1), (1, 1), 8, 1.0, False)

    def verify_dcnv3(self):
        return convolution_reference(self.pixels, self.offset, self.mask, 8)

    def benchmark_dcnv4(self):
        self.out = self.kernel.dcnv4(self.pixels, self.offset_mask, (3, 3), (1, 1), (1, 1), (1, 1), 8, 1.0, False)

    def verify_dcnv4(self):
        return self.verify_dcnv3()
