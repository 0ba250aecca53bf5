# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The operators in torch and the kernels package: schemas, autograd, torch.compile, errors, layers."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import kernels
import pytest
import torch
from cases import attention, convolution, flat, fused, packed, relative_error
from conftest import FOLDER
from kernels.cli.benchmark import discover_benchmark_classes
from transformers.models.rf_detr.modeling_rf_detr import MultiScaleDeformableAttention as TransformersLayer


def all_arguments(dtype=torch.float64, device="cpu") -> dict[str, dict]:
    options = {"dtype": dtype, "device": device}
    small = attention(shapes=((3, 4), (2, 2)), batch=2, queries=3, heads=2, channels=3, points=2, **options)
    image = convolution(batch=1, height=3, width=4, groups=2, channels=3, **options)
    together = packed(image)
    together["offset_mask"].nan_to_num_()  # the comparisons of opcheck and gradcheck refuse NaN
    return {"ms_deform_attn": small, "ms_deform_attn_fused": fused(small), "dcnv3": image, "dcnv4": together}


OPERATORS = list(all_arguments())
SUPPORTED = ("8.0", "8.6", "8.9", "9.0", "10.0", "12.0")


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(ops, device, name, dtype):
    arguments = flat(all_arguments(dtype, device)[name])
    arguments = tuple(value.requires_grad_() if isinstance(value, torch.Tensor) else value for value in arguments)
    operator = getattr(ops.ops, name).default
    checks = (
        "test_schema",
        "test_autograd_registration",
        "test_faketensor",
        "test_aot_dispatch_static",
        "test_aot_dispatch_dynamic",
    )
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    assert set(torch.library.opcheck(operator, arguments, test_utils=checks, **tolerance).values()) == {"SUCCESS"}

    output = operator(*arguments).detach()
    tensors = [value.detach() if isinstance(value, torch.Tensor) else value for value in arguments]
    backward = getattr(ops.ops, f"{name}_backward").default
    for check in ("test_schema", "test_faketensor"):
        torch.library.opcheck(backward, (torch.ones_like(output), *tensors), test_utils=check)


@pytest.mark.parametrize("name", OPERATORS)
def test_gradcheck(ops, device, name):
    arguments = all_arguments(device=device)[name]
    tensors = {key: value for key, value in arguments.items() if isinstance(value, torch.Tensor)}
    rest = {key: value for key, value in arguments.items() if key not in tensors}
    inputs = tuple(tensor.requires_grad_() for tensor in tensors.values())
    operator = getattr(ops, name)
    # on a GPU the order of atomic sums varies
    assert torch.autograd.gradcheck(
        lambda *values: operator(**dict(zip(tensors, values, strict=True)), **rest),
        inputs,
        nondet_tol=0.0 if device == "cpu" else 1e-12,
    )
    output = operator(**arguments)
    (first,) = torch.autograd.grad(output.sum(), inputs[0], create_graph=True)
    if first.requires_grad:
        with pytest.raises(RuntimeError, match="no second derivatives"):
            torch.autograd.grad(first.sum(), inputs[1])


@pytest.mark.parametrize("name", OPERATORS)
def test_forward_mode_raises_an_error(ops, name):
    """Without the error torch would return zero."""
    arguments = all_arguments()[name]
    for key in [key for key, value in arguments.items() if isinstance(value, torch.Tensor)]:
        with pytest.raises(RuntimeError, match="no forward-mode derivatives"):
            torch.func.jvp(
                lambda tensor: getattr(ops, name)(**{**arguments, key: tensor}),  # noqa: B023
                (arguments[key],),
                (torch.ones_like(arguments[key]),),
            )


