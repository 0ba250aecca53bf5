# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Deformable attention: equal to the original's numbers, and replaceable by other kernels and forwards."""

import functools
import json
from unittest import mock

import kernels
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from reference_cases import FOLDER, relative_error
from safetensors.torch import load_file
from transformers.models.rf_detr.modeling_rf_detr import MultiScaleDeformableAttention as TransformersLayer

from segtransformers.operators import (
    FusedDeformableAttention,
    MultiScaleDeformableAttention,
    compiled_operators,
    dispatcher,
    ms_deform_attn_fallback,
    ms_deform_attn_reference,
)

CASES = sorted(folder.name for folder in (FOLDER / "operators").glob("ms_deform_attn-*"))


def arguments(name: str) -> tuple[dict[str, torch.Tensor], list[tuple[int, int]]]:
    tensors = load_file(FOLDER / "operators" / name / "tensors.safetensors")
    return tensors, [tuple(shape) for shape in tensors["spatial_shapes"].tolist()]


def layer_arguments(tensors, shapes):
    starts = torch.tensor([sum(height * width for height, width in shapes[:level]) for level in range(len(shapes))])
    return (
        tensors["value"],
        tensors["spatial_shapes"],
        shapes,
        starts,
        tensors["sampling_locations"],
        tensors["attention_weights"],
        64,
    )


@pytest.mark.parametrize("name", CASES)
def test_reference_equals_the_original(name):
    tensors, shapes = arguments(name)
    inputs = {key: tensors[key].requires_grad_() for key in ("value", "sampling_locations", "attention_weights")}
    output = ms_deform_attn_reference(spatial_shapes=shapes, **inputs)
    assert relative_error(output, tensors["output"]) < 1e-10
    output.backward(tensors["grad_output"])
    for key, tensor in inputs.items():
        if f"grad_{key}" not in tensors:  # not recorded: bilinear interpolation has no derivative at pixel centres
            assert name == "ms_deform_attn-pixel-centers" and key == "sampling_locations"
            continue
        expected = tensors[f"grad_{key}"]
        if expected.any():
            assert relative_error(tensor.grad, expected) < 1e-10, key
        else:
            assert not tensor.grad.any(), key


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float16, 1e-3), (torch.bfloat16, 5e-3)])
def test_coordinates_keep_their_precision(dtype, bound):
    tensors, shapes = arguments("ms_deform_attn-3-levels")
    output = ms_deform_attn_reference(
        tensors["value"].to(dtype),
        shapes,
        tensors["sampling_locations"].float(),
        tensors["attention_weights"].to(dtype),
    )
    assert output.dtype == dtype
    assert relative_error(output, tensors["output"]) < bound


def test_layer_has_the_interface_of_transformers():
    tensors, shapes = arguments("ms_deform_attn-4-levels")
    inputs = layer_arguments(tensors, shapes)
    ours, theirs = MultiScaleDeformableAttention(), TransformersLayer()
    assert ours.kernel_layer_name == "MultiScaleDeformableAttention" == type(theirs).__name__
    torch.testing.assert_close(ours(*inputs), theirs(*inputs), rtol=1e-12, atol=1e-12)
    named = dict(
        zip(
            (
                "value",
                "value_spatial_shapes",
                "value_spatial_shapes_list",
                "level_start_index",
                "sampling_locations",
                "attention_weights",
                "im2col_step",
            ),
            inputs,
            strict=True,
        )
    )
    assert torch.equal(ours(**named), ours(*inputs))


def fused_arguments() -> tuple:
    shapes = [(4, 5), (2, 3)]
    value, references = torch.randn(2, 26, 2, 4), torch.rand(1, 7, 1, 2)
    offsets, logits = torch.randn(2, 7, 2, 2, 3, 2), torch.randn(2, 7, 2, 2, 3)
    return value, torch.tensor(shapes), shapes, torch.tensor([0, 20]), references, offsets, logits


