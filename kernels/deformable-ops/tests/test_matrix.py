# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Products and attention by the matrix unit beside PyTorch's own in float64."""

import os

import pytest
import torch
from torch.nn import functional as F


@pytest.fixture
def matrix(ops):
    if not ops.matrix.HAS_MATRIX_UNIT:
        pytest.skip("this processor has no AMX with bfloat16, or the tests chose other instructions")
    return ops.matrix


def error(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


def test_the_unit_is_used_where_the_processor_has_it(ops):
    try:
        with open("/proc/cpuinfo") as cpuinfo:
            flags = cpuinfo.read()
    except OSError:
        pytest.skip("the system does not list the processor's instructions")
    if "DEFORMABLE_OPS_INSTRUCTIONS" in os.environ:
        assert not ops.matrix.HAS_MATRIX_UNIT
    else:
        assert ("amx_bf16" in flags) == ops.matrix.HAS_MATRIX_UNIT


@pytest.mark.parametrize(
    ("rows", "inner", "columns"),
    [(1, 1, 1), (33, 70, 45), (100, 32, 64), (7, 1100, 33), (700, 48, 300), (320, 600, 31)],
)
def test_product(matrix, rows, inner, columns):
    """More than one pass over rows, inner indices and columns, and incomplete blocks of each."""
    left, weight, bias = torch.randn(1, rows, inner), torch.randn(1, columns, inner), torch.randn(columns)
    output = torch.full((1, 1, rows, columns), torch.nan)
    packed = matrix.pack_weight(weight)
    matrix.product(left, packed, output, bias)
    expected = left[0].double() @ weight[0].double().t() + bias
    assert error(output[0, 0], expected) < 5e-7  # that of float32 is 2e-7 to 5e-7
    matrix.product(left, packed, output, accumulate=True)
    assert error(output[0, 0], 2 * expected - bias) < 5e-7


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_activations(matrix, activation):
    left, weight, bias = torch.randn(1, 90, 40), torch.randn(1, 50, 40) / 6, torch.randn(50)
    output = torch.empty(1, 1, 90, 50)
    matrix.product(left, matrix.pack_weight(weight), output, bias, activation)
    expected = getattr(F, activation)(left[0].double() @ weight[0].double().t() + bias)
    torch.testing.assert_close(output[0, 0].double(), expected, rtol=2e-6, atol=2e-6)


def test_gelu_far_from_zero(matrix):
    numbers = torch.tensor([-1e4, -40.0, -12.0, -6.0, -1e-3, 0.0, 1e-3, 6.0, 40.0, 1e4])
    weight, output = torch.eye(10)[None], torch.empty(1, 1, 1, 10)
    matrix.product(numbers[None, None], matrix.pack_weight(weight), output, activation="gelu")
    torch.testing.assert_close(output.flatten(), F.gelu(numbers), rtol=1e-6, atol=1e-6)


def test_several_products_with_rows_apart_from_each_other(matrix):
    left, weight = torch.randn(5, 60, 80)[:, ::2, 8:72], torch.randn(5, 20, 64)
    memory = torch.full((3, 10, 2, 5, 32), torch.nan)
    output = memory.permute(3, 0, 1, 2, 4)[:, :, :, 1, :20]  # 3 lines of 10 rows
    matrix.product(left, matrix.pack_weight(weight), output)
    expected = left.double() @ weight.double().mT
    assert error(output.flatten(1, 2), expected) < 5e-7
    assert memory[..., 20:].isnan().all() and memory[:, :, 0].isnan().all()


def test_weights_of_any_size_keep_their_precision(matrix):
    """The three parts of a number add up to it, whatever its exponent."""
    weight = torch.randn(1, 64, 64) * 10.0 ** torch.randint(-20, 20, (1, 64, 64))
    output = torch.empty(1, 1, 64, 64)
    matrix.product(torch.eye(64)[None], matrix.pack_weight(weight), output)
    torch.testing.assert_close(output[0, 0].t(), weight[0], rtol=2e-7, atol=0)


def test_not_a_number_stays(matrix):
    left = torch.ones(1, 3, 32)
    left[0, 1, 5] = torch.nan
    for activation in (None, "relu", "gelu"):
        output = torch.empty(1, 1, 3, 32)
        matrix.product(left, matrix.pack_weight(torch.ones(1, 32, 32)), output, activation=activation)
        assert output[0, 0].isnan().all(1).tolist() == [False, True, False]


@pytest.mark.parametrize("channels", [64, 20, 96])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (100, 33), (65, 300)])
def test_attention(matrix, channels, queries, keys):
    query = torch.randn(2, queries, 3, channels).transpose(1, 2)
    key, value = torch.randn(2, 2, keys, 3, channels).transpose(2, 3)
    actual = matrix.attention(query, key, value, channels**-0.5)
    expected = F.scaled_dot_product_attention(query.double(), key.double(), value.double())
    assert actual.shape == (2, queries, 3, channels)
    assert error(actual, expected.transpose(1, 2)) < 1e-6


