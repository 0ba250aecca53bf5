# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""DCNv3: equal to the original's numbers, and replaceable by other kernels."""

import inspect
import json

import pytest
import torch
from reference_cases import FOLDER, relative_error
from safetensors.torch import load_file

from segtransformers.operators import DeformableConvolutionV3, dcnv3_fallback, dcnv3_reference

CASES = sorted(folder.name for folder in (FOLDER / "operators").glob("dcnv3-*"))


def arguments(name: str) -> tuple[dict[str, torch.Tensor], dict]:
    """Return the recorded tensors and the operator's settings, under the names of its parameters."""
    folder = FOLDER / "operators" / name
    params = json.loads((folder / "manifest.json").read_text())["params"]
    settings = {
        "kernel_size": (params["kernel_h"], params["kernel_w"]),
        "stride": (params["stride"],) * 2,
        "padding": (params["pad"],) * 2,
        "dilation": (params["dilation"],) * 2,
        "groups": params["group"],
        "offset_scale": params["offset_scale"],
        "remove_center": bool(params["remove_center"]),
    }
    tensors = load_file(folder / "tensors.safetensors")
    tensors["value"], tensors["grad_value"] = tensors.pop("input"), tensors.pop("grad_input")
    return tensors, settings


def test_number_of_recorded_cases():
    assert len(CASES) == 15


@pytest.mark.parametrize("name", CASES)
def test_reference_equals_the_original(name):
    tensors, settings = arguments(name)
    inputs = {key: tensors[key].requires_grad_() for key in ("value", "offset", "mask")}
    output = dcnv3_reference(**inputs, **settings)
    assert output.dtype == torch.float64
    assert relative_error(output, tensors["output"]) < 1e-10
    output.backward(tensors["grad_output"])
    for key, tensor in inputs.items():
        if f"grad_{key}" not in tensors:  # not recorded: bilinear interpolation has no derivative at pixel centres
            assert name == "dcnv3-3x3-zero-offsets" and key == "offset"
            continue
        assert relative_error(tensor.grad, tensors[f"grad_{key}"]) < 1e-10, key


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float16, 1e-3), (torch.bfloat16, 5e-3)])
def test_coordinates_keep_their_precision(dtype, bound):
    tensors, settings = arguments("dcnv3-3x3-offset-scale-2")
    output = dcnv3_reference(
        tensors["value"].to(dtype), tensors["offset"].float(), tensors["mask"].to(dtype), **settings
    )
    assert output.dtype == dtype
    assert relative_error(output, tensors["output"]) < bound


