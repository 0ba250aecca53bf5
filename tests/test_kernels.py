# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The dispatcher finds a compiled kernel, selects it where it can serve, and it computes what the reference does."""

import functools
import importlib
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import kernels
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from operator_cases import OperatorCalls, case, layer_call
from reference_cases import FOLDER, relative_error
from test_vit_adapter import small_config
from typer.testing import CliRunner

from segtransformers import ViTAdapterBackbone
from segtransformers.cli import app
from segtransformers.operators import (
    FusedDeformableAttention,
    MultiScaleDeformableAttention,
    compiled_operators,
    dcnv3_fallback,
    dcnv3_reference,
    dispatcher,
)
from segtransformers.operators.check import check_kernel

CASES = sorted(folder.name for folder in (FOLDER / "operators").iterdir())


@pytest.fixture(scope="module")
def build(kernel_build, tmp_path_factory):
    """A copy of the build, which tests of this file may change."""
    folder = tmp_path_factory.mktemp("kernel")
    shutil.copytree(kernel_build / "build", folder / "build")
    return folder


def test_build_kernels_says_how_to_use_the_build(kernel_build):
    printed = (kernel_build.parent / "kernel-build.txt").read_text(encoding="utf-8")
    assert str(kernel_build) in printed and dispatcher.KERNEL_ID in printed
    assert "checked on cpu against plain PyTorch" in printed


