# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""DCNv4: equal to the original's numbers, independent of unused numbers, and replaceable by other kernels."""

import inspect

import pytest
import torch
from reference_cases import FOLDER, relative_error
from test_deformable_convolution import arguments

from segtransformers.operators import DeformableConvolutionV4, dcnv3_reference, dcnv4_fallback, dcnv4_reference

CASES = sorted(folder.name for folder in (FOLDER / "operators").glob("dcnv4-*"))
NAMES = ("value", "offset_mask")


def test_number_of_recorded_cases():
    assert len(CASES) == 6


@pytest.mark.parametrize("implementation", [dcnv4_reference, dcnv4_fallback])
@pytest.mark.parametrize("name", CASES)
def test_plain_pytorch_equals_the_original(name, implementation):
    tensors, settings = arguments(name)
    inputs = {key: tensors[key].requires_grad_() for key in NAMES}
    output = implementation(**inputs, **settings)
    assert output.dtype == torch.float64 and relative_error(output, tensors["output"]) < 1e-10
    output.backward(tensors["grad_output"])
    for key, tensor in inputs.items():
        assert relative_error(tensor.grad, tensors[f"grad_{key}"]) < 1e-10, key


@pytest.mark.parametrize("implementation", [dcnv4_reference, dcnv4_fallback])
def test_numbers_after_the_last_group_are_not_read(implementation):
    tensors, settings = arguments("dcnv4-3x3-odd-groups")
    offset_mask = tensors["offset_mask"].clone()
    offset_mask[..., 135:] = torch.nan
    assert offset_mask.shape[-1] == 136
    assert relative_error(implementation(tensors["value"], offset_mask, **settings), tensors["output"]) < 1e-10


def test_images_of_a_batch_are_independent():
    """The original's CUDA kernel mixes images with an odd number of pixels."""
    tensors, settings = arguments("dcnv4-3x3-odd-groups")
    for image in range(2):
        part = {key: tensors[key][image : image + 1] for key in NAMES}
        assert relative_error(dcnv4_reference(**part, **settings), tensors["output"][image : image + 1]) < 1e-10


def test_layer_has_the_interface_of_the_reference():
    tensors, settings = arguments("dcnv4-3x3-stride-2-dilation-2")
    layer = DeformableConvolutionV4()
    assert layer.kernel_layer_name == "DeformableConvolutionV4" and not layer.state_dict()
    names = list(inspect.signature(DeformableConvolutionV4.forward).parameters)
    assert names == ["self", *inspect.signature(dcnv4_reference).parameters]
    inputs = {key: tensors[key] for key in NAMES}
    assert relative_error(layer(**inputs, **settings), tensors["output"]) < 1e-10
    assert relative_error(layer(*inputs.values(), *settings.values()), tensors["output"]) < 1e-10
    meta = {key: tensors[key].to("meta") for key in NAMES}
    assert dcnv4_reference(**meta, **settings).shape == tensors["output"].shape


def test_weights_are_not_normalized():
    """Twice the weights give twice the output."""
    tensors, settings = arguments("dcnv4-3x3")
    doubled = tensors["offset_mask"].clone()
    for group in range(2):
        doubled[..., 27 * group + 18 : 27 * group + 27] *= 2
    assert relative_error(dcnv4_reference(tensors["value"], doubled, **settings), 2 * tensors["output"]) < 1e-10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"value": lambda t: t[0]},
            r"value must be \(batch, height, width, channels\) with channels in 2 equal groups",
        ),
        ({"value": lambda t: t[:1]}, r"offset_mask must be .* = \(1, 5, 7, 56\), got \(2, 5, 7, 56\)"),
        (
            {"offset_mask": lambda t: t[..., :54]},
            r"rounded up to a multiple of 8\) = \(2, 5, 7, 56\), got \(2, 5, 7, 54\)",
        ),
        ({"remove_center": True}, r"offset_mask must be .* = \(2, 5, 7, 48\)"),
        ({"offset_mask": lambda t: t.int()}, "offset_mask must hold floating-point numbers, got torch.int32"),
        ({"kernel_size": (8, 3)}, "is smaller than the kernel"),
    ],
)
def test_wrong_arguments_raise_errors(changes, message):
    tensors, settings = arguments("dcnv4-3x3")
    inputs = {**{key: tensors[key] for key in NAMES}, **settings}
    for key, change in changes.items():
        inputs[key] = change(inputs[key]) if callable(change) else change
    with pytest.raises(ValueError, match=message):
        dcnv4_reference(**inputs)


def test_v3_with_the_same_numbers_gives_the_same():
    tensors, settings = arguments("dcnv4-3x3-remove-center")
    numbers = tensors["offset_mask"].unflatten(3, (2, 24))
    offset, mask = numbers[..., :16].flatten(3), numbers[..., 16:].flatten(3)
    output = dcnv3_reference(tensors["value"], offset, mask, **settings)
    assert relative_error(output, tensors["output"]) < 1e-10
