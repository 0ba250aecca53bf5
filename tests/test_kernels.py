# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Which implementation serves an operator, and that the fast ones compute what the reference does."""

import importlib
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import kernels
import pytest
import torch
from reference_cases import FOLDER, relative_error
from test_deformable_convolution import arguments as convolution_arguments
from test_operators import arguments as attention_arguments
from test_vit_adapter import small_config
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

from segtransformers import ViTAdapterBackbone
from segtransformers.cli import app
from segtransformers.operators import (
    DeformableConvolutionV3,
    MultiScaleDeformableAttention,
    compiled_operators,
    dcnv3_fallback,
    dcnv3_reference,
    dispatcher,
    ms_deform_attn_fallback,
    ms_deform_attn_reference,
)
from segtransformers.operators.check import check_kernel

CASES = sorted(folder.name for folder in (FOLDER / "operators").iterdir())
COMPILER = shutil.which(os.environ.get("CXX", "c++"))


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """A fresh build of the sources, as `segtransformers build-kernels` makes it."""
    if COMPILER is None:
        pytest.skip("there is no C++ compiler to build the kernel with")
    folder = tmp_path_factory.mktemp("kernel")
    result = CliRunner().invoke(app, ["build-kernels", "--output", str(folder)])
    assert result.exit_code == 0, result.output
    assert str(folder) in result.stdout and dispatcher.KERNEL_ID in result.stdout
    assert "checked on cpu against plain PyTorch" in result.stdout
    return folder