@pytest.fixture
def no_kernel(monkeypatch, tmp_path):
    """Hide every kernel of this machine from the dispatcher."""
    monkeypatch.setattr(dispatcher, "sources", lambda: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SEGTRANSFORMERS_CACHE")
    for name in ("LOCAL_KERNELS", "SEGTRANSFORMERS_KERNELS_REPO", "SEGTRANSFORMERS_KERNELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(dispatcher._state, "mode", None)
    dispatcher.reset()
    yield
    dispatcher.reset()


@pytest.fixture
def kernel(no_kernel, monkeypatch, build):
    """Let the dispatcher find only the fresh build."""
    monkeypatch.setenv("LOCAL_KERNELS", f"someone/else=nowhere:{dispatcher.KERNEL_ID}={build}")
    dispatcher.reset()
    kernel = dispatcher.find_kernel()
    assert kernel is not None, dispatcher._state.problems
    return kernel


@pytest.fixture
def messages(caplog):
    caplog.set_level(logging.INFO, logger=dispatcher.__name__)
    return lambda: [record.getMessage() for record in caplog.records if record.name == dispatcher.__name__]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("implementation", ["fallback", "compiled"])
def test_equals_the_original(kernel, name, implementation):
    layer, _, fallback, keys, tensors, settings = case(name)
    inputs = {key: tensors[key].clone().requires_grad_() for key in keys}
    with compiled_operators("force"), OperatorCalls() as calls:
        if implementation == "compiled":
            output = layer_call(layer, {**inputs, **settings})
        else:
            output = fallback(**inputs, **settings)
        output.backward(tensors["grad_output"])
    operator = name.split("-")[0]
    assert calls.compiled() == ({operator, f"{operator}_backward"} if implementation == "compiled" else set())
    assert relative_error(output, tensors["output"]) < 1e-10
    compared = 0
    for key, tensor in inputs.items():
        expected = tensors.get(f"grad_{key}")
        if expected is not None:  # not recorded if points are at pixel centres
            assert relative_error(tensor.grad, expected) < 1e-10 if expected.any() else not tensor.grad.any(), key
            compared += 1
    assert compared >= 2


def adapter() -> tuple[ViTAdapterBackbone, torch.Tensor]:
    torch.manual_seed(0)
    return ViTAdapterBackbone(small_config()).double().eval(), torch.randn(1, 3, 64, 96, dtype=torch.float64)


def test_model_runs_the_compiled_operator_by_default(kernel):
    """The feature maps equal those of plain PyTorch."""
    model, images = adapter()
    with OperatorCalls() as calls:
        feature_maps = model(images).feature_maps
    assert calls.compiled() == {"ms_deform_attn_fused"} and "aten::grid_sampler_2d" not in calls.names
    with compiled_operators("off"), OperatorCalls() as calls:
        expected = model(images).feature_maps
    assert not calls.compiled()
    for feature_map, other in zip(feature_maps, expected, strict=True):
        assert relative_error(feature_map, other) < 1e-12


def _deformable_layers(model) -> list[torch.nn.Module]:
    return [module for module in model.modules() if isinstance(module, MultiScaleDeformableAttention)]


def test_model_with_the_compiled_operator_fires_hooks_on_every_call(kernel):
    """Hooks on every module fire; a hook on the inner layer of the fused one makes the model call that layer."""
    model, images = adapter()
    calls = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    with torch.no_grad(), OperatorCalls() as operator_calls:
        model(images)
    assert operator_calls.compiled() == {"ms_deform_attn"}
    attention = [name for name in calls if name.endswith("attn.attn.attention")]
    assert len(attention) == len(_deformable_layers(model)) == len(set(attention))
    calls.clear()

    model, images = adapter()
    for name, module in model.named_modules():
        if isinstance(module, FusedDeformableAttention):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    with torch.no_grad(), OperatorCalls() as operator_calls:
        model(images)
    assert operator_calls.compiled() == {"ms_deform_attn_fused"} and len(calls) == len(_deformable_layers(model))


@pytest.mark.parametrize("kind", ["accelerate", "partial", "function"])
def test_model_calls_a_replaced_forward(kernel, kind):
    model, images = adapter()
    with torch.no_grad():
        expected = model(images).feature_maps
    count = 0

    def counted(own, *arguments):
        nonlocal count
        count += 1
        return own(*arguments)

    for layer in _deformable_layers(model):
        if kind == "accelerate":
            add_hook_to_module(layer, ModelHook())
        elif kind == "partial":
            layer.forward = functools.partial(counted, layer.forward)
        else:
            layer.forward = lambda *arguments, own=layer.forward: counted(own, *arguments)
    with torch.no_grad(), OperatorCalls() as calls:
        feature_maps = model(images).feature_maps
    assert calls.compiled() == {"ms_deform_attn"}
    assert count == (0 if kind == "accelerate" else len(_deformable_layers(model)))
    for feature_map, other in zip(feature_maps, expected, strict=True):
        assert relative_error(feature_map, other) < 1e-12


@pytest.mark.parametrize("name", ["dcnv3-3x3", "dcnv4-3x3"])
def test_convolution_layer_calls_hooks_and_a_replaced_forward(kernel, name):
    """A deformable convolution is one layer with one `forward`, which selects the operator."""
    layer, _, _, keys, tensors, settings = case(name)
    inputs = {key: tensors[key] for key in keys}
    fired = []
    layer.register_forward_hook(lambda *_: fired.append(True))
    with OperatorCalls() as calls:
        layer(**inputs, **settings)
    add_hook_to_module(layer, ModelHook())
    with OperatorCalls() as hooked:
        assert relative_error(layer(**inputs, **settings), tensors["output"]) < 1e-10
    assert calls.compiled() == hooked.compiled() == {name[:5]} and len(fired) == 2
    layer.forward = lambda *arguments, **named: 42
    assert layer(**inputs, **settings) == 42


def test_model_compiles_with_the_operator_in_one_graph(kernel):
    model, images = adapter()
    model, images = model.float(), images.float()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with torch.no_grad():
        feature_maps, expected = compiled(images).feature_maps, model(images).feature_maps
    assert len(graphs) == 1
    assert any("_deformable_ops" in str(node.target) for node in graphs[0].graph.nodes)
    for feature_map, other in zip(feature_maps, expected, strict=True):
        torch.testing.assert_close(feature_map, other, rtol=1e-4, atol=1e-4)


def test_exported_programs_run_without_the_kernel(kernel):
    model, images = adapter()
    for mode, inside in (("auto", False), ("force", True)):
        with compiled_operators(mode):
            program = torch.export.export(model, (images,), strict=False)
        assert any("_deformable_ops" in str(node.target) for node in program.graph.nodes) == inside


def test_kernelize_takes_the_build(kernel, build):
    """A kernel that `kernelize` put into the layers runs, even if the dispatcher's mode is off."""
    model, images = adapter()
    name = "MultiScaleDeformableAttention"
    repository = kernels.LocalLayerRepository(repo_path=build, layer_name=name)
    with kernels.use_kernel_mapping({name: {"cpu": repository}}, inherit_mapping=False):
        kernels.kernelize(model, mode=kernels.Mode.INFERENCE, device="cpu", use_fallback=False)
    with compiled_operators("off"), OperatorCalls() as calls:
        model(images)
    assert calls.compiled() == {"ms_deform_attn"}


# transformers may require a newer version of `kernels` than the installed one: this script makes it accept any version
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
from torch.profiler import profile
from segtransformers import ViTAdapterBackbone

model = ViTAdapterBackbone.from_pretrained(sys.argv[1], use_kernels=True)
assert model.use_kernels
with torch.no_grad(), profile() as calls:
    model(torch.zeros(1, 3, 64, 64))
print({event.key for event in calls.key_averages()})
"""


def test_use_kernels_of_transformers(kernel, build, tmp_path):
    """On a CPU transformers knows no kernel for the layer, and ours runs as without the option."""
    if not hasattr(kernels, "KernelizeFallback"):
        pytest.skip("transformers imports names that this version of kernels lacks")
    adapter()[0].float().save_pretrained(tmp_path)
    environment = {**os.environ, "LOCAL_KERNELS": f"{dispatcher.KERNEL_ID}={build}"}
    command = [sys.executable, "-c", USE_KERNELS, str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "ms_deform_attn_fused" in result.stdout and "grid_sampler" not in result.stdout


@pytest.mark.parametrize("direction", [[], ["--backward"]], ids=["forward", "backward"])
def test_gpu_benchmark_reports_small_errors(kernel, monkeypatch, capsys, direction):
    """Run it on the CPU: every implementation has a line and computes the same."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    operators = importlib.import_module("operators")
    small = {
        "attention": lambda: operators.attention([(4, 5)], [(6, 7), (3, 4)], 2, 32),
        "DCNv3": lambda: operators.convolution(6, 2),
        "DCNv4": lambda: operators.packed_convolution(6, 3),
    }
    monkeypatch.setattr(operators, "CASES", small)
    monkeypatch.setattr(sys, "argv", ["operators.py", "--device", "cpu", "--rounds", "1", *direction])
    operators.main()
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if " warm " in line]
    assert len(lines) == (3 + 3 + 3 if direction else 3 + 4 + 4) + 2 * 3 + 2 * 3
    bounds = {"float32": 1e-3, "float16": 5e-3, "bfloat16": 2e-2}
    for line in lines:
        if "too" not in line:  # the line with locations in half precision, which are off
            assert float(line[-1]) < bounds[line[0]], line


def test_missing_kernel_is_reported_once(no_kernel, messages):
    model, images = adapter()
    model(images)
    model(images)
    assert [message for message in messages() if "plain PyTorch" in message] == messages()
    assert len(messages()) == 1 and "segtransformers build-kernels" in messages()[0]
    dispatcher.reset()
    with compiled_operators("off"):
        model(images)
    assert len(messages()) == 1


def test_threads_search_once(no_kernel, monkeypatch):
    """A thread that comes during the search would load the same library, and hide the kernel that another has found."""
    loads = []
    together = threading.Barrier(4)

    def load():
        loads.append(time.sleep(0.2))
        return SimpleNamespace(**dict.fromkeys(dispatcher.OPERATORS))

    def search(_):
        together.wait()
        return dispatcher.find_kernel()

    monkeypatch.setattr(dispatcher, "_candidates", lambda: iter([("somewhere", load)]))
    monkeypatch.setattr(dispatcher, "devices_of", lambda functions: frozenset({"cpu"}))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(search, range(4)))
    assert len(loads) == 1 and found[0] is not None and all(kernel is found[0] for kernel in found)


