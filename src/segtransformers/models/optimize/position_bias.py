# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""One piece of memory for the relative position biases of all blocks of a BEiT, on a CPU.

The biases of a block are `(heads, tokens, tokens)`: 164 MB in BEiT-L for 640x640 pixels. The system clears fresh
memory of that size page by page, which takes as long as writing the biases.
"""

import threading

import torch
from torch import nn

from ..trunk import Trunk
from ..trunk.blocks import BeitTrunkBlock
from ..trunk.positions import RelativePositionBias
from .replacement import is_on_cpu, is_plain


class BiasMemory(threading.local):
    """The memory of the current forward pass of each thread. Copies start empty."""

    bias: torch.Tensor | None = None

    def __reduce__(self):
        return BiasMemory, ()


class SharedRelativePositionBias(nn.Module):
    """[`RelativePositionBias`] that reuses the memory of the previous block.

    Args:
        position_bias: the layer to replace.
        memory: shared by the blocks of a trunk.
        is_last: whether this is the last block, after which the memory is freed.
    """

    def __init__(self, position_bias: RelativePositionBias, memory: BiasMemory, is_last: bool):
        super().__init__()
        self.position_bias, self.memory, self.is_last = position_bias, memory, is_last

    def forward(
        self,
        table: torch.Tensor,
        grid: tuple[int, int],
        interpolation: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> torch.Tensor:
        """See [`RelativePositionBias`]. The result holds until the next block runs."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or table.device.type != "cpu":
            return self.position_bias(table, grid, interpolation)
        offsets = self.position_bias.offset_biases(table, interpolation)
        tokens = self.position_bias.num_prefix_tokens + grid[0] * grid[1]
        bias, shape = self.memory.bias, (1, table.shape[1], tokens, tokens)
        like = (shape, offsets.dtype, torch.is_inference_mode_enabled())
        if bias is None or (bias.shape, bias.dtype, bias.is_inference()) != like:
            bias = offsets.new_empty(shape)
        self.memory.bias = None if self.is_last else bias
        self.position_bias.write(bias, table, offsets, grid)
        return bias


def share_position_bias_memory(model: nn.Module) -> int:
    """Replace the layers that expand relative position biases."""
    if not is_on_cpu(model):
        return 0
    count = 0
    for trunk in (module for module in model.modules() if type(module) is Trunk):
        blocks = [
            block
            for block in trunk.blocks
            if type(block) is BeitTrunkBlock
            and block.position_bias is not None
            and is_plain(block.position_bias, RelativePositionBias)
        ]
        memory = BiasMemory()
        for block in blocks:
            block.position_bias = SharedRelativePositionBias(block.position_bias, memory, block is blocks[-1])
        count += len(blocks)
    return count


__all__ = ["BiasMemory", "SharedRelativePositionBias", "share_position_bias_memory"]