@pytest.mark.parametrize("name", OPERATORS)
def test_compiles_once_for_all_sizes(ops, device, name):
    torch.compiler.reset()
    operator = getattr(ops, name)

    class Layer(torch.nn.Module):  # numbers of a module are constants for torch.compile, as in a model
        def __init__(self):
            super().__init__()
            settings = {key: value for key, value in convolution().items() if not isinstance(value, torch.Tensor)}
            self.settings = tuple(settings.values()) if name.startswith("dcn") else ()

        def forward(self, arguments):
            return operator(*arguments, *self.settings) * 2

    compiled = torch.compile(Layer(), fullgraph=True, dynamic=True)
    for size in (4, 5, 7):
        if name.startswith("dcn"):
            arguments = convolution(height=size, width=size + 3, dtype=torch.float32, device=device)
            arguments = arguments if name == "dcnv3" else packed(arguments)
        else:
            options = {"dtype": torch.float32, "device": device}
            arguments = attention(shapes=((size, size + 2), (size + 1, size)), queries=size * 3, **options)
            if name == "ms_deform_attn_fused":
                arguments = fused(arguments)
        inputs = {key: value for key, value in arguments.items() if isinstance(value, torch.Tensor)}
        for tensor in inputs.values():
            tensor.requires_grad_()
        eager = operator(**arguments) * 2
        expected = torch.autograd.grad(eager.square().sum(), list(inputs.values()))
        with torch.compiler.set_stance("default" if size == 4 else "fail_on_recompile"):
            output = compiled(
                [value for key, value in arguments.items() if not name.startswith("dcn") or key in inputs]
            )
        gradients = torch.autograd.grad(output.square().sum(), list(inputs.values()))
        assert relative_error(output, eager) < 1e-6
        for gradient, other in zip(gradients, expected, strict=True):
            assert relative_error(gradient, other) < 1e-5


