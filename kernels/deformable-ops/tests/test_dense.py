# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The dense operators beside PyTorch's own in float64. test_numbers.py runs these tests with other instruction sets."""

import pytest
import torch
from torch.nn import functional as F

A, B = 0.75, 1.5


@pytest.fixture
def dense(ops):
    return ops.dense


def filters(weight):
    """Transform `(C_out, C_in, 3, 3)` to `(36, C_in, C_out)`: values of each row's polynomial at the points."""
    points = torch.tensor([0, A, -A, B, -B], dtype=torch.float64)
    differences = points[:, None] - points + torch.eye(5, dtype=torch.float64)
    rows = torch.stack([points**power for power in range(3)], dim=1) / differences.prod(1, keepdim=True)
    matrix = torch.cat([rows, torch.tensor([[0, 0, 1]], dtype=torch.float64)])
    return torch.einsum("ia,kb,ocab->ikco", matrix, matrix, weight).flatten(0, 1).contiguous()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (4, 8), (13, 6)])
def test_minimal_filtering(dense, size, relu, dtype, bound):
    """The planes of a step hold some rows of tiles, and are apart from each other in memory."""
    batch, channels, out_channels = 2, 32, 48
    pixels, bias = torch.randn(batch, *size, channels).to(dtype), torch.randn(out_channels).to(dtype)
    weight = torch.randn(out_channels, channels, 3, 3, dtype=torch.float64)
    kernels, output = filters(weight).float(), torch.full((batch, *size, out_channels), torch.nan, dtype=dtype)
    rows, columns = -(-size[0] // 4), -(-size[1] // 4)
    for image in range(batch):
        for row in range(rows):
            memory = torch.empty(36, columns * channels + 8, dtype=dtype)
            sums = memory[:, : columns * channels].unflatten(1, (columns, channels))
            dense.winograd_inputs(pixels, torch.zeros(channels, dtype=dtype), image, row, sums)
            dense.winograd_outputs(sums.float() @ kernels, bias, image, row, relu, output)
    expected = F.conv2d(pixels.permute(0, 3, 1, 2).double(), weight, bias.double(), padding=1).permute(0, 2, 3, 1)
    expected = expected.relu() if relu else expected
    assert (output - expected).norm() / expected.norm() < bound


def rounding(dtype):
    return {"rtol": 2**-7, "atol": 2**-7} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 2e-5}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (20, 36), (3, 64)])
def test_resizes(dense, size, dtype):
    planes = torch.randn(2, 3, 5, 9, dtype=dtype)
    expected = F.interpolate(planes.double(), size=size, mode="bilinear", align_corners=False)
    output = dense.resize_planes(planes, *size)
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), expected, **rounding(dtype))

    pixels, target = torch.randn(2, 5, 9, 32, dtype=dtype), torch.randn(2, *size, 32, dtype=dtype)
    resized = F.interpolate(pixels.permute(0, 3, 1, 2).double(), size=size, mode="bilinear", align_corners=False)
    expected = target.double() + resized.permute(0, 2, 3, 1)
    dense.add_resized(pixels, target)
    torch.testing.assert_close(target.double(), expected, **rounding(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (10, 18), (13, 7)])
@pytest.mark.parametrize("maps", [[(5, 9)], [(5, 9), (3, 4), (1, 1)], [(2, 2)] * 8])
def test_resized_products_of_a_kernel(dense, maps, size, relu, dtype):
    target = torch.randn(2, *size, 64, dtype=dtype)
    expected, products = target.double(), []
    for height, width in maps:
        features = torch.randn(2, 16, height, width, dtype=torch.float64)
        weight = torch.randn(32, 16, 3, 3, dtype=torch.float64) / 12
        products.append(torch.einsum("bchw,ocij->bhwijo", features, weight).flatten(3, 4).contiguous().to(dtype))
        resized = F.interpolate(features, size=size, mode="bilinear", align_corners=False)
        expected[..., 16:48] += F.conv2d(resized, weight, padding=1).permute(0, 2, 3, 1)
    if relu:
        expected[..., 16:48].relu_()
    dense.add_resized_taps(products, 16, relu, target)
    bound = 0.05 if dtype == torch.bfloat16 else 1e-5  # nine rounded products of each map are summed
    torch.testing.assert_close(target.double(), expected, rtol=bound, atol=bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 9, 100, 1024])
def test_softmax(dense, size, dtype):
    logits = (20 * torch.randn(37, size)).to(dtype)
    expected = logits.double().softmax(1)
    dense.softmax_rows(logits)
    torch.testing.assert_close(logits.double(), expected, rtol=2**-8 if dtype == torch.bfloat16 else 1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "size"), [(1, 16), (333, 48), (70, 64), (5, 1024)])
