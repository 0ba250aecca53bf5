# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The fallback of the deformable operators computes what the reference does."""

import pytest
import torch
from operator_cases import OperatorCalls, case, layer_call
from reference_cases import relative_error

from segtransformers.operators import compiled_operators, ms_deform_attn_fallback, ms_deform_attn_reference


@pytest.mark.parametrize("name", ["ms_deform_attn-3-levels", "dcnv3-3x3", "dcnv4-3x3"])
def test_fallback_serves_inference_and_reference_serves_training(name):
    """The fallback runs embedding_bag, the reference grid_sample; the results are equal."""
    layer, _, _, keys, tensors, settings = case(name)
    inputs = {key: tensors[key].clone().requires_grad_() for key in keys}
    with compiled_operators("off"):
        with torch.no_grad(), OperatorCalls() as calls:
            output = layer_call(layer, {**inputs, **settings})
        assert any("embedding_bag" in name for name in calls.names) and "aten::grid_sampler_2d" not in calls.names
        with OperatorCalls() as calls:
            trained = layer_call(layer, {**inputs, **settings})
        assert "aten::grid_sampler_2d" in calls.names and not any("embedding_bag" in name for name in calls.names)
    assert relative_error(output, tensors["output"]) < 1e-10 and relative_error(trained, output) < 1e-12


@pytest.mark.parametrize("name", ["ms_deform_attn-3-levels", "dcnv3-3x3-remove-center", "dcnv4-3x3-remove-center"])
def test_fallback_passes_gradcheck(name):
    _, _, fallback, keys, tensors, settings = case(name)
    if name.startswith("ms"):
        tensors = {key: tensors[key][:1, :2] if key != "value" else tensors[key][:1] for key in keys}
    inputs = tuple(tensors[key].requires_grad_() for key in keys)
    if name.startswith("dcn"):
        projection = torch.randn(
            tensors["output"].shape[-1], 2, dtype=torch.float64
        )  # fewer outputs take a quarter of the time
    else:
        projection = torch.randn(24, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda *values: fallback(**dict(zip(keys, values, strict=True)), **settings) @ projection,
        inputs,
        fast_mode=True,
    )


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float16, 1e-3), (torch.bfloat16, 5e-3)])
@pytest.mark.parametrize("name", ["ms_deform_attn-3-levels", "dcnv3-3x3-offset-scale-2", "dcnv4-3x3-offset-scale-2"])
def test_fallback_computes_coordinates_in_float32(name, dtype, bound):
    _, _, fallback, keys, tensors, settings = case(name)
    coordinates = keys[1]
    inputs = {key: tensors[key].float() if key == coordinates else tensors[key].to(dtype) for key in keys}
    output = fallback(**inputs, **settings)
    assert output.dtype == dtype and relative_error(output, tensors["output"]) < bound


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_fallback_propagates_nan_and_infinity_as_the_reference_does(bad):
    _, reference, fallback, keys, tensors, settings = case("ms_deform_attn-borders")
    inputs = {key: tensors[key].clone() for key in keys}
    inputs["value"][0, 5] = bad
    inputs["sampling_locations"][0, 3, 1, 0, 2, 1] = bad
    output, expected = fallback(**inputs, **settings), reference(**inputs, **settings)
    assert torch.equal(output.isfinite(), expected.isfinite()) and not output.isfinite().all()
    assert output.isfinite().any()
    torch.testing.assert_close(output[expected.isfinite()], expected[expected.isfinite()])


def test_fallback_compiles_once_for_all_sizes():
    torch.compiler.reset()
    compiled = torch.compile(ms_deform_attn_fallback, backend="aot_eager", fullgraph=True, dynamic=True)
    for size in (4, 5, 7):
        shapes = [(size, size + 2), (size + 1, size)]
        value = torch.randn(2, sum(h * w for h, w in shapes), 2, 3, requires_grad=True)
        locations, weights = torch.rand(2, size * 3, 2, 2, 4, 2), torch.rand(2, size * 3, 2, 2, 4)
        with torch.compiler.set_stance("default" if size == 4 else "fail_on_recompile"):
            output = compiled(value, shapes, locations, weights)
        output.sum().backward()
        torch.testing.assert_close(output, ms_deform_attn_reference(value, shapes, locations, weights))
