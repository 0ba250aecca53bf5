# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The form of the deformable operators for exported files: equal to the recorded numbers, also in onnxruntime."""

import logging
import warnings

import numpy as np
import pytest
import torch
from operator_cases import case
from reference_cases import FOLDER, relative_error

from segtransformers.operators import dcnv3_gather, dcnv4_gather, gathering, gathers_in_exports, ms_deform_attn_gather
from segtransformers.operators.check import ERROR_BOUNDS

CASES = sorted(folder.name for folder in (FOLDER / "operators").iterdir())
FORMS = {"ms_deform_attn": ms_deform_attn_gather, "dcnv3": dcnv3_gather, "dcnv4": dcnv4_gather}


def form_of(name):
    return FORMS[name.partition("-")[0]]


@pytest.mark.parametrize("name", CASES)
def test_equal_to_the_original(name):
    """The cases have points at borders, at pixel centres and far outside."""
    _, _, _, keys, tensors, settings = case(name)
    output = form_of(name)(**{key: tensors[key] for key in keys}, **settings)
    assert relative_error(output, tensors["output"]) < 1e-10


@pytest.mark.parametrize("size", [1, 10_000])
@pytest.mark.parametrize("name", ["ms_deform_attn-3-levels", "dcnv3-3x3-offset-scale-2", "dcnv4-3x3"])
def test_parts_of_the_queries_are_put_together(name, size, monkeypatch):
    _, _, _, keys, tensors, settings = case(name)
    inputs = {key: tensors[key] for key in keys}
    whole = form_of(name)(**inputs, **settings)
    monkeypatch.setattr(gathering, "SAMPLE_BYTES", size)
    assert len(gathering._parts(100, 1000)) == (100 if size == 1 else 10)
    torch.testing.assert_close(form_of(name)(**inputs, **settings), whole, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["ms_deform_attn-3-levels", "dcnv3-3x3-offset-scale-2", "dcnv4-3x3"])
def test_coordinates_are_computed_in_float32(name, dtype):
    _, _, _, keys, tensors, settings = case(name)
    inputs = {key: tensors[key].float() if key == keys[1] else tensors[key].to(dtype) for key in keys}
    output = form_of(name)(**inputs, **settings)
    assert output.dtype == dtype and relative_error(output, tensors["output"]) < ERROR_BOUNDS[dtype]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["ms_deform_attn-borders", "dcnv3-3x3-far-offsets"])
def test_numbers_that_are_not_finite_spread_as_in_the_reference(name, bad):
    """The same outputs are not finite. Which of NaN and infinity they are depends on the order of the arithmetic."""
    _, reference, _, keys, tensors, settings = case(name)
    inputs = {key: tensors[key].clone() for key in keys}
    inputs[keys[1]].flatten()[7] = bad
    inputs["value"].flatten()[11] = bad
    output, expected = form_of(name)(**inputs, **settings), reference(**inputs, **settings)
    assert torch.equal(output.isfinite(), expected.isfinite()) and not output.isfinite().all()
    finite = expected.isfinite()
    torch.testing.assert_close(output[finite], expected[finite])


@pytest.mark.parametrize(
    "name",
    ["ms_deform_attn-borders", "ms_deform_attn-far-outside", "dcnv3-3x3-far-offsets", "dcnv4-3x3-stride-2-dilation-2"],
)
def test_layers_exported_to_onnx(name, tmp_path):
    """A layer is exported with gathers. Huge positions are outside, and NaN stays NaN instead of an index."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra `export`)")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra `export`)")
    from operator_cases import layer_call

    layer, _, _, keys, tensors, settings = case(name)
    inputs = {key: tensors[key].float() for key in keys}

    class Module(torch.nn.Module):
        def forward(self, *values):
            return layer_call(layer, {**dict(zip(keys, values, strict=True)), **settings})

    with gathers_in_exports(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            program = torch.export.export(Module(), tuple(inputs.values()))
            torch.onnx.export(program, dynamo=True, input_names=list(keys), verbose=False).save(tmp_path / "layer.onnx")
        finally:
            logging.disable(logging.NOTSET)
    assert not [node for node in program.graph.nodes if "grid_sampler" in str(node.target)]
    session = onnxruntime.InferenceSession(tmp_path / "layer.onnx")
    (output,) = session.run(None, {key: value.numpy() for key, value in inputs.items()})
    assert relative_error(torch.from_numpy(output), tensors["output"]) < ERROR_BOUNDS[torch.float32]

    inputs[keys[1]].flatten()[:4] = torch.tensor([1e30, -1e30, 3e9, float("nan")])
    (output,) = session.run(None, {key: value.numpy() for key, value in inputs.items()})
    expected = layer_call(layer, {**inputs, **settings}).numpy()
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4)