def test_layer_norm(dense, rows, size, dtype):
    numbers = (10 + torch.randn(rows, size) * (0.1 + torch.rand(rows, 1))).to(dtype)
    weight, bias = torch.randn(2, size).to(dtype)
    expected = F.layer_norm(numbers.double(), (size,), weight.double(), bias.double(), 1e-6)
    found = dense.layer_norm_rows(numbers, weight, bias, 1e-6)
    assert found.dtype == dtype
    bound = 2**-7 if dtype == torch.bfloat16 else 1e-4  # the mean takes digits away
    torch.testing.assert_close(found.double(), expected, rtol=bound, atol=bound)
    numbers[0, 0] = torch.nan
    found = dense.layer_norm_rows(numbers, weight, bias, 1e-6)
    assert found[0].isnan().all() and not found[1:].isnan().any()


def label_means(logits, origins, window, view, image):
    """The logits of an image `(classes, *image)` in float64, from those of its windows `(N, h, w, classes)`."""
    classes = logits.shape[-1]
    sums, counts = torch.zeros(classes, *view, dtype=torch.float64), torch.zeros(view, dtype=torch.float64)
    windows = F.interpolate(logits.movedim(3, 1).double(), size=window, mode="bilinear")
    for (y, x), one in zip(origins, windows, strict=True):
        width = min(window[1], view[1] - x)
        sums[:, y : y + window[0], x : x + width] += one[..., :width]
        counts[y : y + window[0], x : x + width] += 1
    return F.interpolate((sums / counts)[None], size=image, mode="bilinear")[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("image", "classes"), [((30, 44), 7), ((30, 40), 16), ((61, 90), 21), ((13, 7), 150), ((30, 44), 150), ((1, 1), 1)]
)
@pytest.mark.parametrize("columns", [(0, 10, 20, 30), (0, 2, 4, 6, 8, 10, 12, 28)])
def test_labels_of_windows(dense, image, classes, columns, dtype):
    """Rows in parts, with the windows that they need; a view of 30x44 pixels is resized to the image.

    The last windows reach over the right border. Many windows cover a pixel where their columns are close together.
    """
    window, view = (12, 16), (30, 44)
    origins = [(y, x) for y in (0, 8, 16, 18) for x in columns]
    logits = torch.randn(len(origins), 5, 6, classes).to(dtype)
    means = label_means(logits, origins, window, view, image)
    whole = dense.label_windows(logits, origins, window, (0, image[0]), view, image)
    assert whole.dtype == torch.int64 and whole.shape == image
    best = means.gather(0, whole[None])[0]
    assert (means.max(0).values - best).max() < 1e-6  # another class only where it is as good
    start = image[0] // 2
    first = (start + 0.5) * view[0] / image[0] - 2  # the row of the view that the part needs
    needed = [index for index, (y, _) in enumerate(origins) if y + window[0] > first]
    part = dense.label_windows(logits[needed], [origins[i] for i in needed], window, (start, image[0]), view, image)
    assert torch.equal(part, whole[start:])


@pytest.mark.parametrize("classes", [2, 40])
def test_equal_logits_are_labelled_with_the_first_class(dense, classes):
    logits = torch.ones(1, 3, 3, classes)
    assert not dense.label_windows(logits, [(0, 0)], (6, 6), (0, 6), (6, 6), (6, 6)).any()
    logits[..., 0] = 0
    assert (dense.label_windows(logits, [(0, 0)], (6, 6), (0, 6), (6, 6), (6, 6)) == 1).all()


@pytest.mark.parametrize("classes", [2, 40])
def test_no_class_is_taken_for_logits_that_are_not_numbers(dense, classes):
    logits = torch.full((1, 3, 3, classes), torch.nan)
    assert (dense.label_windows(logits, [(0, 0)], (3, 3), (0, 3), (3, 3), (3, 3)) == 0).all()
    logits[0, 1, 1, 1:] = -torch.inf
    logits[0, 2, 2, -1] = -5
    labels = dense.label_windows(logits, [(0, 0)], (3, 3), (0, 3), (3, 3), (3, 3))
    assert labels[1, 1] == 0 and labels[2, 2] == classes - 1