def test_each_axis_has_its_own_stride_padding_and_dilation():
    """Compare with a loop over pixels, because the recorded cases have equal settings on both axes."""
    settings = {
        "kernel_size": (3, 2),
        "stride": (2, 1),
        "padding": (0, 2),
        "dilation": (1, 3),
        "groups": 2,
        "offset_scale": 1.5,
        "remove_center": False,
    }
    height, width, group, points = 7, 6, 3, 6
    out_height, out_width = 3, 7
    value = torch.randn(1, height, width, 2 * group, dtype=torch.float64)
    offset = torch.randn(1, out_height, out_width, 2 * points * 2, dtype=torch.float64)
    mask = torch.rand(1, out_height, out_width, 2 * points, dtype=torch.float64)

    def pixel(y: int, x: int) -> torch.Tensor:
        inside = 0 <= y < height and 0 <= x < width
        return value[0, y, x] if inside else torch.zeros(2 * group, dtype=torch.float64)

    expected = torch.zeros(1, out_height, out_width, 2 * group, dtype=torch.float64)
    for i in range(out_height):
        for j in range(out_width):
            for g in range(2):
                for point in range(points):
                    column, row = divmod(point, 3)
                    shift_x, shift_y = offset[0, i, j].view(2, points, 2)[g, point].tolist()
                    y = 2 * i + 1 + ((row - 1) + shift_y) * 1.5
                    x = j - 2 + 1 + ((3 * column - 1) + shift_x) * 1.5
                    top, left = int(y // 1), int(x // 1)
                    for corner_y, weight_y in ((top, 1 - (y - top)), (top + 1, y - top)):
                        for corner_x, weight_x in ((left, 1 - (x - left)), (left + 1, x - left)):
                            part = slice(g * group, (g + 1) * group)
                            weight = mask[0, i, j].view(2, points)[g, point] * weight_y * weight_x
                            expected[0, i, j, part] += weight * pixel(corner_y, corner_x)[part]
    torch.testing.assert_close(dcnv3_reference(value, offset, mask, **settings), expected)


def test_layer_has_the_interface_of_the_reference():
    tensors, settings = arguments("dcnv3-3x3-stride-2")
    layer = DeformableConvolutionV3()
    assert layer.kernel_layer_name == "DeformableConvolutionV3" and not layer.state_dict()
    names = list(inspect.signature(DeformableConvolutionV3.forward).parameters)
    assert names == ["self", *inspect.signature(dcnv3_reference).parameters]
    inputs = {key: tensors[key] for key in ("value", "offset", "mask")}
    expected = dcnv3_reference(**inputs, **settings)
    torch.testing.assert_close(layer(**inputs, **settings), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer(*inputs.values(), *settings.values()), expected, rtol=1e-12, atol=1e-12)


def test_meta_device_gives_shapes():
    tensors, settings = arguments("dcnv3-3x3-stride-2")
    inputs = {key: tensors[key].to("meta") for key in ("value", "offset", "mask")}
    assert dcnv3_reference(**inputs, **settings).shape == tensors["output"].shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"value": lambda t: t[0]},
            r"value must be \(batch, height, width, channels\) with channels in 2 equal groups",
        ),
        ({"value": lambda t: t[..., :-1]}, "in 2 equal groups, got .*7"),
        ({"value": lambda t: t[:1]}, r"offset must be .* = \(1, 5, 7, 36\), got \(2, 5, 7, 36\)"),
        ({"offset": lambda t: t[..., :-2]}, r"groups \* points \* 2\) = \(2, 5, 7, 36\), got \(2, 5, 7, 34\)"),
        ({"mask": lambda t: t[:, :-1]}, r"mask must be .*groups \* points\) = \(2, 5, 7, 18\)"),
        ({"padding": (0, 0)}, r"offset must be .* = \(2, 3, 5, 36\)"),
        ({"kernel_size": (3,)}, r"kernel_size must be \(height, width\), each at least 1, got \(3,\)"),
        ({"kernel_size": 3}, r"kernel_size must be \(height, width\)"),
        ({"kernel_size": (8, 3)}, "is smaller than the kernel"),
        ({"kernel_size": (4, 4), "remove_center": True}, "remove_center needs a kernel with odd sides"),
        ({"kernel_size": (1, 1), "remove_center": True}, "remove_center needs a kernel with odd sides"),
        ({"stride": (0, 1)}, "stride must be .*, each at least 1"),
        ({"padding": (-1, 1)}, "padding must be .* at least 0"),
        ({"groups": 0}, "groups must be at least 1"),
        ({"value": lambda t: t.int()}, "value must hold floating-point numbers, got torch.int32"),
    ],
)
def test_wrong_arguments_raise_errors(changes, message):
    tensors, settings = arguments("dcnv3-3x3")
    inputs = {**{key: tensors[key] for key in ("value", "offset", "mask")}, **settings}
    for key, change in changes.items():
        inputs[key] = change(inputs[key]) if callable(change) else change
    with pytest.raises(ValueError, match=message):
        dcnv3_reference(**inputs)


@pytest.mark.parametrize("implementation", [dcnv3_reference, dcnv3_fallback])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_huge_finite_offsets_are_outside(implementation, dtype):
    torch.manual_seed(0)
    value, mask = torch.randn(1, 5, 6, 4, dtype=dtype), torch.rand(1, 5, 6, 9, dtype=dtype)
    offset = torch.zeros(1, 5, 6, 18, dtype=dtype)
    options = ((3, 3), (1, 1), (1, 1), (1, 1), 1, 2.0, False)
    without = mask.clone()
    without[..., 0] = without[..., 2] = 0
    expected = implementation(value, offset, without, *options)
    offset[..., 0], offset[..., 5] = torch.finfo(dtype).max, -torch.finfo(dtype).max
    assert relative_error(implementation(value, offset, mask, *options), expected) < 1e-6
    offset[0, 1, 2, 3] = float("inf")
    is_nan = implementation(value, offset, mask, *options).isnan()
    assert is_nan[0, 1, 2].all() and is_nan.sum() == 4
