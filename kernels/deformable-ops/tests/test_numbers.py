# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Results of the operators: recorded originals, every dtype, random shapes, borders, NaN and infinity."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import (
    REFERENCE,
    as_attention,
    attention,
    convolution,
    expected_attention,
    fused,
    on_device,
    packed,
    recorded,
    relative_error,
    unfused,
)
from hypothesis import given, settings
from hypothesis import strategies as st

TENSORS = {
    "ms_deform_attn": ("value", "sampling_locations", "attention_weights"),
    "ms_deform_attn_fused": ("value", "reference_points", "sampling_offsets", "attention_logits"),
    "dcnv3": ("value", "offset", "mask"),
    "dcnv4": ("value", "offset_mask"),
}
CASES = sorted(folder.name for folder in REFERENCE.iterdir())


def with_gradients(function, arguments: dict, names, gradient=None) -> tuple[torch.Tensor, dict]:
    """Return the output of a function and the gradients of its tensors."""
    inputs = {name: arguments[name].detach().clone().requires_grad_() for name in names}
    output = function(**{**arguments, **inputs})
    output.backward(torch.ones_like(output) if gradient is None else gradient)
    return output.detach(), {name: tensor.grad for name, tensor in inputs.items()}


def test_number_of_recorded_cases():
    assert len(CASES) == 31


@pytest.mark.parametrize("name", CASES)
def test_equals_the_original(ops, device, name):
    tensors, options = recorded(name, device)
    operator = name.split("-")[0]
    arguments = {key: tensors[key] for key in TENSORS[operator]} | options
    output, gradients = with_gradients(getattr(ops, operator), arguments, TENSORS[operator], tensors["grad_output"])
    assert relative_error(output, tensors["output"]) < 1e-10
    compared = 0
    for key, gradient in gradients.items():
        if f"grad_{key}" not in tensors:  # not recorded: bilinear interpolation has no derivative at pixel centres
            assert name in ("ms_deform_attn-pixel-centers", "dcnv3-3x3-zero-offsets")
            continue
        expected = tensors[f"grad_{key}"]
        assert relative_error(gradient, expected) < 1e-10 if expected.any() else not gradient.any(), key
        compared += 1
    assert compared >= 2


@pytest.mark.skipif(sys.platform == "darwin", reason="this machine has one instruction set only")
@pytest.mark.parametrize("instructions", ["baseline", "avx2", "avx512"])
def test_other_instruction_sets_equal_the_original(instructions):
    """The kernel chooses the instruction set once per process, so this test starts another process."""
    if "DEFORMABLE_OPS_INSTRUCTIONS" in os.environ:
        pytest.skip("this process runs the tests with another instruction set")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"]
    command += [str(Path(__file__).with_name(name)) for name in ("test_numbers.py", "test_dense.py", "test_matrix.py")]
    environment = {**os.environ, "DEFORMABLE_OPS_INSTRUCTIONS": instructions}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]