def test_advice_depends_on_the_device(no_kernel, messages):
    dispatcher._warn_plain_pytorch("cuda")
    dispatcher._warn_plain_pytorch("mps")
    on_cuda, on_mps = messages()
    assert "build-kernels` compiles them for this GPU" in on_cuda and "nvcc" in on_cuda
    assert "no compiled kernel for mps" in on_mps and "build-kernels" not in on_mps


def test_meta_device_needs_no_kernel(no_kernel):
    with compiled_operators("force"):
        chosen = dispatcher.choose(
            "dcnv3", torch.empty(1, device="meta"), fallback=dcnv3_fallback, reference=dcnv3_reference
        )
    assert chosen is dcnv3_reference


def test_missing_kernel_is_an_error_if_forced(no_kernel, monkeypatch):
    model, images = adapter()
    with compiled_operators("force"), pytest.raises(RuntimeError, match=r"forced, but none was found.* build-kernels"):
        model(images)
    model(images)  # the mode ends with the block
    monkeypatch.setenv("SEGTRANSFORMERS_KERNELS", "force")
    monkeypatch.setattr(dispatcher._state, "mode", None)
    with pytest.raises(RuntimeError, match="forced, but none was found"):
        model(images)


def test_unknown_mode_raises_an_error(monkeypatch):
    with (
        pytest.raises(ValueError, match="mode must be one of auto, off, force, got 'always'"),
        compiled_operators("always"),
    ):
        pass
    monkeypatch.setenv("SEGTRANSFORMERS_KERNELS", "yes")
    with pytest.raises(ValueError, match="SEGTRANSFORMERS_KERNELS must be one of auto, off, force, got 'yes'"):
        dispatcher.default_mode()