@pytest.mark.parametrize("has_prefix", [False, True])
@pytest.mark.parametrize("grid", [(1, 1), (5, 7), (12, 3)])
def test_position_biases(matrix, grid, has_prefix):
    heads, tokens, (height, width) = 3, grid[0] * grid[1] + has_prefix, grid
    query, key, value = torch.randn(3, 2, heads, tokens, 32).unbind(0)
    offsets, prefix = 3 * torch.randn(heads, 2 * height - 1, 2 * width - 1), 3 * torch.randn(3, heads)
    keys = torch.empty(heads, width, (2 * height - 1) * width)
    bias = torch.empty(heads, tokens, tokens)
    for y in range(height):
        for x in range(width):
            for other_y in range(height):
                for other_x in range(width):
                    one = offsets[:, y - other_y + height - 1, x - other_x + width - 1]
                    keys[:, x, (other_y - y + height - 1) * width + other_x] = one
                    bias[:, has_prefix + y * width + x, has_prefix + other_y * width + other_x] = one
    if has_prefix:
        bias[:, 0, 1:], bias[:, 1:, 0], bias[:, 0, 0] = prefix[0, :, None], prefix[1, :, None], prefix[2]
    actual = matrix.attention(query, key, value, 0.2, keys, prefix if has_prefix else None)
    query, key, value = query.double(), key.double(), value.double()
    expected = F.scaled_dot_product_attention(query, key, value, bias.double(), scale=0.2)
    assert error(actual, expected.transpose(1, 2)) < 1e-6


def test_large_logits(matrix):
    query, key, value = (300 * torch.randn(3, 1, 1, 40, 32)).unbind(0)
    actual = matrix.attention(query, key, value, 1.0)
    expected = F.scaled_dot_product_attention(query.double(), key.double(), value.double(), scale=1.0)
    assert actual.isfinite().all() and error(actual, expected.transpose(1, 2)) < 0.01


def test_other_users_of_the_unit_are_not_disturbed(matrix):
    """PyTorch's own products in bfloat16 use the same registers of a thread."""
    left, right = torch.randn(64, 256, dtype=torch.bfloat16), torch.randn(256, 128, dtype=torch.bfloat16)
    expected, packed = left @ right, matrix.pack_weight(torch.randn(1, 64, 64))
    for _ in range(3):
        matrix.product(torch.randn(1, 500, 64), packed, torch.empty(1, 1, 500, 64))
        assert torch.equal(left @ right, expected)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("pack_weight", lambda packed: (torch.zeros(1, 32, 32).double(),), "weight must be float32 on the CPU"),
        ("pack_weight", lambda packed: (torch.zeros(32, 32),), "weight must have 3 dimensions"),
        ("pack_weight", lambda packed: (torch.zeros(1, 32, 32).mT,), "weight must be contiguous"),
        ("product", lambda packed: (torch.zeros(1, 4, 16), packed, torch.zeros(1, 1, 4, 32)), "weight must be packed"),
        (
            "product",
            lambda packed: (torch.zeros(1, 4, 40), packed.float(), torch.zeros(1, 1, 4, 32)),
            "must be packed for 1 products of 40 numbers by 32",
        ),
        ("product", lambda packed: (torch.zeros(1, 4, 40), packed, torch.zeros(1, 1, 5, 32)), "must have the rows of"),
        (
            "product",
            lambda packed: (torch.zeros(1, 4, 40), packed, torch.zeros(1, 1, 4, 32), torch.zeros(31)),
            "bias must have 32 numbers",
        ),
        (
            "product",
            lambda packed: (torch.zeros(1, 40, 4).mT, packed, torch.zeros(1, 1, 4, 32)),
            "rows must be contiguous in its last dimension",
        ),
        ("attention", lambda packed: (*torch.zeros(3, 1, 2, 4, 8).double().unbind(), 1.0), "query must be float32"),
        (
            "attention",
            lambda packed: (torch.zeros(1, 2, 4, 8), *torch.zeros(2, 1, 2, 5, 9).unbind(), 1.0),
            "equal batch sizes, heads and channels",
        ),
        (
            "attention",
            lambda packed: (*torch.zeros(3, 1, 2, 4, 8).unbind(), 1.0, torch.zeros(2, 2, 8)),
            "keys_of_columns must be",
        ),
        (
            "attention",
            lambda packed: (*torch.zeros(3, 1, 2, 5, 8).unbind(), 1.0, torch.zeros(2, 2, 6), torch.zeros(3, 1)),
            "prefix must be",
        ),
    ],
)
def test_arguments_that_do_not_fit(matrix, name, arguments, message):
    packed = matrix.pack_weight(torch.zeros(1, 32, 40))
    with pytest.raises(RuntimeError, match=message):
        getattr(matrix, name)(*arguments(packed))


def test_a_processor_without_the_unit_says_so(ops):
    if ops.matrix.HAS_MATRIX_UNIT:
        pytest.skip("this processor has a matrix unit")
    with pytest.raises(RuntimeError, match="no AMX"):
        ops.matrix.pack_weight(torch.zeros(1, 32, 32))


def test_shapes_for_compilation(ops):
    assert ops.matrix.pack_weight(torch.empty(2, 33, 64, device="meta")).shape == (2, 2, 2, 3072)
    parts = torch.empty(3, 2, 4, 10, 16, device="meta").unbind()
    assert ops.matrix.attention(*parts, 1.0).shape == (2, 10, 4, 16)
