# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The deformable attention operator against the original's numbers, and the seam for compiled kernels."""

import json

import kernels
import pytest
import torch
from reference_cases import FOLDER, relative_error
from safetensors.torch import load_file
from transformers.models.rf_detr.modeling_rf_detr import MultiScaleDeformableAttention as TransformersLayer

from segtransformers.operators import (
    MultiScaleDeformableAttention,
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
        if f"grad_{key}" not in tensors:  # not recorded where the points stand on the corners of the interpolation
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


def test_a_kernel_can_take_the_layers_place(tmp_path):
    """A kernel repository in a local folder, in pure Python: what it returns must come out of the layer."""
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": lambda t: t[:, :-1]}, "value has 63 tokens, but the levels .* add up to 64"),
        ({"value": lambda t: t.flatten(2)}, r"value must be \(batch, tokens, heads, channels\)"),
        ({"value": lambda t: t[:1]}, "batch, heads and levels must agree"),
        ({"attention_weights": lambda t: t[..., :-1]}, "sampling_locations the same"),
        ({"sampling_locations": lambda t: t[..., :1]}, "sampling_locations the same"),
        ({"value": lambda t: t.long()}, "value must hold floating-point numbers, got torch.int64"),
        ({"attention_weights": lambda t: t > 0}, "attention_weights must hold floating-point numbers, got torch.bool"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change, message):
    tensors, shapes = arguments("ms_deform_attn-3-levels")
    inputs = {key: tensors[key] for key in ("value", "sampling_locations", "attention_weights")}
    for key, function in change.items():
        inputs[key] = function(inputs[key])
    for function in (ms_deform_attn_reference, ms_deform_attn_fallback):
        with pytest.raises(ValueError, match=message):
            function(spatial_shapes=shapes, **inputs)


@pytest.mark.parametrize("empty", ["batch", "queries", "heads", "channels", "points"])
def test_empty(empty):
    batch, queries, heads, channels, points = (
        0 if name == empty else 3 for name in ("batch", "queries", "heads", "channels", "points")
    )
    value, weights = torch.ones(batch, 12, heads, channels), torch.ones(batch, queries, heads, 1, points)
    for function in (ms_deform_attn_reference, ms_deform_attn_fallback):
        output = function(value.requires_grad_(), [(3, 4)], torch.ones(*weights.shape, 2), weights)
        assert output.shape == (batch, queries, heads * channels) and not output.any()
        (gradient,) = torch.autograd.grad(output.sum(), value)
        assert gradient.shape == value.shape and not gradient.any()
