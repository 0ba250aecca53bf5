# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Products and attention beside PyTorch's own in float64, also run by test_numbers.py with other instruction sets."""

import os

import pytest
import torch
from torch.nn import functional as F

# largest relative errors of products, whose output is rounded: those of float32 are 2e-7 to 5e-7
ERRORS = {torch.float32: 5e-7, torch.bfloat16: 2.5e-3}


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request, ops):
    if ops.matrix.PRODUCTS[request.param] is None:
        pytest.skip("this processor has neither AVX-512 nor AMX for this dtype, or the tests chose other instructions")
    return request.param


@pytest.fixture
def matrix(ops, dtype):
    return ops.matrix


def error(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


def test_instructions_are_used_where_the_processor_has_them(ops):
    """A kernel that was built by GCC 11, clang 12 or newer has code for all of them."""
    try:
        with open("/proc/cpuinfo") as cpuinfo:
            flags = cpuinfo.read()
    except OSError:
        pytest.skip("the system does not list the processor's instructions")
    chosen = os.environ.get("DEFORMABLE_OPS_INSTRUCTIONS")
    has_vectors = all(f"avx512{part}" in flags for part in ("f", "bw", "dq", "vl")) and chosen in (None, "avx512")
    has_unit, has_bfloat16 = ("amx_bf16" in flags and chosen is None), ("avx512_bf16" in flags and chosen is None)
    expected = {
        torch.float32: "matrix unit" if has_unit else "vectors" if has_vectors else None,
        torch.bfloat16: "vectors" if has_bfloat16 else None,
    }
    assert expected == ops.matrix.PRODUCTS


@pytest.mark.parametrize(
    ("rows", "inner", "columns"),
    [(1, 2, 1), (33, 70, 45), (100, 32, 64), (7, 1100, 33), (700, 48, 300), (320, 600, 31), (40, 2048, 40)],
)
def test_product(matrix, dtype, rows, inner, columns):
    """More than one pass over rows, inner indices and columns, and incomplete blocks of each."""
    left, weight = torch.randn(1, rows, inner).to(dtype), torch.randn(1, columns, inner).to(dtype)
    bias = torch.randn(columns).to(dtype)
    output = torch.full((1, 1, rows, columns), torch.nan, dtype=dtype)
    packed = matrix.pack_weight(weight)
    matrix.product(left, packed, output, bias)
    expected = left[0].double() @ weight[0].double().t() + bias
    assert error(output[0, 0], expected) < ERRORS[dtype]
    matrix.product(left, packed, output, accumulate=True)
    assert error(output[0, 0], 2 * expected - bias) < 1.5 * ERRORS[dtype]


def test_any_number_of_inner_indices(matrix, dtype):
    if dtype == torch.bfloat16:
        with pytest.raises(RuntimeError, match="even number of inner indices, got 3"):
            matrix.product(
                torch.zeros(1, 4, 3, dtype=dtype), torch.zeros(1, 1, 2, 64, dtype=dtype), torch.zeros(1, 1, 4, 5)
            )
        return
    left, weight, output = torch.randn(1, 5, 3), torch.randn(1, 4, 3), torch.empty(1, 1, 5, 4)
    matrix.product(left, matrix.pack_weight(weight), output)
    assert error(output[0, 0], left[0].double() @ weight[0].double().t()) < 5e-7


def test_sums_of_bfloat16_numbers_can_stay_in_float32(matrix, dtype):
    left, weight = torch.randn(1, 90, 64).to(dtype), torch.randn(1, 50, 64).to(dtype)
    output = torch.empty(1, 1, 90, 50)
    matrix.product(left, matrix.pack_weight(weight), output)
    assert error(output[0, 0], left[0].double() @ weight[0].double().t()) < 5e-7


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_activations(matrix, dtype, activation):
    left, weight, bias = (torch.randn(size).to(dtype) for size in ((1, 90, 40), (1, 50, 40), (50,)))
    weight = weight / 8
    output = torch.empty(1, 1, 90, 50, dtype=dtype)
    matrix.product(left, matrix.pack_weight(weight), output, bias, activation)
    expected = getattr(F, activation)(left[0].double() @ weight[0].double().t() + bias)
    tolerance = 2e-6 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(output[0, 0].double(), expected, rtol=tolerance, atol=2e-6)


def test_gelu_of_all_numbers(matrix, dtype):
    numbers = torch.arange(-6, 6, 2**-10).to(dtype).view(1, -1, 2)
    weight, output = torch.eye(2, dtype=dtype)[None], torch.empty(1, *numbers.shape, dtype=dtype)
    matrix.product(numbers, matrix.pack_weight(weight), output, activation="gelu")
    tolerance = 1e-6 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(output[0, 0].double(), F.gelu(numbers[0].double()), rtol=tolerance, atol=1e-6)


def test_gelu_far_from_zero(matrix, dtype):
    numbers = torch.tensor([-1e4, -40.0, -12.0, -6.0, -1e-3, 0.0, 1e-3, 6.0, 40.0, 1e4]).to(dtype)
    weight, output = torch.eye(10, dtype=dtype)[None], torch.empty(1, 1, 1, 10, dtype=dtype)
    matrix.product(numbers[None, None], matrix.pack_weight(weight), output, activation="gelu")
    tolerance = 1e-6 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(output.flatten().float(), F.gelu(numbers.float()), rtol=tolerance, atol=1e-6)


def test_several_products_with_rows_apart_from_each_other(matrix, dtype):
    left, weight = torch.randn(5, 60, 80).to(dtype)[:, ::2, 8:72], torch.randn(5, 20, 64).to(dtype)
    memory = torch.full((3, 10, 2, 5, 32), torch.nan, dtype=dtype)
    output = memory.permute(3, 0, 1, 2, 4)[:, :, :, 1, :20]  # 3 lines of 10 rows
    matrix.product(left, matrix.pack_weight(weight), output)
    expected = left.double() @ weight.double().mT
    assert error(output.flatten(1, 2), expected) < ERRORS[dtype]
    assert memory[..., 20:].isnan().all() and memory[:, :, 0].isnan().all()


def test_weights_of_any_size_keep_their_precision(matrix, dtype):
    """With AMX, the three parts of a number add up to it, whatever its exponent."""
    weight = (torch.randn(1, 64, 64) * 10.0 ** torch.randint(-20, 20, (1, 64, 64))).to(dtype)
    output = torch.empty(1, 1, 64, 64, dtype=dtype)
    matrix.product(torch.eye(64, dtype=dtype)[None], matrix.pack_weight(weight), output)
    torch.testing.assert_close(output[0, 0].t(), weight[0], rtol=2e-7, atol=0)


def test_not_a_number_stays(matrix, dtype):
    left = torch.ones(1, 3, 32, dtype=dtype)
    left[0, 1, 5] = torch.nan
    for activation in (None, "relu", "gelu"):
        output = torch.empty(1, 1, 3, 32, dtype=dtype)
        matrix.product(left, matrix.pack_weight(torch.ones(1, 32, 32, dtype=dtype)), output, activation=activation)
        assert output[0, 0].isnan().all(1).tolist() == [False, True, False]


@pytest.mark.parametrize("channels", [64, 20, 96])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (100, 33), (65, 300)])
def test_attention(matrix, dtype, channels, queries, keys):
    query = torch.randn(2, queries, 3, channels).to(dtype).transpose(1, 2)
    key, value = torch.randn(2, 2, keys, 3, channels).to(dtype).transpose(2, 3)
    actual = matrix.attention(query, key, value, channels**-0.5)
    expected = F.scaled_dot_product_attention(query.double(), key.double(), value.double())
    assert actual.shape == (2, queries, 3, channels) and actual.dtype == dtype
    assert error(actual, expected.transpose(1, 2)) < 2 * ERRORS[dtype]