REFUSED = [
    ("ms_deform_attn", {"value": lambda t: t[:, :-1]}, "value has 15 tokens, but the levels .* have 16"),
    ("ms_deform_attn", {"value": lambda t: t.flatten(2)}, r"value must be \(batch, tokens, heads, channels\)"),
    ("ms_deform_attn", {"value": lambda t: t[:1]}, "batch, heads and levels must be equal"),
    ("ms_deform_attn", {"value": lambda t: t[:, :, :1]}, "batch, heads and levels must be equal"),
    ("ms_deform_attn", {"value": lambda t: t.long()}, "value must be float32"),
    ("ms_deform_attn", {"sampling_locations": lambda t: t.int()}, "sampling_locations must be float32"),
    ("ms_deform_attn", {"sampling_locations": lambda t: t[..., :1]}, "sampling_locations must have the shape"),
    ("ms_deform_attn", {"sampling_locations": lambda t: t[:, :-1]}, "sampling_locations must have the shape"),
    ("ms_deform_attn", {"sampling_locations": lambda t: t.flatten(4)}, "sampling_locations must be"),
    ("ms_deform_attn", {"attention_weights": lambda t: t[..., :-1]}, "sampling_locations must have the shape"),
    ("ms_deform_attn", {"attention_weights": lambda t: t.flatten(3)}, "attention_weights must be"),
    ("ms_deform_attn", {"spatial_shapes": lambda s: s[:1]}, "have 12"),
    ("ms_deform_attn", {"spatial_shapes": lambda s: [(4, 4)]}, "levels must be equal"),
    ("ms_deform_attn", {"spatial_shapes": lambda s: [(-3, -4), (2, 2)]}, "spatial_shapes must be sizes"),
    ("ms_deform_attn", {"spatial_shapes": lambda s: [(2**32, 2**32), (4, 4)]}, "spatial_shapes must be sizes"),
    ("ms_deform_attn", {"spatial_shapes": lambda s: [(3, 4), (2,)]}, "height, width"),
    ("ms_deform_attn_fused", {"reference_points": lambda t: t[:, :-1]}, "reference_points must be"),
    ("ms_deform_attn_fused", {"reference_points": lambda t: t[..., :1]}, "reference_points must be"),
    ("ms_deform_attn_fused", {"reference_points": lambda t: t[:, :, 0]}, "reference_points must be"),
    ("ms_deform_attn_fused", {"attention_logits": lambda t: t[:1]}, "must have the shape of attention_logits"),
    ("dcnv3", {"value": lambda t: t[..., :-1]}, "groups must divide"),
    ("dcnv3", {"value": lambda t: t[:, :-1]}, "offset must have the shape"),
    ("dcnv3", {"offset": lambda t: t[..., :-2]}, "offset must have the shape"),
    ("dcnv3", {"mask": lambda t: t[:, :, :-1]}, "mask must have the shape"),
    ("dcnv3", {"mask": lambda t: t.flatten(1)}, "mask must be"),
    ("dcnv3", {"kernel_size": lambda k: (9, 9)}, "which is more than the padded value has"),
    ("dcnv3", {"stride": lambda s: (0, 1)}, "stride must be"),
    ("dcnv3", {"padding": lambda s: (-1, 1)}, "padding must be"),
    ("dcnv3", {"dilation": lambda s: (1,)}, "dilation must be"),
    ("dcnv3", {"groups": lambda g: 0}, "groups must divide"),
    ("dcnv3", {"groups": lambda g: 2**40}, "groups must divide"),
    ("dcnv3", {"kernel_size": lambda k: (2, 2), "remove_center": lambda r: True}, "remove_center needs"),
    ("dcnv3", {"kernel_size": lambda k: (3, 2), "remove_center": lambda r: True}, "remove_center needs"),
    ("dcnv3", {"kernel_size": lambda k: (1, 1), "remove_center": lambda r: True}, "remove_center needs"),
    ("dcnv4", {"value": lambda t: t[..., :-1]}, "groups must divide"),
    ("dcnv4", {"value": lambda t: t[:, :-1]}, "offset_mask must have the shape"),
    ("dcnv4", {"offset_mask": lambda t: t[..., :54]}, r"offset_mask must have the shape \[1, 3, 4, 56\]"),
    ("dcnv4", {"offset_mask": lambda t: t.flatten(1)}, "offset_mask must be"),
    ("dcnv4", {"offset_mask": lambda t: t.long()}, "offset_mask must be float32"),
    ("dcnv4", {"remove_center": lambda r: True}, r"offset_mask must have the shape \[1, 3, 4, 48\]"),
]


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED)
def test_invalid_arguments_raise_errors(ops, device, name, changes, message):
    arguments = all_arguments(device=device)[name]
    for key, change in changes.items():
        arguments[key] = change(arguments[key])
    with pytest.raises(RuntimeError, match=message) as caught:
        getattr(ops, name)(**arguments)
    assert ".cpp" not in str(caught.value)  # no location in the sources


def test_gradient_of_another_shape_raises_an_error(ops, device):
    arguments = flat(all_arguments(device=device)["ms_deform_attn"])
    with pytest.raises(RuntimeError, match="grad_output must have the shape of the output"):
        ops.ops.ms_deform_attn_backward(torch.zeros(2, 3, 5, dtype=torch.float64, device=device), *arguments)


@pytest.mark.parametrize("name", OPERATORS)
def test_deterministic_mode_raises_the_error_of_torch(ops, name):
    """On a CUDA device the gradient of value is a sum of atomic additions; only the device of the gradient is read."""
    wanted, unwanted = SimpleNamespace(needs_input_grad=[True]), SimpleNamespace(needs_input_grad=[False])
    functions = sys.modules[ops.ms_deform_attn.__module__]
    on_cpu, on_gpu = (SimpleNamespace(device=torch.device(device)) for device in ("cpu", "cuda"))
    functions._alert_not_deterministic(wanted, name, on_gpu)
    torch.use_deterministic_algorithms(True)
    try:
        functions._alert_not_deterministic(wanted, name, on_cpu)
        functions._alert_not_deterministic(unwanted, name, on_gpu)
        with pytest.raises(RuntimeError, match=f"^{name} does not have a deterministic implementation, but you set"):
            functions._alert_not_deterministic(wanted, name, on_gpu)
        torch.use_deterministic_algorithms(True, warn_only=True)
        with pytest.warns(UserWarning, match=f"^{name} does not have a deterministic implementation"):
            functions._alert_not_deterministic(wanted, name, on_gpu)
    finally:
        torch.use_deterministic_algorithms(False)