def compiled_fused_operator():
    """Stand in for a compiled kernel: a mock of `dispatcher.compiled` whose fused operator returns zeros."""

    def zeros(value, shapes, references, offsets, logits):
        return (0 * value).flatten(2).sum(1, keepdim=True).expand(-1, offsets.shape[1], -1)

    return mock.patch.object(
        dispatcher, "compiled", side_effect=lambda name, value: zeros if name == "ms_deform_attn_fused" else None
    )


def _replace_by_accelerate_hook(layer):
    add_hook_to_module(layer, ModelHook())


def _replace_by_partial(layer):
    layer.forward = functools.partial(MultiScaleDeformableAttention.forward, layer)


def _replace_by_function(layer):
    own = layer.forward
    layer.forward = lambda *arguments: own(*arguments)


def _replace_by_method(layer):
    class Other(MultiScaleDeformableAttention):
        def forward(self, *arguments):
            return super().forward(*arguments)

    layer.forward = Other().forward


@pytest.mark.parametrize(
    "replace", [_replace_by_accelerate_hook, _replace_by_partial, _replace_by_function, _replace_by_method]
)
def test_fused_layer_calls_a_replaced_forward(replace):
    torch.manual_seed(0)
    inputs = fused_arguments()
    layer = FusedDeformableAttention()
    with compiled_operators("off"):
        expected = layer(*inputs)
    with compiled_fused_operator() as compiled:
        assert not layer(*inputs).any() and compiled.called
        replace(layer.attention)
        assert torch.equal(layer(*inputs), expected)


def test_fused_layer_calls_a_forward_replaced_in_the_class():
    with (
        mock.patch.object(MultiScaleDeformableAttention, "forward", lambda self, *arguments: torch.ones(1)),
        compiled_fused_operator(),
    ):
        assert FusedDeformableAttention()(*fused_arguments()) == 1


@pytest.mark.parametrize("part", ["", "attention"])
@pytest.mark.parametrize(
    "register",
    [
        "register_forward_pre_hook",
        "register_forward_hook",
        "register_full_backward_pre_hook",
        "register_full_backward_hook",
    ],
)
def test_hooks_fire_on_every_call(part, register):
    """Hooks on the fused layer and on the layer in it fire, although a compiled operator could serve."""
    layer = FusedDeformableAttention()
    calls = []
    handle = getattr(layer.get_submodule(part), register)(lambda *arguments: calls.append(arguments[0]))
    inputs = fused_arguments()
    inputs[0].requires_grad_()
    with compiled_fused_operator():
        for _ in range(3):
            layer(*inputs).sum().backward()
        assert calls == [layer.get_submodule(part)] * 3
        handle.remove()
        assert not layer(*inputs).any()  # without the hook the compiled operator serves