@pytest.fixture
def nothing_found(monkeypatch, tmp_path):
    """As where no kernel was ever built."""
    monkeypatch.setattr(dispatcher, "sources", lambda: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("LOCAL_KERNELS", "SEGTRANSFORMERS_KERNELS_REPO", "SEGTRANSFORMERS_KERNELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(dispatcher._state, "mode", None)
    dispatcher.forget()
    yield
    dispatcher.forget()


@pytest.fixture
def kernel(nothing_found, monkeypatch, build):
    """The fresh build is found, and nothing else."""
    monkeypatch.setenv("LOCAL_KERNELS", f"someone/else=nowhere:{dispatcher.KERNEL_ID}={build}")
    dispatcher.forget()
    kernel = dispatcher.find_kernel()
    assert kernel is not None, dispatcher._state.problems
    return kernel


@pytest.fixture
def messages(caplog):
    caplog.set_level(logging.INFO, logger=dispatcher.__name__)
    return lambda: [record.getMessage() for record in caplog.records if record.name == dispatcher.__name__]


class Ran(TorchDispatchMode):
    """Names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(str(function))
        return function(*args, **(kwargs or {}))

    def compiled(self) -> set[str]:
        return {name.split(".")[1] for name in self.names if name.startswith("_deformable_ops")}


def case(name: str):
    """Layer, reference, fallback, arguments and recorded results of an operator's case."""
    if name.startswith("dcnv3"):
        tensors, settings = convolution_arguments(name)
        keys = ("value", "offset", "mask")
        return DeformableConvolutionV3(), dcnv3_reference, dcnv3_fallback, keys, tensors, settings
    tensors, shapes = attention_arguments(name)
    keys = ("value", "sampling_locations", "attention_weights")
    settings = {"spatial_shapes": shapes}
    return MultiScaleDeformableAttention(), ms_deform_attn_reference, ms_deform_attn_fallback, keys, tensors, settings


def layer_call(layer, arguments: dict) -> torch.Tensor:
    if isinstance(layer, DeformableConvolutionV3):
        return layer(**arguments)
    shapes = arguments["spatial_shapes"]
    starts = torch.tensor([sum(h * w for h, w in shapes[:level]) for level in range(len(shapes))])
    return layer(
        arguments["value"],
        torch.tensor(shapes),
        shapes,
        starts,
        arguments["sampling_locations"],
        arguments["attention_weights"],
        64,
    )


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("implementation", ["fallback", "compiled"])
def test_equals_the_original(kernel, name, implementation):
    layer, _, fallback, keys, tensors, settings = case(name)
    inputs = {key: tensors[key].clone().requires_grad_() for key in keys}
    with compiled_operators("force"), Ran() as ran:
        if implementation == "compiled":
            output = layer_call(layer, {**inputs, **settings})
        else:
            output = fallback(**inputs, **settings)
        output.backward(tensors["grad_output"])
    operator = name.split("-")[0]
    assert ran.compiled() == ({operator, f"{operator}_backward"} if implementation == "compiled" else set())
    assert relative_error(output, tensors["output"]) < 1e-10
    compared = 0
    for key, tensor in inputs.items():
        expected = tensors.get(f"grad_{key}")
        if expected is not None:  # not recorded where points stand on pixel centres
            assert relative_error(tensor.grad, expected) < 1e-10 if expected.any() else not tensor.grad.any(), key
            compared += 1
    assert compared >= 2


@pytest.mark.parametrize("name", ["ms_deform_attn-3-levels", "dcnv3-3x3"])
def test_layers_take_the_faster_fallback(name):
    """embedding_bag without gradients, grid_sample where eager training needs them, with the same result."""
    layer, _, _, keys, tensors, settings = case(name)
    inputs = {key: tensors[key].clone().requires_grad_() for key in keys}
    with compiled_operators("off"):
        with torch.no_grad(), Ran() as ran:
            output = layer_call(layer, {**inputs, **settings})
        assert any("embedding_bag" in name for name in ran.names) and "aten.grid_sampler_2d.default" not in ran.names
        with Ran() as ran:
            trained = layer_call(layer, {**inputs, **settings})
        assert "aten.grid_sampler_2d.default" in ran.names and not any("embedding_bag" in name for name in ran.names)
    assert relative_error(output, tensors["output"]) < 1e-10 and relative_error(trained, output) < 1e-12


@pytest.mark.parametrize("name", ["ms_deform_attn-3-levels", "dcnv3-3x3-remove-center"])
def test_gradcheck_of_the_fallback(name):
    _, _, fallback, keys, tensors, settings = case(name)
    if name.startswith("ms"):
        tensors = {key: tensors[key][:1, :2] if key != "value" else tensors[key][:1] for key in keys}
    inputs = tuple(tensors[key].requires_grad_() for key in keys)
    if name.startswith("dcnv3"):
        projection = torch.randn(8, 2, dtype=torch.float64)  # fewer outputs: a quarter of the time
    else:
        projection = torch.randn(24, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda *values: fallback(**dict(zip(keys, values, strict=True)), **settings) @ projection,
        inputs,
        fast_mode=True,
    )


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float16, 1e-3), (torch.bfloat16, 5e-3)])
@pytest.mark.parametrize("name", ["ms_deform_attn-3-levels", "dcnv3-3x3-offset-scale-2"])
def test_coordinates_keep_their_precision_in_the_fallback(name, dtype, bound):
    _, _, fallback, keys, tensors, settings = case(name)
    place = keys[1]
    inputs = {key: tensors[key].float() if key == place else tensors[key].to(dtype) for key in keys}
    output = fallback(**inputs, **settings)
    assert output.dtype == dtype and relative_error(output, tensors["output"]) < bound


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_fallback_and_the_reference_agree_on_what_is_no_number(bad):
    _, reference, fallback, keys, tensors, settings = case("ms_deform_attn-borders")
    inputs = {key: tensors[key].clone() for key in keys}
    inputs["value"][0, 5] = bad
    inputs["sampling_locations"][0, 3, 1, 0, 2, 1] = bad
    output, expected = fallback(**inputs, **settings), reference(**inputs, **settings)
    assert torch.equal(output.isfinite(), expected.isfinite()) and not output.isfinite().all()
    assert output.isfinite().any()
    torch.testing.assert_close(output[expected.isfinite()], expected[expected.isfinite()])


def test_the_fallback_compiles_once_for_all_sizes():
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(ms_deform_attn_fallback, backend=counter, fullgraph=True, dynamic=True)
    for size in (4, 5, 7):
        shapes = [(size, size + 2), (size + 1, size)]
        value = torch.randn(2, sum(h * w for h, w in shapes), 2, 3, requires_grad=True)
        locations, weights = torch.rand(2, size * 3, 2, 2, 4, 2), torch.rand(2, size * 3, 2, 2, 4)
        output = compiled(value, shapes, locations, weights)
        output.sum().backward()
        torch.testing.assert_close(output, ms_deform_attn_reference(value, shapes, locations, weights))
    assert counter.frame_count == 1


def adapter() -> tuple[ViTAdapterBackbone, torch.Tensor]:
    torch.manual_seed(0)
    return ViTAdapterBackbone(small_config()).double().eval(), torch.randn(1, 3, 64, 96, dtype=torch.float64)


