# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Products of matrices and attention on a CPU with AVX-512 or AMX, in float32 or bfloat16, without gradients.

With AMX, which multiplies bfloat16 numbers, every float32 number is split into three of them, and the six largest of
their nine products are added up in float32. The error is that of a product in float32. Numbers that are infinite or
above 3.38e38 give NaN. Without AMX, vectors of float32 numbers are multiplied. bfloat16 matrices need AVX512-BF16,
which takes subnormal numbers as zero; the sums are float32.
"""

import torch

from ._ops import add_op_namespace_prefix, ops

BLOCK = 32  # columns of a block of packed weights
ACTIVATIONS = (None, "relu", "gelu")
# how this processor multiplies matrices of a type: not at all, by vectors or by its matrix unit (AMX)
PRODUCTS: dict[torch.dtype, str | None] = {
    dtype: (None, "vectors", "matrix unit")[ops.matrix_products(dtype == torch.bfloat16)]
    for dtype in (torch.float32, torch.bfloat16)
}


def pack_weight(weight: torch.Tensor) -> torch.Tensor:
    """Order the weights `(N, columns, inner)` of N products as [`product`] reads them.

    Returns:
        `(N, blocks of 32 columns, blocks of inner, numbers)`, with zeros that fill up the blocks. With AMX, blocks of
        float32 weights have 32 inner indices: int16 numbers with the bits of three bfloat16 numbers for each weight.
        Else they have one inner index, or two of bfloat16 weights, and the type of `weight`.

    Raises:
        RuntimeError: if [`PRODUCTS`] has none of this type, or `weight` is not contiguous on the CPU.
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
        rows: `(N, lines * width, inner)`, float32 or bfloat16, contiguous in the last dimension. bfloat16 rows have an
            even number of inner indices.
        weight: from [`pack_weight`].
        output: `(N, lines, width, columns)`, written, in the type of the rows, or float32; contiguous in the last
            dimension. The rows of a line may be apart from each other in memory, and so may the lines.
        bias: `(columns,)` in the type of the rows, added to each row.
        activation: one of `ACTIVATIONS`, applied to the sums. `"gelu"` is the one with the error function. Its absolute
            error is below 1e-7 * |x|. For a bfloat16 output, the relative error before rounding is below 7e-4 where x
            is above -4.
        accumulate: whether to add the sums to what `output` has, before the activation.

    Raises:
        RuntimeError: if shapes or dtypes do not fit together, or [`PRODUCTS`] has none of this type.
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
        query: `(B, heads, queries, channels)`, float32 or bfloat16, contiguous in the last dimension. In bfloat16, the
            number of channels is even.
        key, value: `(B, heads, keys, channels)`, contiguous in the last dimension.
        keys_of_columns: `(heads, width, (2 * height - 1) * width)`, the biases, float32; None for none. Element
            `[h, x, (y' - y + height - 1) * width + x']` is for a query at row y and column x and a key at row y' and
            column x'. Queries and keys are those of the whole grid.
        prefix: `(3, heads)`, float32, biases of prefix token to patch, patch to prefix token, prefix token to itself;
            None if the first token is a patch.

    Returns:
        `(B, queries, heads, channels)`.

    Raises:
        RuntimeError: if shapes or dtypes do not fit together, or [`PRODUCTS`] has none of this type.
    """
    return ops.attention(query, key, value, scale, keys_of_columns, prefix)


@torch.library.register_fake(add_op_namespace_prefix("pack_weight"))
def _fake_pack_weight(weight):
    count, columns, inner = weight.shape
    blocks = -(-columns // BLOCK)
    if PRODUCTS.get(weight.dtype) == "matrix unit":
        return weight.new_empty((count, blocks, -(-inner // BLOCK), 3 * BLOCK**2), dtype=torch.int16)
    step = 1 if weight.dtype == torch.float32 else 2
    return weight.new_empty((count, blocks, -(-inner // step), step * BLOCK))


@torch.library.register_fake(add_op_namespace_prefix("product"))
def _fake_product(rows, weight, bias, activation, accumulate, output):
    return None


@torch.library.register_fake(add_op_namespace_prefix("attention"))
def _fake_attention(query, key, value, scale, keys_of_columns, prefix):
    batch, heads, queries, channels = query.shape
    return query.new_empty((batch, queries, heads, channels))
