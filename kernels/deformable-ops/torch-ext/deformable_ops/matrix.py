# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Products of float32 matrices and attention by a CPU's matrix unit for bfloat16 (AMX), without gradients.

Every number is split into three bfloat16 numbers, and the six largest of their nine products are added up in float32.
The error is that of a product in float32. Numbers that are infinite or above 3.38e38 give NaN.
"""

import torch

from ._ops import add_op_namespace_prefix, ops

BLOCK = 32  # rows, columns and inner indices that are multiplied at once
ACTIVATIONS = (None, "relu", "gelu")
# whether this processor has AMX with bfloat16, and the system lets this process use it
HAS_MATRIX_UNIT: bool = ops.has_matrix_unit()


def pack_weight(weight: torch.Tensor) -> torch.Tensor:
    """Split the weights `(N, columns, inner)` of N products and order them for the matrix unit.

    Returns:
        int16 numbers with the bits of bfloat16 numbers, `(N, blocks of columns, blocks of inner, 3072)`: 6 bytes for a
        weight, and zeros that fill up the blocks of 32.

    Raises:
        RuntimeError: if the processor has no AMX, or `weight` is not contiguous float32 on the CPU.
    """
    return ops.pack_weight(weight)


def product(
    rows: torch.Tensor,
    weight: torch.Tensor,
    output: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    accumulate: bool = False,
) -> None:
    """Multiply rows by transposed weights, for N pairs of matrices.

    Args:
        rows: `(N, lines * width, inner)`, contiguous in the last dimension.
        weight: from [`pack_weight`].
        output: `(N, lines, width, columns)`, written; contiguous in the last dimension. The rows of a line may be apart
            from each other in memory, and so may the lines.
        bias: `(columns,)`, added to each row.
        activation: one of `ACTIVATIONS`, applied to the sums; `"gelu"` is the exact one.
        accumulate: whether to add the sums to what `output` has, before the activation.

    Raises:
        RuntimeError: if shapes or dtypes do not fit together, or the processor has no AMX.
    """
    ops.product(rows, weight, bias, ACTIVATIONS.index(activation), accumulate, output)


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    keys_of_columns: torch.Tensor | None = None,
    prefix: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute attention, `softmax(scale * query @ key.mT + bias) @ value`.

    The bias depends on the offset between the positions of query and key on a grid (height, width), row by row. A
    prefix token in front of the patches has biases of its own.

    Args:
        query: `(B, heads, queries, channels)`, contiguous in the last dimension.
        key, value: `(B, heads, keys, channels)`, contiguous in the last dimension.
        keys_of_columns: `(heads, width, (2 * height - 1) * width)`, the biases; None for none. Element
            `[h, x, (y' - y + height - 1) * width + x']` is for a query at row y and column x and a key at row y' and
            column x'. Queries and keys are those of the whole grid.
        prefix: `(3, heads)`, biases of prefix token to patch, patch to prefix token, prefix token to itself; None if
            the first token is a patch.

    Returns:
        `(B, queries, heads, channels)`.

    Raises:
        RuntimeError: if shapes or dtypes do not fit together, or the processor has no AMX.
    """
    return ops.attention(query, key, value, scale, keys_of_columns, prefix)


@torch.library.register_fake(add_op_namespace_prefix("pack_weight"))
def _fake_pack_weight(weight):
    count, columns, inner = weight.shape
    blocks = (count, -(-columns // BLOCK), -(-inner // BLOCK), 3 * BLOCK**2)
    return weight.new_empty(blocks, dtype=torch.int16)


@torch.library.register_fake(add_op_namespace_prefix("product"))
def _fake_product(rows, weight, bias, activation, accumulate, output):
    return None


@torch.library.register_fake(add_op_namespace_prefix("attention"))
def _fake_attention(query, key, value, scale, keys_of_columns, prefix):
    batch, heads, queries, channels = query.shape
    return query.new_empty((batch, queries, heads, channels))