@pytest.mark.parametrize("has_prefix", [False, True])
@pytest.mark.parametrize("grid", [(1, 1), (5, 7), (12, 3)])
def test_position_biases(matrix, dtype, grid, has_prefix):
    heads, tokens, (height, width) = 3, grid[0] * grid[1] + has_prefix, grid
    query, key, value = torch.randn(3, 2, heads, tokens, 32).to(dtype).unbind(0)
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
    assert error(actual, expected.transpose(1, 2)) < 2 * ERRORS[dtype]


def test_large_logits(matrix, dtype):
    query, key, value = (300 * torch.randn(3, 1, 1, 40, 32)).to(dtype).unbind(0)
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
        ("pack_weight", lambda packed: (torch.zeros(1, 32, 32).double(),), "weight must be float32 or bfloat16"),
        ("pack_weight", lambda packed: (torch.zeros(32, 32),), "weight must have 3 dimensions"),
        ("pack_weight", lambda packed: (torch.zeros(1, 32, 32).mT,), "weight must be contiguous"),
        ("product", lambda packed: (torch.zeros(1, 4, 16), packed, torch.zeros(1, 1, 4, 32)), "weight must be packed"),
        ("product", lambda packed: (torch.zeros(1, 4, 0), packed, torch.zeros(1, 1, 4, 32)), "must have inner indices"),
        (
            "product",
            lambda packed: (torch.zeros(1, 4, 40), packed.double(), torch.zeros(1, 1, 4, 32)),
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
def test_arguments_that_do_not_fit(ops, name, arguments, message):
    if ops.matrix.PRODUCTS[torch.float32] is None:
        pytest.skip("this processor has neither AVX-512 nor AMX, or the tests chose other instructions")
    packed = ops.matrix.pack_weight(torch.zeros(1, 32, 40))
    with pytest.raises(RuntimeError, match=message):
        getattr(ops.matrix, name)(*arguments(packed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_processor_without_products_says_so(ops, dtype):
    if ops.matrix.PRODUCTS[dtype] is not None:
        pytest.skip("this processor has products of this dtype")
    with pytest.raises(RuntimeError, match=r"this processor has no products of \w+ matrices"):
        ops.matrix.pack_weight(torch.zeros(1, 32, 32, dtype=dtype))


def test_shapes_for_compilation(ops):
    for dtype, kind in ops.matrix.PRODUCTS.items():
        weight = torch.empty(2, 33, 64, dtype=dtype)
        expected = ops.matrix.pack_weight(weight) if kind is not None else None
        assumed = ops.matrix.pack_weight(weight.to("meta"))
        assert expected is None or (assumed.shape, assumed.dtype) == (expected.shape, expected.dtype)
    parts = torch.empty(3, 2, 4, 10, 16, device="meta").unbind()
    assert ops.matrix.attention(*parts, 1.0).shape == (2, 10, 4, 16)
