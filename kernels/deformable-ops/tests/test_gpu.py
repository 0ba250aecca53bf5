# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Graphs, streams, several devices and large tensors on a GPU; `python -m pytest -m gpu` runs all GPU tests."""

import kernels
import pytest
import torch
from cases import attention, convolution, expected_attention, flat, fused, on_device, packed, relative_error
from conftest import FOLDER
from transformers.models.rf_detr.modeling_rf_detr import MultiScaleDeformableAttention as TransformersLayer

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]

MAKERS = {
    "ms_deform_attn": lambda **options: attention(channels=32, queries=200, **options),
    "ms_deform_attn_fused": lambda **options: fused(attention(channels=32, queries=200, **options)),
    "dcnv3": lambda **options: convolution(channels=16, height=20, width=30, **options),
    "dcnv4": lambda **options: packed(convolution(channels=16, height=20, width=30, **options)),
}
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def both(ops, name: str):
    """Return a function of an operator's arguments that computes its output and gradients."""
    forward, backward = getattr(ops.ops, name), getattr(ops.ops, f"{name}_backward")

    def run(*arguments):
        output = forward(*arguments)
        return (output, *backward(torch.ones_like(output), *arguments))

    return run


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MAKERS)
def test_graph_replays(ops, name, dtype):
    run = both(ops, name)
    static = flat(MAKERS[name](dtype=dtype, device="cuda"))
    other = flat(MAKERS[name](dtype=dtype, device="cuda"))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run(*static)  # loads the modules before the capture
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run(*static)
    for mine, new in zip(static, other, strict=True):
        if isinstance(mine, torch.Tensor):
            mine.copy_(new)
    for result in results:
        result.fill_(float("nan"))
    for _ in range(2):  # the second replay must not add to the sums of the first
        graph.replay()
    expected = run(*other)
    bound = {torch.float64: 1e-13, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    assert torch.equal(results[0], expected[0])
    for result, right in zip(results[1:], expected[1:], strict=True):
        assert relative_error(result, right) < bound


@pytest.mark.parametrize("name", MAKERS)
def test_calls_do_not_synchronize(ops, name):
    arguments = flat(MAKERS[name](dtype=torch.float32, device="cuda"))
    run = both(ops, name)
    run(*arguments)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", MAKERS)
def test_runs_on_the_current_stream(ops, name):
    """The operators wait for earlier work on the stream, which writes their inputs late."""
    arguments = flat(MAKERS[name](dtype=torch.float32, device="cuda"))
    run = both(ops, name)
    expected = run(*arguments)
    busy = torch.zeros(8192, 8192, device="cuda")
    late = [torch.zeros_like(value) if isinstance(value, torch.Tensor) else value for value in arguments]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(20):  # tens of milliseconds
            busy = busy @ busy
        for mine, right in zip(late, arguments, strict=True):
            if isinstance(mine, torch.Tensor):
                mine.copy_(right, non_blocking=True)
        results = run(*late)
    torch.cuda.current_stream().wait_stream(stream)
    for result, right in zip(results, expected, strict=True):
        assert relative_error(result, right) < 1e-5


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deterministic_results(ops, name, dtype):
    """All results except the gradient of value, a sum of atomic additions, are equal in every run."""
    arguments = flat(MAKERS[name](dtype=dtype, device="cuda"))
    run = both(ops, name)
    first = run(*arguments)
    for _ in range(20):
        again = run(*arguments)
        for index in (0, 2, 3):
            assert torch.equal(again[index], first[index])
        assert relative_error(again[1], first[1]) < (1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("name", MAKERS)
def test_deterministic_mode_raises_an_error(ops, name):
    arguments = MAKERS[name](dtype=torch.float32, device="cuda")
    arguments["value"].requires_grad_()
    torch.use_deterministic_algorithms(True)
    try:
        output = getattr(ops, name)(**arguments)
        with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
            output.sum().backward()
        with torch.no_grad():  # no error without a gradient
            getattr(ops, name)(**arguments)
    finally:
        torch.use_deterministic_algorithms(False)


def test_tensors_on_several_devices_are_refused(ops):
    arguments = attention(device="cuda")
    with pytest.raises(RuntimeError, match="must be on a CUDA device as the other tensors are"):
        ops.ops.ms_deform_attn(*flat({**arguments, "attention_weights": arguments["attention_weights"].cpu()}))
    if torch.cuda.device_count() > 1:
        elsewhere = arguments["attention_weights"].to("cuda:1")
        with pytest.raises(RuntimeError, match="all tensors must be on one device"):
            ops.ops.ms_deform_attn(*flat({**arguments, "attention_weights": elsewhere}))


@pytest.mark.parametrize("name", MAKERS)
def test_another_device_than_the_current_one(ops, name):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    arguments = MAKERS[name](dtype=torch.float64)
    run = both(ops, name)
    expected = run(*flat(on_device(arguments, "cuda:0")))
    results = run(*flat(on_device(arguments, "cuda:1")))
    assert torch.cuda.current_device() == 0
    for result, right in zip(results, expected, strict=True):
        assert result.device == torch.device("cuda:1") and relative_error(result, right) < 1e-12


def test_offsets_of_elements_have_64_bits(ops):
    """Sample the last row of a value with more than 2 ** 32 elements, and compute its gradient."""
    height, width, heads, channels = 4096, 8192, 4, 64
    elements = height * width * heads * channels  # 2 ** 33 bytes of float16, four times that with the gradient
    free, _ = torch.cuda.mem_get_info()
    if free < 2 * elements + 6 * elements + 2**30:
        pytest.skip(f"needs {8 * elements / 2**30:.0f} GiB of a GPU's memory")
    value = torch.zeros(1, height * width, heads, channels, dtype=torch.float16, device="cuda")
    value[0, -1] = torch.randn(heads, channels, device="cuda").half()
    locations = torch.tensor([1 - 0.5 / width, 1 - 0.5 / height], dtype=torch.float64).float()
    locations = locations.expand(1, 3, heads, 1, 2, 2).contiguous().cuda()
    weights = torch.full((1, 3, heads, 1, 2), 0.5, device="cuda")
    output = ops.ms_deform_attn(value, [(height, width)], locations, weights)
    assert relative_error(output[0, 0], value[0, -1].flatten()) < 2e-3  # positions in float32 are 5e-4 pixels apart
    gradient = torch.ones_like(output)
    grad_value, _, _ = ops.ops.ms_deform_attn_backward(gradient, value, [height, width], locations, weights)
    torch.testing.assert_close(grad_value[0, -1], torch.full_like(value[0, -1], 3.0), rtol=5e-3, atol=0)
    assert not grad_value[0, :-8192].any()


@pytest.mark.parametrize("mode", [kernels.Mode.INFERENCE, kernels.Mode.TRAINING | kernels.Mode.TORCH_COMPILE])
def test_kernelize_replaces_the_layer_of_transformers(ops, mode):
    arguments = attention(device="cuda")
    shapes = arguments["spatial_shapes"]
    model = torch.nn.Sequential(TransformersLayer())
    name = "MultiScaleDeformableAttention"
    kernels.replace_kernel_forward_from_hub(TransformersLayer, name)
    repository = kernels.LocalLayerRepository(repo_path=FOLDER, layer_name=name)
    with kernels.use_kernel_mapping({name: {"cuda": repository}}, inherit_mapping=False):
        kernels.kernelize(model, mode=mode, device="cuda", use_fallback=False)
    output = model[0](
        arguments["value"],
        torch.tensor(shapes, device="cuda"),
        shapes,
        torch.tensor([0, 35], device="cuda"),
        arguments["sampling_locations"],
        arguments["attention_weights"],
        64,
    )
    assert relative_error(output, expected_attention(**arguments)) < 1e-12


@pytest.mark.parametrize("name", MAKERS)
def test_equals_the_cpu(ops, name):
    """Compare outputs and gradients of CPU and GPU in every dtype, for sizes of several blocks."""
    for dtype, bound in zip(DTYPES, (1e-5, 1e-12, 2e-3, 1e-2), strict=True):
        arguments = MAKERS[name](dtype=dtype)
        run = both(ops, name)
        expected, results = run(*flat(arguments)), run(*flat(on_device(arguments, "cuda")))
        for result, right in zip(results, expected, strict=True):
            assert relative_error(result, right) < bound