@pytest.mark.parametrize("levels", [None, 1])
@pytest.mark.parametrize("batch", [None, 1])
def test_fused_equals_its_parts(ops, device, levels, batch):
    arguments = fused(attention(device=device), levels, batch)
    names = TENSORS["ms_deform_attn_fused"]
    gradient = torch.randn(2, 9, 24, dtype=torch.float64, device=device)

    def parts(**arguments):
        return ops.ms_deform_attn(**unfused(arguments))

    output, gradients = with_gradients(ops.ms_deform_attn_fused, arguments, names, gradient)
    expected, expected_gradients = with_gradients(parts, arguments, names, gradient)
    assert relative_error(output, expected) < 1e-13
    for name in names:
        assert relative_error(gradients[name], expected_gradients[name]) < 1e-12, name


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float16, 1e-3), (torch.bfloat16, 5e-3)])
@pytest.mark.parametrize("channels", [16, 32, 64, 7])
def test_precision(ops, device, dtype, bound, channels):
    """Compare values and weights in half precision, with coordinates in float32, with float64."""
    arguments = attention(shapes=((40, 60), (20, 30), (10, 15)), queries=200, channels=channels, device=device)
    expected = expected_attention(**arguments)
    lower = {
        "value": arguments["value"].to(dtype),
        "sampling_locations": arguments["sampling_locations"].float(),
        "attention_weights": arguments["attention_weights"].to(dtype),
    }
    output = ops.ms_deform_attn(**{**arguments, **lower})
    assert output.dtype == dtype
    assert relative_error(output, expected) < bound

    arguments = fused(arguments)
    expected = expected_attention(**unfused(arguments))
    lower = {
        "value": arguments["value"].to(dtype),
        "reference_points": arguments["reference_points"].float(),
        "sampling_offsets": arguments["sampling_offsets"].float(),
        "attention_logits": arguments["attention_logits"].float(),
    }
    assert relative_error(ops.ms_deform_attn_fused(**{**arguments, **lower}), expected) < bound

    arguments = convolution(height=30, width=40, channels=channels, device=device)
    expected = ops.dcnv3(**arguments)
    lower = {
        "value": arguments["value"].to(dtype),
        "offset": arguments["offset"].float(),
        "mask": arguments["mask"].to(dtype),
    }
    assert relative_error(ops.dcnv3(**{**arguments, **lower}), expected) < bound

    lower = {**packed(arguments), "value": lower["value"]}
    lower["offset_mask"] = lower["offset_mask"].float()
    assert relative_error(ops.dcnv4(**lower), expected) < bound


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)])
def test_precision_of_gradients(ops, device, dtype, bound):
    """All tensors are rounded to the dtype first, so the bound is for the rounding of the results only."""
    arguments = attention(shapes=((20, 30), (10, 15)), queries=100, channels=32, device=device)
    names = TENSORS["ms_deform_attn"]
    rounded = {name: arguments[name].to(dtype) for name in names}
    gradient = torch.randn(2, 100, 96, device=device).to(dtype)
    exact = {name: tensor.double() for name, tensor in rounded.items()}
    _, expected = with_gradients(ops.ms_deform_attn, {**arguments, **exact}, names, gradient.double())
    _, gradients = with_gradients(ops.ms_deform_attn, {**arguments, **rounded}, names, gradient)
    for name in names:
        assert gradients[name].dtype == dtype
        assert relative_error(gradients[name], expected[name]) < bound, name


def test_half_precision_numbers_are_converted_exactly(ops, device):
    """Sample every finite float16 and bfloat16 number, including subnormal and the largest ones."""
    for dtype in (torch.float16, torch.bfloat16):
        numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32, device=device).to(torch.int16).view(dtype)
        numbers = numbers[numbers.isfinite()]
        value = numbers.view(1, -1, 1, 1)
        count = len(numbers)
        x = (torch.arange(count, dtype=torch.float64, device=device) + 0.5) / count
        ones = torch.ones(1, count, 1, 1, 1, device=device)
        locations = torch.stack([x, torch.full_like(x, 0.5)], -1).view(1, count, 1, 1, 1, 2)
        output = ops.ms_deform_attn(value, [(1, count)], locations, ones)
        # a neighbour's weight is 0 or a rounding error, which matters if the neighbour is huge
        assert (output.flatten() == numbers).double().mean() > 0.98
        exact = ops.ms_deform_attn(value[:, :1024], [(1, 1024)], locations[:, :0], ones[:, :0])
        assert exact.shape == (1, 0, 1)


# coordinates at the borders of a level, near them and far away
COORDINATES = st.one_of(
    st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), st.floats(-2, 3), st.floats(-1e6, 1e6), st.just(1e30)
)


CHANNELS = st.sampled_from([1, 2, 3, 5, 8, 13, 16, 31, 32, 64, 65, 127])


