# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Compare implementations of the deformable operators on a GPU, for `python benchmarks/operators.py --device cuda`.

The table has, for every case and dtype, the time, the bandwidth relative to that of a copy if each tensor is read or
written once, and the error against float64. Our kernel is compared with grid_sample and, if their sources are given,
with the kernel that transformers loads from the Hub (`--public-kernel`, the folder deformable-detr of
github.com/huggingface/kernels-community) and with InternImage's DCNv3 (`--public-dcnv3`, the folder ops_dcnv3/src of
github.com/OpenGVLab/InternImage). Both are compiled in the same run for this GPU.

Calls are captured in a graph, so that launches from Python are not measured, and the replays are timed. "warm" repeats
one set of tensors, as in a model that has just computed them. "cold" uses more sets than the cache holds. The rounds of
the implementations alternate, and the table has medians.
"""

import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from gpu_timing import copy_bandwidth, medians, relative_error, replay

from segtransformers.operators import dcnv3_reference, dcnv4_reference, dispatcher, ms_deform_attn_reference

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CALLS = 10  # calls in a graph of "warm"


def compile_public_attention(folder: Path) -> SimpleNamespace:
    """Compile the public deformable-detr kernel from its folder and return its operators.

    Raises:
        SystemExit: if the folder is another one, or does not compile.
    """
    sources = [*folder.glob("deformable_detr/*.cu"), *folder.glob("torch-ext/*.cpp")]
    if len(sources) < 2:
        raise SystemExit(f"error: {folder} has no deformable_detr/*.cu and torch-ext/*.cpp: pass the kernel's folder")
    script = dispatcher.build_script()
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    try:
        nvcc = script.find_nvcc([capability])
    except RuntimeError as error:
        raise SystemExit(f"error: {error}") from None
    name = "public_deformable_detr"
    work = Path(tempfile.mkdtemp())
    registration = script.REGISTRATION + "#define TORCH_LIBRARY_EXPAND(NAME, MODULE) TORCH_LIBRARY(NAME, MODULE)\n"
    registration += "#define TORCH_LIBRARY_IMPL_EXPAND(NAME, DEVICE, MODULE) TORCH_LIBRARY_IMPL(NAME, DEVICE, MODULE)\n"
    (work / "registration.h").write_text(registration)
    torch_folder = Path(torch.__file__).parent
    systems = [torch_folder / "include", torch_folder / "include/torch/csrc/api/include"]
    systems += sorted(torch_folder.parent.glob("nvidia/cu*/include"))
    command = [
        nvcc.path,
        *nvcc.flags(script.find_compiler()),
        "-shared",
        "-DUSE_CUDA",
        f"-DTORCH_EXTENSION_NAME={name}",
    ]
    command += [f"-I{path}" for path in (folder, folder / "torch-ext", work)]
    command += [part for path in systems for part in ("-isystem", str(path))]
    command += [*map(str, sources), f"-L{torch_folder / 'lib'}", "-ltorch", "-ltorch_cpu", "-ltorch_cuda", "-lc10"]
    result = subprocess.run([*command, "-lc10_cuda", "-o", str(work / f"{name}.so")], capture_output=True, text=True)
    if result.returncode != 0:
        raise SystemExit(f"error: {folder} does not compile:\n{result.stderr[:4000]}")
    torch.ops.load_library(work / f"{name}.so")
    return getattr(torch.ops, name)


def compile_public_dcnv3(folder: Path):
    """Compile InternImage's DCNv3 extension from its folder of sources.

    Raises:
        SystemExit: if the folder is another one.
    """
    from torch.utils import cpp_extension

    sources = [*folder.glob("*.cpp"), *folder.glob("cpu/*.cpp"), *folder.glob("cuda/*.cu")]
    if not any(source.suffix == ".cu" for source in sources):
        raise SystemExit(f"error: {folder} has no cuda/*.cu: pass the folder ops_dcnv3/src")
    flags = ["-DWITH_CUDA"]
    return cpp_extension.load(
        "public_dcnv3",
        list(map(str, sources)),
        extra_include_paths=[str(folder)],
        extra_cflags=flags,
        extra_cuda_cflags=[*flags, "-O3"],
    )


@dataclass
class Run:
    """A call of an implementation, and the tensors that it reads or writes."""

    call: Callable[[], object]
    tensors: list[torch.Tensor]


def cast(tensors: dict[str, torch.Tensor], dtype: torch.dtype, keep: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    return {name: tensor if name in keep else tensor.to(dtype) for name, tensor in tensors.items()}


def attention_runs(case: dict, dtype: torch.dtype, backward: bool, public) -> dict[str, Run]:
    """Return the calls of deformable attention by implementation; they return the output or the gradients."""
    ours = dispatcher.find_kernel()
    assert ours is not None
    ops, shapes = ours.functions.ops, case["spatial_shapes"]
    flat = [side for shape in shapes for side in shape]
    exact = {name: case[name] for name in ("value", "sampling_locations", "attention_weights")}
    mixed = list(cast(exact, dtype, keep=("sampling_locations",)).values())
    same = list(cast(exact, dtype).values())
    reference, offsets, logits = case["fused"]
    fused = [mixed[0], reference, offsets, logits.to(dtype)]
    gradient = case["gradient"].to(dtype)
    runs = {}

    def grid_sample(*tensors):
        return ms_deform_attn_reference(tensors[0], shapes, *tensors[1:])

    def add(name, forward, backward_function, tensors):
        if not backward:
            runs[name] = Run(lambda: forward(*tensors), tensors)
        elif backward_function is not None:
            runs[name] = Run(lambda: backward_function(gradient, *tensors), [gradient, *tensors, *tensors])

    add(
        "ours",
        lambda value, *rest: ops.ms_deform_attn(value, flat, *rest),
        lambda gradient, value, *rest: ops.ms_deform_attn_backward(gradient, value, flat, *rest),
        mixed,
    )
    if dtype != torch.float32:
        add("ours, locations in half too", lambda value, *rest: ops.ms_deform_attn(value, flat, *rest), None, same)
    add(
        "ours, softmax fused",
        lambda value, *rest: ops.ms_deform_attn_fused(value, flat, *rest),
        lambda gradient, value, *rest: ops.ms_deform_attn_fused_backward(gradient, value, flat, *rest),
        fused,
    )
    if public is not None:
        starts = [sum(height * width for height, width in shapes[:level]) for level in range(len(shapes))]
        device = case["value"].device
        index = (torch.tensor(shapes, device=device), torch.tensor(starts, device=device))
        add(
            "public kernel",
            lambda value, *rest: public.ms_deform_attn_forward(value, *index, *rest, 64),
            lambda gradient, value, *rest: public.ms_deform_attn_backward(value, *index, *rest, gradient, 64),
            same,
        )
    add("grid_sample", grid_sample, through_autograd(grid_sample), mixed)
    return runs


def convolution_runs(case: dict, dtype: torch.dtype, backward: bool, public) -> dict[str, Run]:
    """Return the calls of DCNv3 or DCNv4 by implementation; they return the output or the gradients."""
    ours = dispatcher.find_kernel()
    assert ours is not None
    ops = ours.functions.ops
    is_packed = "offset_mask" in case
    reference = dcnv4_reference if is_packed else dcnv3_reference
    forward_operator = ops.dcnv4 if is_packed else ops.dcnv3
    backward_operator = ops.dcnv4_backward if is_packed else ops.dcnv3_backward
    exact = {name: case[name] for name in (("value", "offset_mask") if is_packed else ("value", "offset", "mask"))}
    settings = [value for name, value in case.items() if name not in exact and name != "gradient"]
    lists = [list(value) if isinstance(value, tuple) else value for value in settings]
    mixed = list(cast(exact, dtype, keep=("offset", "offset_mask")).values())
    gradient = case["gradient"].to(dtype)
    runs = {}

    def grid_sample(*tensors):
        return reference(*tensors, *settings)

    def add(name, forward, backward_function, tensors):
        call = (lambda: backward_function(gradient, *tensors)) if backward else (lambda: forward(*tensors))
        runs[name] = Run(call, [gradient, *tensors, *tensors] if backward else tensors)

    add(
        "ours",
        lambda *tensors: forward_operator(*tensors, *lists),
        lambda gradient, *tensors: backward_operator(gradient, *tensors, *lists),
        mixed,
    )
    if public is not None and not is_packed and dtype != torch.bfloat16:  # not implemented there
        kernel, stride, padding, dilation, groups, scale, _ = settings
        numbers = [*kernel, *stride, *padding, *dilation, groups, case["value"].shape[3] // groups, scale]
        add(
            "public kernel",
            lambda *tensors: public.dcnv3_forward(*tensors, *numbers, 256),
            lambda gradient, *tensors: public.dcnv3_backward(*tensors, *numbers, gradient, 256),
            list(cast(exact, dtype).values()),
        )
    add("grid_sample", grid_sample, through_autograd(grid_sample), mixed)
    return runs


def through_autograd(function):
    """Return a function for forward and backward, because an autograd graph cannot be captured without its forward."""

    def both(gradient, *tensors):
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        with torch.enable_grad():
            return torch.autograd.grad(function(*leaves), leaves, gradient.to(tensors[0].dtype))

    return both


def measure(name: str, make: Callable[[], dict], device: torch.device, arguments, publics: dict, bandwidth: float):
    """Print a line for each dtype and implementation of a case."""
    is_attention = "spatial_shapes" in make()
    build_runs = attention_runs if is_attention else convolution_runs
    public = publics.get("attention" if is_attention else "dcnv3")

    def on_device(value):
        if isinstance(value, torch.Tensor):
            return value.to(device)
        return tuple(map(on_device, value)) if isinstance(value, tuple) else value

    def new_case() -> dict:
        case = {key: on_device(value) for key, value in make().items()}
        if is_attention:
            batch, queries, heads = case["attention_weights"].shape[:3]
            shape = (batch, queries, heads * case["value"].shape[3])
        else:
            coordinates = case["offset_mask"] if "offset_mask" in case else case["offset"]
            shape = (*coordinates.shape[:3], case["value"].shape[3])
        case["gradient"] = torch.randn(shape, device=device)
        return case

    first = new_case()
    exact = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in first.items()}
    if is_attention:
        exact["fused"] = tuple(tensor.double() for tensor in first["fused"])
    expected = {key: run.call() for key, run in build_runs(exact, torch.float64, arguments.backward, None).items()}
    direction = "backward" if arguments.backward else "forward"
    print(f"\n{name}, {direction}: microseconds, speed-up, share of a copy's bandwidth (cold), error against float64")
    for dtype in DTYPES:
        runs = build_runs(first, dtype, arguments.backward, public)
        size = sum(tensor.nbytes for tensor in next(iter(runs.values())).tensors)
        cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
        sets = [
            runs,
            *[build_runs(new_case(), dtype, arguments.backward, public) for _ in range(2 * cache // size + 1)],
        ]
        warm = {key: replay([run.call] * CALLS, device) for key, run in runs.items()}
        cold = {key: replay([each[key].call for each in sets], device) for key in runs}
        warm_times, cold_times = medians(warm, arguments.rounds), medians(cold, arguments.rounds)
        base = "public kernel" if "public kernel" in runs else "grid_sample"
        for key, run in runs.items():
            result = run.call()
            wanted = expected["ours, softmax fused" if "fused" in key else "ours"]
            written = result if isinstance(result, (tuple, list)) else [result]
            moved = sum(tensor.nbytes for tensor in run.tensors)
            moved += 0 if arguments.backward else sum(tensor.nbytes for tensor in written)
            print(
                f"  {str(dtype).removeprefix('torch.'):9} {key:28} warm {1e6 * warm_times[key]:9.1f} "
                f"cold {1e6 * cold_times[key]:9.1f} {warm_times[base] / warm_times[key]:7.2f}x {base:13} "
                f"{100 * moved / bandwidth / cold_times[key]:5.1f}%  {relative_error(result, wanted):.1e}",
                flush=True,
            )


def main(cases: dict[str, Callable[[], dict]], arguments) -> None:
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: torch finds no CUDA device")
    kernel = dispatcher.find_kernel()
    if kernel is None or device.type not in kernel.devices:
        raise SystemExit(f"error: no compiled kernel for {device.type} was found: run `segtransformers build-kernels`")
    publics = {}
    if arguments.public_kernel is not None:
        publics["attention"] = compile_public_attention(arguments.public_kernel.resolve())
    if arguments.public_dcnv3 is not None:
        publics["dcnv3"] = compile_public_dcnv3(arguments.public_dcnv3.resolve())
    print(dispatcher.describe())
    bandwidth = copy_bandwidth(device)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{card}; a copy reads and writes {bandwidth / 1e9:.0f} GB/s in total")
    with torch.no_grad():
        for name, make in cases.items():
            if arguments.only in name:
                measure(name, make, device, arguments, publics, bandwidth)