def test_a_model_runs_the_compiled_operator(kernel):
    """By default, without a word in the code: it is found. The numbers are those of plain PyTorch."""
    model, images = adapter()
    with Ran() as ran:
        maps = model(images).feature_maps
    assert ran.compiled() == {"ms_deform_attn_fused"} and "aten.grid_sampler_2d.default" not in ran.names
    with compiled_operators("off"), Ran() as ran:
        expected = model(images).feature_maps
    assert not ran.compiled()
    for map_, other in zip(maps, expected, strict=True):
        assert relative_error(map_, other) < 1e-12


def test_a_model_compiles_with_the_operator_in_one_graph(kernel):
    model, images = adapter()
    model, images = model.float(), images.float()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with torch.no_grad():
        maps, expected = compiled(images).feature_maps, model(images).feature_maps
    assert len(graphs) == 1
    assert any("_deformable_ops" in str(node.target) for node in graphs[0].graph.nodes)
    for map_, other in zip(maps, expected, strict=True):
        torch.testing.assert_close(map_, other, rtol=1e-4, atol=1e-4)


def test_exported_programs_run_without_the_kernel(kernel):
    model, images = adapter()
    for mode, inside in (("auto", False), ("force", True)):
        with compiled_operators(mode):
            program = torch.export.export(model, (images,), strict=False)
        assert any("_deformable_ops" in str(node.target) for node in program.graph.nodes) == inside


def test_kernelize_takes_the_build(kernel, build):
    """The seam of the kernels package works beside ours: with ours switched off, the kernel still runs."""
    model, images = adapter()
    name = "MultiScaleDeformableAttention"
    repository = kernels.LocalLayerRepository(repo_path=build, layer_name=name)
    with kernels.use_kernel_mapping({name: {"cpu": repository}}, inherit_mapping=False):
        kernels.kernelize(model, mode=kernels.Mode.INFERENCE, device="cpu", use_fallback=False)
    with compiled_operators("off"), Ran() as ran:
        model(images)
    assert ran.compiled() == {"ms_deform_attn"}


# transformers asks for a version of `kernels` that may be newer than the installed one: here it believes to have it
USE_KERNELS = """
import sys
import transformers.utils.import_utils as utils

asked = utils._is_package_available

def answered(name, *arguments, **options):
    newest = name == "kernels" and options.get("return_version")
    return (True, utils.KERNELS_MIN_VERSION) if newest else asked(name, *arguments, **options)

utils._is_package_available = answered
utils.is_kernels_available.cache_clear()

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from segtransformers import ViTAdapterBackbone

class Names(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        print(function)
        return function(*arguments, **(keywords or {}))

model = ViTAdapterBackbone.from_pretrained(sys.argv[1], use_kernels=True)
assert model.use_kernels
with torch.no_grad(), Names():
    model(torch.zeros(1, 3, 64, 64))
"""