def test_kernelize_replaces_the_layer(tmp_path):
    """The kernel is a local repository in pure Python that returns 42."""
    for variant in ("torch-cpu", "torch-cuda", "torch-rocm", "torch-metal", "torch-xpu"):
        folder = tmp_path / "build" / variant
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("from . import layers\n")
        (folder / "layers.py").write_text(
            "import torch\n"
            "class MultiScaleDeformableAttention(torch.nn.Module):\n"
            "    has_backward = True\n"
            "    def forward(self, value, value_spatial_shapes, value_spatial_shapes_list, level_start_index,\n"
            "                sampling_locations, attention_weights, im2col_step):\n"
            "        return torch.full_like(sampling_locations[:, :, 0, 0, 0, :1], 42)\n"
        )
        metadata = {
            "name": "probe",
            "id": "probe_1",
            "version": 1,
            "license": "Apache-2.0",
            "python-depends": [],
            "backend": {"type": variant.removeprefix("torch-")},
        }
        (folder / "metadata.json").write_text(json.dumps(metadata))
    repository = kernels.LocalLayerRepository(repo_path=tmp_path, layer_name="MultiScaleDeformableAttention")
    layer = torch.nn.Sequential(MultiScaleDeformableAttention())
    with kernels.use_kernel_mapping({"MultiScaleDeformableAttention": {"cpu": repository}}, inherit_mapping=False):
        kernels.kernelize(layer, mode=kernels.Mode.INFERENCE, device="cpu", use_fallback=False)
    output = layer[0](*layer_arguments(*arguments("ms_deform_attn-1-level")))
    assert (output == 42).all()
    # the fused layer of the models honours it too
    fused = FusedDeformableAttention()
    fused.attention = layer[0]
    with compiled_fused_operator() as compiled:
        assert (fused(*fused_arguments()) == 42).all()
    assert not compiled.called


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": lambda t: t[:, :-1]}, "value has 63 tokens, but the levels .* have 64"),
        ({"value": lambda t: t.flatten(2)}, r"value must be \(batch, tokens, heads, channels\)"),
        ({"value": lambda t: t[:1]}, "batch, heads and levels must be equal"),
        (
            {"attention_weights": lambda t: t[..., :-1]},
            r"sampling_locations \(batch, queries, heads, levels, points, 2\)",
        ),
        (
            {"sampling_locations": lambda t: t[..., :1]},
            r"sampling_locations \(batch, queries, heads, levels, points, 2\)",
        ),
        ({"value": lambda t: t.long()}, "value must hold floating-point numbers, got torch.int64"),
        ({"attention_weights": lambda t: t > 0}, "attention_weights must hold floating-point numbers, got torch.bool"),
    ],
)
def test_wrong_shapes_and_dtypes_raise_errors(change, message):
    tensors, shapes = arguments("ms_deform_attn-3-levels")
    inputs = {key: tensors[key] for key in ("value", "sampling_locations", "attention_weights")}
    for key, function in change.items():
        inputs[key] = function(inputs[key])
    for function in (ms_deform_attn_reference, ms_deform_attn_fallback):
        with pytest.raises(ValueError, match=message):
            function(spatial_shapes=shapes, **inputs)


@pytest.mark.parametrize("empty", ["batch", "queries", "heads", "channels", "points"])
def test_empty_dimensions(empty):
    batch, queries, heads, channels, points = (
        0 if name == empty else 3 for name in ("batch", "queries", "heads", "channels", "points")
    )
    value, weights = torch.ones(batch, 12, heads, channels), torch.ones(batch, queries, heads, 1, points)
    for function in (ms_deform_attn_reference, ms_deform_attn_fallback):
        output = function(value.requires_grad_(), [(3, 4)], torch.ones(*weights.shape, 2), weights)
        assert output.shape == (batch, queries, heads * channels) and not output.any()
        (gradient,) = torch.autograd.grad(output.sum(), value)
        assert gradient.shape == value.shape and not gradient.any()


@pytest.mark.parametrize("implementation", [ms_deform_attn_reference, ms_deform_attn_fallback])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_huge_finite_locations_are_outside(implementation, dtype):
    """A location that overflows in pixels reads nothing; one that is not finite gives NaN for its query and head."""
    torch.manual_seed(0)
    shapes = [(3, 4), (2, 2)]
    value, weights = torch.randn(1, 16, 2, 8, dtype=dtype), torch.rand(1, 4, 2, 2, 2, dtype=dtype)
    locations = torch.rand(1, 4, 2, 2, 2, 2, dtype=dtype)
    expected_weights = weights.clone()
    for query, factor in enumerate((1.0, -1.0, 0.6, 1e-3)):
        locations[0, query, 0, 0, 0, query % 2] = torch.finfo(dtype).max * factor
        expected_weights[0, query, 0, 0, 0] = 0
    inputs = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    output = implementation(value, shapes, locations, weights)
    usual = locations.detach().clamp(-9, 9)
    assert relative_error(output, implementation(value, shapes, usual, expected_weights)) < 1e-6
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(output.sum(), inputs))
    for bad in (float("inf"), float("-inf"), float("nan")):
        with torch.no_grad():
            locations[0, 1, 1, 1, 0, 0] = bad
            is_nan = implementation(value, shapes, locations, weights).unflatten(2, (2, 8)).isnan()
        assert is_nan[0, 1, 1].all() and is_nan.sum() == 8