def test_other_devices_raise_errors(ops):
    arguments = all_arguments()["ms_deform_attn"]
    arguments["attention_weights"] = arguments["attention_weights"].to("meta")
    with pytest.raises(RuntimeError):
        ops.ms_deform_attn(**arguments)


def layer_arguments(dtype=torch.float32) -> tuple:
    arguments = attention(dtype=dtype)
    shapes = arguments["spatial_shapes"]
    starts = torch.tensor([0, 35])
    return (
        arguments["value"],
        torch.tensor(shapes),
        shapes,
        starts,
        arguments["sampling_locations"],
        arguments["attention_weights"],
        64,
    )


@pytest.mark.parametrize("mode", [kernels.Mode.INFERENCE, kernels.Mode.TRAINING | kernels.Mode.TORCH_COMPILE])
def test_kernelize_replaces_the_layer_of_transformers(ops, mode):
    model = torch.nn.Sequential(TransformersLayer())
    expected = model[0](*layer_arguments(torch.float64))
    name = "MultiScaleDeformableAttention"
    kernels.replace_kernel_forward_from_hub(TransformersLayer, name)  # transformers may refuse the installed version
    repository = kernels.LocalLayerRepository(repo_path=FOLDER, layer_name=name)
    with kernels.use_kernel_mapping({name: {"cpu": repository}}, inherit_mapping=False):
        kernels.kernelize(model, mode=mode, device="cpu", use_fallback=False)
    assert (
        "layers" in model[0].forward.__func__.__module__ or "layers" in model[0].forward.__func__.__code__.co_filename
    )
    torch.manual_seed(0)
    assert relative_error(model[0](*layer_arguments(torch.float64)), expected) < 1e-12


def test_layers_are_valid_for_kernelize(ops):
    for name in ("MultiScaleDeformableAttention", "DeformableConvolutionV3"):
        layer = getattr(ops.layers, name)
        assert layer.__init__ is torch.nn.Module.__init__
        assert layer.has_backward and layer.can_torch_compile


def test_metadata_is_complete():
    variants = sorted((FOLDER / "build").iterdir())
    assert variants
    for variant in variants:
        metadata = json.loads((variant / "metadata.json").read_text())
        assert metadata.keys() == {"name", "id", "version", "license", "python-depends", "backend", "digest"}
        hashed = {path.relative_to(variant).as_posix() for path in variant.rglob("*") if path.suffix != ".pyc"}
        assert {*metadata["digest"]["files"], "metadata.json", "deformable_ops"} == {
            name for name in hashed if "__pycache__" not in name
        }
        assert (variant / f"{metadata['id']}.so").is_file()
        backend = metadata["backend"]["type"]
        assert f"-{'cu' if backend == 'cuda' else backend}" in variant.name
        capabilities = metadata["backend"].get("archs")  # of a CUDA variant; empty without CUDA code
        assert (capabilities is not None) == (backend == "cuda") and set(capabilities or ()) <= set(SUPPORTED)
        assert kernels.Metadata.read_from_file(variant / "metadata.json").id == metadata["id"]


def test_benchmark_for_the_kernels_command(ops):
    """`kernels benchmark` finds one class, and its results equal those of plain PyTorch."""
    folder = Path(__file__).parents[1]
    (benchmark,) = discover_benchmark_classes(folder / "benchmarks" / "benchmark.py", folder)
    for name in OPERATORS:
        instance = benchmark()
        instance.kernel = ops
        getattr(instance, f"setup_{name}", instance.setup)()
        getattr(instance, f"benchmark_{name}")()
        assert relative_error(instance.out, getattr(instance, f"verify_{name}")()) < 1e-5