def test_use_kernels_of_transformers(kernel, build, tmp_path):
    """On a CPU transformers knows no kernel for the layer, and ours runs as without the option."""
    adapter()[0].float().save_pretrained(tmp_path)
    environment = {**os.environ, "LOCAL_KERNELS": f"{dispatcher.KERNEL_ID}={build}"}
    command = [sys.executable, "-c", USE_KERNELS, str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "ms_deform_attn_fused" in result.stdout and "grid_sampler" not in result.stdout


@pytest.mark.parametrize("direction", [[], ["--backward"]], ids=["forward", "backward"])
def test_the_benchmark_for_gpus_compares_equals(kernel, monkeypatch, capsys, direction):
    """All of it but the GPU: each implementation has a line and computes the same."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    operators = importlib.import_module("operators")
    small = {
        "attention": lambda: operators.attention([(4, 5)], [(6, 7), (3, 4)], 2, 32),
        "DCNv3": lambda: operators.convolution(6, 2),
    }
    monkeypatch.setattr(operators, "CASES", small)
    monkeypatch.setattr(sys, "argv", ["operators.py", "--device", "cpu", "--rounds", "1", *direction])
    operators.main()
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if " warm " in line]
    assert len(lines) == (3 + 3 + 3 if direction else 3 + 4 + 4) + 2 * 3
    bounds = {"float32": 1e-3, "float16": 5e-3, "bfloat16": 2e-2}
    for line in lines:
        if "too" not in line:  # locations in half precision are off, as the comparison is to show
            assert float(line[-1]) < bounds[line[0]], line


def test_missing_kernel_is_said_once(nothing_found, messages):
    model, images = adapter()
    model(images)
    model(images)
    assert [message for message in messages() if "plain PyTorch" in message] == messages()
    assert len(messages()) == 1 and "segtransformers build-kernels" in messages()[0]
    dispatcher.forget()
    with compiled_operators("off"):
        model(images)
    assert len(messages()) == 1


def test_advice_is_for_the_device_at_hand(nothing_found, messages):
    dispatcher._say_fallback("cuda")
    dispatcher._say_fallback("mps")
    on_cuda, on_mps = messages()
    assert "build-kernels` compiles one for this GPU" in on_cuda and "nvcc" in on_cuda
    assert "no compiled kernel for mps" in on_mps and "build-kernels" not in on_mps


def test_shapes_alone_need_no_kernel(nothing_found):
    with compiled_operators("force"):
        chosen = dispatcher.choose(
            "dcnv3", torch.empty(1, device="meta"), fallback=dcnv3_fallback, reference=dcnv3_reference
        )
    assert chosen is dcnv3_reference


def test_forced_kernel_that_is_missing_is_an_error(nothing_found, monkeypatch):
    model, images = adapter()
    with compiled_operators("force"), pytest.raises(RuntimeError, match=r"forced, but there is none.* build-kernels"):
        model(images)
    model(images)  # outside of the block all is as before
    monkeypatch.setenv("SEGTRANSFORMERS_KERNELS", "force")
    monkeypatch.setattr(dispatcher._state, "mode", None)
    with pytest.raises(RuntimeError, match="forced, but there is none"):
        model(images)


def test_unknown_modes_are_refused(monkeypatch):
    with (
        pytest.raises(ValueError, match="mode must be one of auto, off, force, got 'always'"),
        compiled_operators("always"),
    ):
        pass
    monkeypatch.setenv("SEGTRANSFORMERS_KERNELS", "yes")
    with pytest.raises(ValueError, match="SEGTRANSFORMERS_KERNELS must be one of auto, off, force, got 'yes'"):
        dispatcher.default_mode()


def test_a_loaded_kernel_is_said_and_shown(kernel, build, messages):
    dispatcher.forget()
    dispatcher.find_kernel()
    dispatcher.find_kernel()
    assert len(messages()) == 1
    for word in ("compiled on cpu", "float32", "bfloat16", str(build)):
        assert word in messages()[0]
    result = CliRunner().invoke(app, ["info"])
    assert result.exit_code == 0 and messages()[0] in result.stdout
    with compiled_operators("off"):
        assert "switched off" in CliRunner().invoke(app, ["info"]).stdout


def test_found_in_the_cache_folder_unless_built_from_other_sources(nothing_found, monkeypatch, build, messages):
    monkeypatch.undo()
    folder = dispatcher.sources()
    assert folder is not None
    monkeypatch.delenv("LOCAL_KERNELS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(build / "cache"))
    shutil.copytree(build / "build", dispatcher.cache_folder() / "build")
    elsewhere = build / "sources"
    shutil.copytree(folder, elsewhere, ignore=shutil.ignore_patterns("build", "tests"))
    monkeypatch.setattr(dispatcher, "sources", lambda: elsewhere)
    monkeypatch.setattr(dispatcher._state, "mode", None)
    dispatcher.forget()
    kernel = dispatcher.find_kernel()
    assert kernel is not None and kernel.origin == str(dispatcher.cache_folder() / "build")

    # of a torch that is not installed, and of a build that was cut off
    metadata = json.loads(next((dispatcher.cache_folder() / "build").glob("*/metadata.json")).read_text())
    for name in ("torch-stable-abi210-cu99-x86_64-linux", ".torch-stable-abi210-cpu-x86_64-linux.123"):
        (dispatcher.cache_folder() / "build" / name).mkdir()
        older = json.dumps({**metadata, "id": "_deformable_ops_cpu_0000000"})
        (dispatcher.cache_folder() / "build" / name / "metadata.json").write_text(older)
    dispatcher.forget()
    assert dispatcher.find_kernel() is not None, dispatcher._state.problems

    with (elsewhere / "cpu" / "problem.h").open("a") as file:
        file.write("// changed\n")
    dispatcher.forget()
    assert dispatcher.find_kernel() is None
    assert "built from other sources" in dispatcher._state.problems[0]
    monkeypatch.undo()
    dispatcher.forget()


def test_another_gpu_than_the_build_is_for_leaves_the_cpu(nothing_found, monkeypatch, build):
    """Then the `kernels` package refuses the CUDA variant; what the folder has for CPUs is taken."""
    load = dispatcher.kernels.get_local_kernel

    def refuse(folder, backend=None):
        if backend is None:
            raise RuntimeError("CUDA capability 7.5 of the current device is not supported")
        return load(folder, backend=backend)

    monkeypatch.setattr(dispatcher.kernels, "get_local_kernel", refuse)
    monkeypatch.setenv("LOCAL_KERNELS", f"{dispatcher.KERNEL_ID}={build}")
    dispatcher.forget()
    kernel = dispatcher.find_kernel()
    assert kernel is not None and kernel.devices == {"cpu"}

    monkeypatch.setenv("LOCAL_KERNELS", f"{dispatcher.KERNEL_ID}={build / 'nowhere'}")
    dispatcher.forget()
    assert dispatcher.find_kernel() is None and "capability 7.5" in dispatcher._state.problems[0]


@pytest.mark.parametrize("operator", dispatcher.OPERATORS)
@pytest.mark.parametrize("wrong", ["output", "gradient", "not a number"])
def test_a_kernel_that_computes_something_else_is_found_out(kernel, operator, wrong):
    """What `build-kernels` does after a build, on every device that it is for."""
    assert check_kernel(kernel.functions, "cpu") < 0.5

    def other(value, *rest):
        if wrong == "gradient":
            value = value * 1.1 - value.detach() * 0.1
        output = getattr(kernel.functions, operator)(value, *rest)
        return output * {"output": 1.1, "gradient": 1.0, "not a number": float("nan")}[wrong]

    functions = {name: getattr(kernel.functions, name) for name in dispatcher.OPERATORS} | {operator: other}
    with pytest.raises(RuntimeError, match=f"the compiled {operator} is wrong on cpu in torch.float32"):
        check_kernel(SimpleNamespace(**functions), "cpu")


def test_a_kernel_that_is_wrong_does_not_stay(build, monkeypatch, tmp_path):
    def wrong(functions, device):
        raise RuntimeError(f"wrong on {device}")

    def copy(target, cuda):
        shutil.copytree(build / "build", target / "build")
        return list((target / "build").iterdir())

    command = importlib.import_module("segtransformers.cli.build_kernels")
    monkeypatch.setattr(command, "check_kernel", wrong)
    monkeypatch.setattr(dispatcher, "build_script", lambda: SimpleNamespace(build=copy))
    result = CliRunner().invoke(app, ["build-kernels", "--output", str(tmp_path)])
    assert result.exit_code == 1 and result.stderr.splitlines() == ["removed what was built", "error: wrong on cpu"]
    assert not list((tmp_path / "build").iterdir())


def test_a_dtype_that_no_kernel_serves_is_no_missing_kernel(kernel, messages):
    value = torch.zeros(1, dtype=torch.float8_e4m3fn)
    assert dispatcher.choose("dcnv3", value, fallback=dcnv3_fallback, reference=dcnv3_reference) is dcnv3_fallback
    assert not messages()
    with compiled_operators("force"), pytest.raises(RuntimeError, match=r"dcnv3 on cpu in torch\.float8"):
        dispatcher.choose("dcnv3", value, fallback=dcnv3_fallback, reference=dcnv3_reference)


def test_a_broken_build_is_passed_over(nothing_found, monkeypatch, build, tmp_path, messages):
    broken = tmp_path / "broken"
    shutil.copytree(build / "build", broken / "build")
    for module in broken.glob("build/*/__init__.py"):
        module.write_text("raise ImportError('built for another machine')")
    monkeypatch.setenv("LOCAL_KERNELS", f"{dispatcher.KERNEL_ID}={broken}")
    dispatcher.forget()
    assert dispatcher.find_kernel() is None
    assert any("passed over" in message and "built for another machine" in message for message in messages())
    model, images = adapter()
    assert all(map_.isfinite().all() for map_ in model(images).feature_maps)


@pytest.mark.parametrize(
    ("repository", "message"), [("org/name", "org/name@version"), ("org/name@1", "org/name")], ids=["bad", "offline"]
)
def test_a_repository_that_cannot_be_had(nothing_found, monkeypatch, repository, message):
    """Only a user who names one gets there; the tests are offline."""
    monkeypatch.setenv("SEGTRANSFORMERS_KERNELS_REPO", repository)
    dispatcher.forget()
    assert dispatcher.find_kernel() is None
    assert len(dispatcher._state.problems) == 1 and message in dispatcher._state.problems[0]


def test_build_says_what_it_needs(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    result = CliRunner().invoke(app, ["build-kernels", "--output", str(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: there is no C++ compiler 'no-such-compiler': install one")
    assert not list(tmp_path.iterdir())


def test_importing_searches_for_nothing():
    """The import stays fast and touches no kernel."""
    code = (
        "import segtransformers; from segtransformers.operators import dispatcher; "
        "assert not dispatcher._state.searched"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