@st.composite
def attention_arguments(draw):
    """Draw small arguments of any shape, with points on and near the borders."""
    levels = draw(st.integers(1, 5))
    shapes = [(draw(st.integers(1, 4)), draw(st.integers(1, 4))) for _ in range(levels)]
    arguments = attention(
        shapes,
        batch=draw(st.sampled_from([1, 2, 3, 67])),
        queries=draw(st.integers(1, 5)),
        heads=draw(st.integers(1, 3)),
        channels=draw(CHANNELS),
        points=draw(st.integers(1, 8)),
    )
    locations = arguments["sampling_locations"]
    flat = locations.flatten(0, 2)
    for _ in range(draw(st.integers(0, 8))):
        level = draw(st.integers(0, levels - 1))
        height, width = shapes[level]
        location = flat[draw(st.integers(0, len(flat) - 1)), level, draw(st.integers(0, flat.shape[2] - 1))]
        # pixels -1, 0, the last one and the next
        x, y = (draw(st.sampled_from([-1.0, 0.0, side - 1.0, float(side)])) for side in (width, height))
        location[0], location[1] = (x + 0.5) / width, (y + 0.5) / height
        if draw(st.booleans()):
            location[draw(st.integers(0, 1))] = draw(COORDINATES)
    return arguments


@settings(max_examples=150, deadline=None)
@given(arguments=attention_arguments())
def test_any_shape_and_location(ops, device, arguments):
    output, gradients = with_gradients(ops.ms_deform_attn, on_device(arguments, device), TENSORS["ms_deform_attn"])
    expected = expected_attention(**arguments)
    scale = expected.abs().max().clamp_min(1e-3)
    assert ((output.cpu() - expected).abs() <= 1e-9 * scale).all()
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    # the gradients of the values add up to the weights of all samples inside
    ones = {**arguments, "value": torch.ones_like(arguments["value"])}
    inside = expected_attention(**ones).sum()
    assert abs(gradients["value"].sum() - inside) <= 1e-8 * max(1, abs(inside))