def test_numbers_that_are_not_finite_stay(dense):
    planes = torch.tensor([[[[1.0, torch.nan], [torch.inf, 2.0]]]])
    for dtype in (torch.float32, torch.bfloat16):
        assert dense.resize_planes(planes.to(dtype), 2, 2).isnan()[0, 0, 0, 1]
        output = torch.zeros(1, 1, 1, 16, dtype=dtype)
        bias = torch.zeros(16, dtype=dtype)
        dense.winograd_outputs(torch.full((36, 1, 16), torch.nan), bias, 0, 0, True, output)
        assert output.isnan().all()
    logits = torch.tensor([[1.0, torch.nan]])
    dense.softmax_rows(logits)
    assert logits.isnan().all()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resize_planes", lambda: (torch.zeros(1, 2, 3, 4, dtype=torch.float64), 2, 2), "float32 or bfloat16"),
        ("resize_planes", lambda: (torch.zeros(1, 2, 3, 4), 0, 2), "cannot resize planes"),
        ("resize_planes", lambda: (torch.zeros(1, 2, 3), 2, 2), "4 dimensions"),
        ("add_resized", lambda: (torch.zeros(1, 2, 2, 8), torch.zeros(1, 4, 4, 8)), "multiple of 16 channels"),
        ("add_resized", lambda: (torch.zeros(1, 2, 2, 16), torch.zeros(2, 4, 4, 16)), "batch size and channels"),
        ("add_resized", lambda: (torch.zeros(1, 2, 2, 16), torch.zeros(1, 16, 4, 4).permute(0, 2, 3, 1)), "contiguous"),
        (
            "add_resized_taps",
            lambda: ([torch.zeros(1, 2, 2, 8, 16)], 0, False, torch.zeros(1, 4, 4, 16)),
            "height, width, 9",
        ),
        (
            "add_resized_taps",
            lambda: ([torch.zeros(1, 2, 2, 9, 16)], 8, False, torch.zeros(1, 4, 4, 16)),
            "has no place",
        ),
        (
            "add_resized_taps",
            lambda: ([torch.zeros(1, 2, 2, 9, c) for c in (16, 32)], 0, False, torch.zeros(1, 4, 4, 64)),
            "has no place",
        ),
        ("add_resized_taps", lambda: ([], 0, False, torch.zeros(1, 4, 4, 16)), "1 to 8 maps"),
        ("softmax_rows", lambda: (torch.zeros(2, 1025),), "1 to 1024 columns"),
        ("layer_norm_rows", lambda: (torch.zeros(2, 8), torch.zeros(8), torch.zeros(8), 0.1), "multiple of 16"),
        ("layer_norm_rows", lambda: (torch.zeros(2, 16), torch.zeros(16), torch.zeros(32), 0.1), "equally many"),
        (
            "label_windows",
            lambda: (torch.zeros(2, 3, 4, 4), [(0, 0)], (8, 8), (0, 8), (8, 8), (8, 8)),
            "there must be 2 origins",
        ),
        (
            "label_windows",
            lambda: (torch.zeros(1, 3, 4, 4), [(0, 9)], (8, 8), (0, 8), (8, 8), (8, 8)),
            "windows must start at columns 0 to 7, got 9",
        ),
        (
            "label_windows",
            lambda: (torch.zeros(1, 3, 4, 4), [(0, 0)], (8, 8), (0, 9), (8, 8), (8, 8)),
            "cannot label the rows",
        ),
        (
            "label_windows",
            lambda: (torch.zeros(0, 3, 4, 4), [], (8, 8), (0, 8), (8, 8), (8, 8)),
            "column 0 of the image lacks windows",
        ),
        (
            "label_windows",
            lambda: (torch.zeros(3, 3, 4, 4), [(0, 0), (0, 4), (4, 4)], (8, 8), (0, 8), (12, 12), (12, 12)),
            "row 4 of the image lacks windows",
        ),
        (
            "label_windows",
            lambda: (torch.zeros(2, 3, 4, 4), [(0, 0), (0, 0)], (8, 8), (0, 8), (8, 8), (8, 8)),
            "row 0 of the image lacks windows or has some twice",
        ),
        (
            "label_windows",
            lambda: (torch.zeros(2, 3, 4, 4), [(0, 0), (0, 10)], (8, 8), (0, 8), (8, 18), (8, 18)),
            "column 8 of the image lacks windows",
        ),
        (
            "label_windows",
            lambda: (torch.zeros(1, 3, 4, 4), [(0, 0)], (8, 8), (0, 12), (12, 8), (12, 8)),
            "row 8 of the image lacks windows",
        ),
        (
            "winograd_inputs",
            lambda: (torch.zeros(1, 8, 8, 16), torch.zeros(16), 0, 1, torch.zeros(36, 4, 16)),
            "whole rows of 2 by 2 tiles",
        ),
        (
            "winograd_inputs",
            lambda: (torch.zeros(1, 8, 8, 16), torch.zeros(16), 1, 0, torch.zeros(36, 4, 16)),
            "image must be below 1",
        ),
        (
            "winograd_outputs",
            lambda: (torch.zeros(16, 4, 16), torch.zeros(16), 0, 0, False, torch.zeros(1, 8, 8, 16)),
            "planes must be float32",
        ),
    ],
)
def test_arguments_that_do_not_fit(dense, name, arguments, message):
    with pytest.raises(RuntimeError, match=message):
        getattr(dense, name)(*arguments())


def test_shapes_for_compilation(dense):
    planes = torch.zeros(2, 3, 4, 5, device="meta")
    assert dense.resize_planes(planes, 8, 10).shape == (2, 3, 8, 10)