def test_loaded_kernel_is_logged_and_shown_by_info(kernel, build, messages):
    dispatcher.reset()
    dispatcher.find_kernel()
    dispatcher.find_kernel()
    assert len(messages()) == 1
    for word in ("compiled on cpu", "float32", "bfloat16", str(build)):
        assert word in messages()[0]
    result = CliRunner().invoke(app, ["info"])
    assert result.exit_code == 0 and messages()[0] in result.stdout
    with compiled_operators("off"):
        assert "switched off" in CliRunner().invoke(app, ["info"]).stdout


def test_cache_folder_is_searched_and_stale_builds_are_skipped(no_kernel, monkeypatch, build, messages):
    monkeypatch.undo()
    folder = dispatcher.sources()
    assert folder is not None
    monkeypatch.delenv("LOCAL_KERNELS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(build / "cache"))
    monkeypatch.delenv("SEGTRANSFORMERS_CACHE")
    shutil.copytree(build / "build", dispatcher.cache_folder() / "build")
    elsewhere = build / "sources"
    shutil.copytree(folder, elsewhere, ignore=shutil.ignore_patterns("build", "tests"))
    monkeypatch.setattr(dispatcher, "sources", lambda: elsewhere)
    monkeypatch.setattr(dispatcher._state, "mode", None)
    dispatcher.reset()
    kernel = dispatcher.find_kernel()
    assert kernel is not None and kernel.origin == str(dispatcher.cache_folder() / "build")

    # stale variants do not matter beside the current one: for another torch, and of an interrupted build
    metadata = json.loads(next((dispatcher.cache_folder() / "build").glob("*/metadata.json")).read_text())
    for name in ("torch-stable-abi210-cu99-x86_64-linux", ".torch-stable-abi210-cpu-x86_64-linux.123"):
        (dispatcher.cache_folder() / "build" / name).mkdir()
        older = json.dumps({**metadata, "id": "_deformable_ops_cpu_0000000"})
        (dispatcher.cache_folder() / "build" / name / "metadata.json").write_text(older)
    dispatcher.reset()
    assert dispatcher.find_kernel() is not None, dispatcher._state.problems

    with (elsewhere / "cpu" / "problem.h").open("a") as file:
        file.write("// changed\n")
    dispatcher.reset()
    assert dispatcher.find_kernel() is None
    assert "built from other sources" in dispatcher._state.problems[0]
    monkeypatch.undo()
    dispatcher.reset()


def test_build_for_another_gpu_serves_the_cpu(no_kernel, monkeypatch, build):
    """If the `kernels` package refuses the CUDA variant, the CPU variant in the folder is loaded."""
    load = dispatcher.kernels.get_local_kernel

    def refuse(folder, backend=None):
        if backend is None:
            raise RuntimeError("CUDA capability 7.5 of the current device is not supported")
        return load(folder, backend=backend)

    monkeypatch.setattr(dispatcher.kernels, "get_local_kernel", refuse)
    monkeypatch.setenv("LOCAL_KERNELS", f"{dispatcher.KERNEL_ID}={build}")
    dispatcher.reset()
    kernel = dispatcher.find_kernel()
    assert kernel is not None and kernel.devices == {"cpu"}

    monkeypatch.setenv("LOCAL_KERNELS", f"{dispatcher.KERNEL_ID}={build / 'nowhere'}")
    dispatcher.reset()
    assert dispatcher.find_kernel() is None and "capability 7.5" in dispatcher._state.problems[0]


@pytest.mark.parametrize("operator", dispatcher.OPERATORS)
@pytest.mark.parametrize("wrong", ["output", "gradient", "not a number"])
def test_check_kernel_detects_wrong_results(kernel, operator, wrong):
    """`build-kernels` runs this check after a build on every available device."""
    assert check_kernel(kernel.functions, "cpu") < 0.5

    def other(value, *rest):
        if wrong == "gradient":
            value = value * 1.1 - value.detach() * 0.1
        output = getattr(kernel.functions, operator)(value, *rest)
        return output * {"output": 1.1, "gradient": 1.0, "not a number": float("nan")}[wrong]

    functions = {name: getattr(kernel.functions, name) for name in dispatcher.OPERATORS} | {operator: other}
    with pytest.raises(RuntimeError, match=f"the compiled {operator} is wrong on cpu in torch.float32"):
        check_kernel(SimpleNamespace(**functions), "cpu")


def test_build_kernels_removes_a_wrong_build(build, monkeypatch, tmp_path):
    def wrong(functions, device):
        raise RuntimeError(f"wrong on {device}")

    def copy(target, cuda):
        shutil.copytree(build / "build", target / "build")
        return list((target / "build").iterdir())

    monkeypatch.setattr("segtransformers.operators.check.check_kernel", wrong)
    monkeypatch.setattr(dispatcher, "build_script", lambda: SimpleNamespace(build=copy))
    result = CliRunner().invoke(app, ["build-kernels", "--output", str(tmp_path)])
    assert result.exit_code == 1 and result.stderr.splitlines() == ["the build was removed", "error: wrong on cpu"]
    assert not list((tmp_path / "build").iterdir())


def test_unsupported_dtype_does_not_warn_of_a_missing_kernel(kernel, messages):
    value = torch.zeros(1, dtype=torch.float8_e4m3fn)
    assert dispatcher.choose("dcnv3", value, fallback=dcnv3_fallback, reference=dcnv3_reference) is dcnv3_fallback
    assert not messages()
    with compiled_operators("force"), pytest.raises(RuntimeError, match=r"dcnv3 on cpu in torch\.float8"):
        dispatcher.choose("dcnv3", value, fallback=dcnv3_fallback, reference=dcnv3_reference)


@pytest.mark.parametrize(
    ("backend", "devices"),
    [
        ({"type": "cpu"}, {"cpu"}),
        ({"type": "cuda"}, {"cpu"}),  # a CUDA variant compiled without nvcc
        ({"type": "cuda", "archs": []}, {"cpu"}),
        ({"type": "cuda", "archs": ["9.0"]}, {"cpu", "cuda"}),
    ],
)
def test_metadata_states_the_devices_of_a_build(tmp_path, backend, devices):
    (tmp_path / "metadata.json").write_text(json.dumps({"backend": backend}))
    functions = dict.fromkeys(dispatcher.OPERATORS)
    module = SimpleNamespace(__file__=str(tmp_path / "__init__.py"), **functions)
    assert dispatcher.devices_of(module) == devices
    del module.dcnv3
    with pytest.raises(RuntimeError, match="it has no dcnv3"):
        dispatcher.devices_of(module)


def test_broken_build_is_skipped(no_kernel, monkeypatch, build, tmp_path, messages):
    broken = tmp_path / "broken"
    shutil.copytree(build / "build", broken / "build")
    for module in broken.glob("build/*/__init__.py"):
        module.write_text("raise ImportError('built for another machine')")
    monkeypatch.setenv("LOCAL_KERNELS", f"{dispatcher.KERNEL_ID}={broken}")
    dispatcher.reset()
    assert dispatcher.find_kernel() is None
    assert any("skipped" in message and "built for another machine" in message for message in messages())
    model, images = adapter()
    assert all(feature_map.isfinite().all() for feature_map in model(images).feature_maps)


@pytest.mark.parametrize(
    ("repository", "message"), [("org/name", "org/name@version"), ("org/name@1", "org/name")], ids=["bad", "offline"]
)
def test_unusable_repository_is_a_problem(no_kernel, monkeypatch, repository, message):
    """The tests are offline, so no repository can be loaded."""
    monkeypatch.setenv("SEGTRANSFORMERS_KERNELS_REPO", repository)
    dispatcher.reset()
    assert dispatcher.find_kernel() is None
    assert len(dispatcher._state.problems) == 1 and message in dispatcher._state.problems[0]


def test_build_without_a_compiler_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    result = CliRunner().invoke(app, ["build-kernels", "--output", str(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: the C++ compiler 'no-such-compiler' is missing: install one")
    assert not list(tmp_path.iterdir())


def test_import_does_not_search_for_a_kernel():
    code = (
        "import segtransformers; from segtransformers.operators import dispatcher; "
        "assert not dispatcher._state.searched"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