@settings(max_examples=60, deadline=None)
@given(arguments=attention_arguments(), seed=st.integers(0, 1000))
def test_any_shape_fused(ops, arguments, seed):
    torch.manual_seed(seed)
    arguments = fused(arguments, levels=1 if seed % 2 else None, batch=1 if seed % 3 else None)
    expected = expected_attention(**unfused(arguments))
    scale = expected.abs().max().clamp_min(1e-3)
    assert ((ops.ms_deform_attn_fused(**arguments) - expected).abs() <= 1e-9 * scale).all()


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_convolution(ops, data):
    def pair(least, most):
        return data.draw(st.integers(least, most)), data.draw(st.integers(least, most))

    kernel_size, stride, padding, dilation = pair(1, 5), pair(1, 3), pair(0, 3), pair(1, 2)
    remove_center = False
    if kernel_size[0] == kernel_size[1] and kernel_size[0] in (3, 5):
        remove_center = data.draw(st.booleans())
    reach = [dilation[axis] * (kernel_size[axis] - 1) + 1 for axis in (0, 1)]
    size = [max(data.draw(st.integers(1, 9)), reach[axis] - 2 * padding[axis]) for axis in (0, 1)]
    out = [(size[axis] + 2 * padding[axis] - reach[axis]) // stride[axis] + 1 for axis in (0, 1)]
    batch, groups, channels = data.draw(st.sampled_from([1, 2, 3])), data.draw(st.integers(1, 4)), data.draw(CHANNELS)
    points = kernel_size[0] * kernel_size[1] - remove_center
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    spread = data.draw(st.sampled_from([1, 9]))
    arguments = {
        "value": torch.randn(batch, *size, groups * channels, dtype=torch.float64),
        "offset": torch.randn(batch, *out, groups * points * 2, dtype=torch.float64) * spread,
        "mask": torch.randn(batch, *out, groups * points, dtype=torch.float64),
        "kernel_size": kernel_size,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "offset_scale": data.draw(st.sampled_from([0.5, 1.0, 2.0])),
        "remove_center": remove_center,
    }
    expected = expected_attention(**as_attention(**arguments)).reshape(batch, *out, groups * channels)
    scale = expected.abs().max().clamp_min(1e-3)
    assert ((ops.dcnv3(**arguments) - expected).abs() <= 1e-9 * scale).all()
    together = packed(arguments)
    output, gradients = with_gradients(ops.dcnv4, together, TENSORS["dcnv4"])
    assert ((output - expected).abs() <= 1e-9 * scale).all()
    _, separate = with_gradients(ops.dcnv3, arguments, TENSORS["dcnv3"])
    wanted = packed({**arguments, "offset": separate["offset"], "mask": separate["mask"]})["offset_mask"].nan_to_num()
    assert relative_error(gradients["value"], separate["value"]) < 1e-14
    assert relative_error(gradients["offset_mask"], wanted) < 1e-13


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("remove_center", [False, True])
@pytest.mark.parametrize("channels", [16, 5])
def test_precision_of_packed_gradients(ops, device, dtype, bound, remove_center, channels):
    """The pairs of every second group of nine points are not aligned; with eight points all are."""
    arguments = packed(convolution(height=9, width=11, channels=channels, remove_center=remove_center, device=device))
    names = TENSORS["dcnv4"]
    rounded = {name: arguments[name].to(dtype) for name in names}
    exact = {name: tensor.double() for name, tensor in rounded.items()}
    gradient = torch.randn(2, 9, 11, 3 * channels, device=device).to(dtype)
    expected_output, expected = with_gradients(ops.dcnv4, {**arguments, **exact}, names, gradient.double())
    output, gradients = with_gradients(ops.dcnv4, {**arguments, **rounded}, names, gradient)
    assert output.dtype == dtype and relative_error(output, expected_output) < bound
    for name in names:
        assert gradients[name].dtype == dtype and relative_error(gradients[name], expected[name]) < bound, name


@pytest.mark.parametrize("batch", [2, 3])
def test_images_of_a_packed_batch_are_independent(ops, device, batch):
    """The original's CUDA kernel mixes images whose number of pixels is odd."""
    arguments = packed(convolution(batch=batch, height=5, width=5, channels=16, device=device))
    whole = ops.dcnv4(**arguments)
    for image in range(batch):
        part = {key: value[image : image + 1] for key, value in arguments.items() if key in TENSORS["dcnv4"]}
        assert torch.equal(ops.dcnv4(**{**arguments, **part}), whole[image : image + 1])


@settings(max_examples=100, deadline=None)
@given(data=st.data(), bad=st.sampled_from([float("nan"), float("inf"), float("-inf")]))
def test_nan_and_infinity_do_not_spread(ops, device, data, bad):
    """A location that is not finite affects its own query and head only, a value only those that read it."""
    arguments = attention(shapes=((3, 4), (2, 2)), batch=2, queries=4, heads=2, channels=8, points=2)
    locations = arguments["sampling_locations"].clamp_(0.2, 0.8)
    index = tuple(data.draw(st.integers(0, size - 1)) for size in locations.shape)
    locations[index] = bad
    output, gradients = with_gradients(ops.ms_deform_attn, on_device(arguments, device), TENSORS["ms_deform_attn"])
    output, gradients = output.cpu(), on_device(gradients, "cpu")
    affected = torch.zeros(2, 4, 2, dtype=torch.bool)
    affected[index[:3]] = True
    assert torch.equal(output.unflatten(2, (2, 8)).isnan(), affected[..., None].expand(2, 4, 2, 8))
    assert gradients["value"].isfinite().all()
    assert gradients["attention_weights"].isfinite().sum() == 2 * 4 * 2 * 2 * 2 - 1  # one sample is not finite
    assert not gradients["attention_weights"][index[:5]].isfinite()
    assert gradients["sampling_locations"].isfinite().flatten(0, 4).all(-1).sum() == 2 * 4 * 2 * 2 * 2 - 1

    locations[index] = 0.5
    image, token, head = (data.draw(st.integers(0, size - 1)) for size in (2, 16, 2))
    arguments["value"][image, token, head] = bad
    output = ops.ms_deform_attn(**on_device(arguments, device)).cpu()
    expected = expected_attention(**arguments)
    assert torch.equal(output.isfinite(), expected.isfinite())
    torch.testing.assert_close(output[expected.isfinite()], expected[expected.isfinite()], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [1.0, -1.0, 1e-3])
def test_huge_finite_coordinates_are_outside(ops, device, dtype, factor):
    """A position that overflows in pixels reads nothing, and leaves the sum of the other samples finite."""
    huge = torch.finfo(dtype).max * factor
    arguments = attention(shapes=((3, 4), (2, 2)), batch=2, queries=4, heads=2, channels=8, points=2)
    arguments = {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    arguments["sampling_locations"].clamp_(0.2, 0.8)[0, 1, 0, 0, 0] = torch.tensor([huge, 0.5], dtype=dtype)
    arguments["sampling_locations"][1, 2, 1, 1, 1, 1] = huge
    expected = {**arguments, "attention_weights": arguments["attention_weights"].clone()}
    expected["attention_weights"][0, 1, 0, 0, 0] = expected["attention_weights"][1, 2, 1, 1, 1] = 0
    names = TENSORS["ms_deform_attn"]
    output, gradients = with_gradients(ops.ms_deform_attn, on_device(arguments, device), names)
    wanted = ops.ms_deform_attn(**on_device(expected, device))
    assert relative_error(output, wanted) < 1e-6 and all(gradient.isfinite().all() for gradient in gradients.values())

    parts = {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in fused(attention(), None, None).items()}
    for name in ("sampling_offsets", "reference_points"):
        changed = {**parts, name: parts[name].clone()}
        changed[name].flatten()[:2] = torch.tensor([huge, -huge], dtype=dtype)
        output, gradients = with_gradients(
            ops.ms_deform_attn_fused, on_device(changed, device), TENSORS["ms_deform_attn_fused"]
        )
        assert output.isfinite().all() and all(gradient.isfinite().all() for gradient in gradients.values())

    tensors = {
        "value": torch.randn(1, 5, 5, 4, dtype=dtype, device=device),
        "offset": torch.zeros(1, 5, 5, 18, dtype=dtype, device=device),
        "mask": torch.ones(1, 5, 5, 9, dtype=dtype, device=device),
    }
    tensors["offset"][..., 0], tensors["offset"][..., 5] = huge, -huge
    options = ((3, 3), (1, 1), (1, 1), (1, 1), 1, 2.0, False)
    without = tensors["mask"].clone()
    without[..., 0] = without[..., 2] = 0
    expected = ops.dcnv3(tensors["value"], torch.zeros_like(tensors["offset"]), without, *options)
    assert relative_error(ops.dcnv3(*tensors.values(), *options), expected) < 1e-6


def test_gradient_of_reference_points_is_summed_before_rounding(ops, device):
    """Offsets in half precision have rounded gradients, those of float64 or float32 reference points have not."""
    exact = fused(attention(device=device), None, 1)
    names = TENSORS["ms_deform_attn_fused"]
    for dtype, offsets, bound in ((torch.float64, torch.float32, 1e-12), (torch.float32, torch.bfloat16, 1e-5)):
        mixed = {**exact, "sampling_offsets": exact["sampling_offsets"].to(offsets)}
        expected = {**exact, "sampling_offsets": mixed["sampling_offsets"].double()}
        mixed["reference_points"] = exact["reference_points"].to(dtype)
        expected["reference_points"] = mixed["reference_points"].double()
        if dtype == torch.float32:
            for name in ("value", "attention_logits"):
                mixed[name] = mixed[name].to(dtype)
                expected[name] = mixed[name].double()
        gradient = torch.ones(2, 9, 24, dtype=torch.float64, device=device)
        _, gradients = with_gradients(ops.ms_deform_attn_fused, mixed, names, gradient.to(mixed["value"].dtype))
        _, wanted = with_gradients(ops.ms_deform_attn_fused, expected, names, gradient)
        assert relative_error(gradients["reference_points"], wanted["reference_points"]) < bound
        assert gradients["sampling_offsets"].dtype == offsets


def test_remove_center_of_a_rectangular_kernel(ops, device):
    """Removing the middle point equals a weight of zero for it."""
    points, middle = 15, 7  # in column order
    tensors = {
        "value": torch.randn(2, 6, 7, 12, dtype=torch.float64, device=device),
        "offset": torch.randn(2, 6, 7, 3, points, 2, dtype=torch.float64, device=device),
        "mask": torch.rand(2, 6, 7, 3, points, dtype=torch.float64, device=device),
    }
    tensors["mask"][..., middle] = 0
    settings = ((3, 5), (1, 1), (1, 2), (1, 1), 3, 1.5)
    whole = ops.dcnv3(tensors["value"], tensors["offset"].flatten(3), tensors["mask"].flatten(3), *settings, False)
    others = [point for point in range(points) if point != middle]
    offset, mask = tensors["offset"][:, :, :, :, others].flatten(3), tensors["mask"][..., others].flatten(3)
    assert relative_error(ops.dcnv3(tensors["value"], offset, mask, *settings, True), whole) < 1e-14


def test_rows_outside_a_level_are_not_read(ops, device):
    """All rows are infinite except those of one level, head and image."""
    arguments = attention(shapes=((2, 3), (3, 3), (2, 2)), batch=3, queries=500, heads=3, channels=16, points=4)
    locations = arguments["sampling_locations"]
    locations.mul_(8).sub_(4)
    arguments["value"].fill_(float("inf"))
    own = arguments["value"].view(3, 19, 3, 16)
    own[1, 6:15, 1] = 1.0
    weights = torch.zeros_like(arguments["attention_weights"])
    weights[:, :, :, 1] = 1.0
    for level in (0, 2):
        locations[:, :, :, level] = 50.0  # outside, so these levels add zero
    arguments["attention_weights"] = weights
    output = ops.ms_deform_attn(**on_device(arguments, device)).unflatten(2, (3, 16))
    assert output[1, :, 1].isfinite().all() and output[1, :, 1].any()


def test_outputs_are_written_completely(ops, device):
    """In deterministic mode new tensors are filled with NaN, which would remain in elements that are not written."""
    torch.use_deterministic_algorithms(True, warn_only=device == "cuda")
    try:
        assert torch.empty(3, device=device).isnan().all()
        options = {"queries": 3, "channels": 19, "device": device}
        arguments = attention(shapes=((50, 60), (1, 1)), **options)  # most rows are never read
        output, gradients = with_gradients(ops.ms_deform_attn, arguments, TENSORS["ms_deform_attn"])
        assert output.isfinite().all() and all(gradient.isfinite().all() for gradient in gradients.values())
        fused_arguments = fused(arguments)
        output, gradients = with_gradients(ops.ms_deform_attn_fused, fused_arguments, TENSORS["ms_deform_attn_fused"])
        assert output.isfinite().all() and all(gradient.isfinite().all() for gradient in gradients.values())
        arguments = convolution(stride=2, channels=5, device=device)
        for name, inputs in {"dcnv3": arguments, "dcnv4": packed(arguments)}.items():
            output, gradients = with_gradients(getattr(ops, name), inputs, TENSORS[name])
            assert output.isfinite().all() and all(gradient.isfinite().all() for gradient in gradients.values())
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    "changes",
    [
        {"batch": 0},
        {"queries": 0},
        {"heads": 0},
        {"channels": 0},
        {"points": 0},
        {"shapes": ()},
        {"shapes": ((0, 5), (3, 4))},
        {"shapes": ((0, 0),)},
    ],
    ids=str,
)
def test_empty_dimensions(ops, device, changes):
    arguments = attention(**changes, device=device)
    output, gradients = with_gradients(ops.ms_deform_attn, arguments, TENSORS["ms_deform_attn"])
    assert relative_error(output, expected_attention(**arguments)) < 1e-12
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    output, gradients = with_gradients(ops.ms_deform_attn_fused, fused(arguments), TENSORS["ms_deform_attn_fused"])
    assert output.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_strides_do_not_matter(ops, device):
    """Views, expanded and transposed tensors give the results of contiguous ones."""
    arguments = attention(channels=16, device=device)
    expected = ops.ms_deform_attn(**arguments)
    views = {
        "value": torch.cat([arguments["value"]] * 2, dim=3)[..., :16],
        "sampling_locations": arguments["sampling_locations"].transpose(1, 2).contiguous().transpose(1, 2),
        "attention_weights": torch.stack([arguments["attention_weights"]] * 2, -1)[..., 0],
    }
    assert not any(tensor.is_contiguous() for tensor in views.values())
    assert torch.equal(ops.ms_deform_attn(**{**arguments, **views}), expected)
    gradient = torch.ones((), dtype=torch.float64, device=device).expand_as(expected)
    names = TENSORS["ms_deform_attn"]
    _, expected_gradients = with_gradients(ops.ms_deform_attn, arguments, names, gradient.contiguous())
    _, gradients = with_gradients(ops.ms_deform_attn, {**arguments, **views}, names, gradient)
    for name in names:
        same = name != "value" or device == "cpu"  # on a GPU the order of atomic sums varies
        assert relative_error(gradients[name], expected_gradients[name]) <= (0 if same else 1e-14), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unaligned_tensors(ops, device, dtype):
    """Views of larger tensors are contiguous, but not aligned to the vectors that the kernel loads."""
    for name in TENSORS:
        make = convolution if name.startswith("dcn") else attention
        arguments = make(channels=16, dtype=torch.float32, device=device)
        change = {"ms_deform_attn_fused": fused, "dcnv4": packed}.get(name)
        arguments = arguments if change is None else change(arguments)
        arguments = {key: value.to(dtype) if key in TENSORS[name] else value for key, value in arguments.items()}
        views = dict(arguments)
        for key in TENSORS[name]:
            views[key] = torch.cat([arguments[key].new_zeros(1), arguments[key].flatten()])[1:].view_as(arguments[key])
        output = getattr(ops, name)(**arguments)
        gradient = torch.randn(output.numel() + 1, device=device).to(dtype)[1:].view_as(output)
        assert torch.equal(getattr(ops, name)(**views), output)
        _, expected = with_gradients(getattr(ops, name), arguments, TENSORS[name], gradient.clone())
        operator = getattr(ops.ops, f"{name}_backward")
        settings = [side for shape in views.get("spatial_shapes", ()) for side in shape]
        rest = [settings] if settings else []
        tensors = [views[key] for key in TENSORS[name]]
        if name.startswith("dcn"):
            others = [value for key, value in views.items() if key not in TENSORS[name]]
            results = operator(gradient, *tensors, *[list(v) if isinstance(v, tuple) else v for v in others])
        else:
            results = operator(gradient, tensors[0], *rest, *tensors[1:])
        keys = [key for key in TENSORS[name] if key != "reference_points"]
        for key, result in zip(keys, results, strict=True):
            assert relative_error(result, expected[key]) <= (1e-6 if dtype == torch.float32 else 1e-2), key


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [1, 3])
def test_results_are_equal_in_every_run_and_with_any_number_of_threads(ops, dtype, heads):
    arguments = attention(shapes=((20, 30),), queries=300, heads=heads, channels=32, dtype=torch.float32)
    arguments["value"] = arguments["value"].to(dtype)
    gradient = torch.randn(2, 300, heads * 32).to(dtype)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 1, 2, 5, 16):
            torch.set_num_threads(count)
            results.append(with_gradients(ops.ms_deform_attn, arguments, TENSORS["ms_deform_attn"], gradient))
    finally:
        torch.set_num_threads(threads)
    for output, gradients in results[1:]:
        assert torch.equal(output, results[0][0])
        assert all(torch.equal(gradients[name], tensor) for name, tensor in results[0][1].items())
