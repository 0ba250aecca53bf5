# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Parts a to c: build, tests, errors and times of the operators. They need torch alone."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import cases
import operator_shapes
import torch
from day import Day, Item, Skipped, bound, table
from gpu_timing import copy_bandwidth, medians, relative_error, replay
from mmcv_kernel import compile_mmcv

PROJECT = Path(__file__).resolve().parents[2] / "kernels" / "deformable-ops"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# largest relative errors of outputs and gradients against float64, as in segtransformers.operators.check
ERROR_BOUNDS = {torch.float64: 1e-11, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
# smallest speed-ups over mmcv's kernel
FORWARD = {torch.float32: 1.5, torch.float16: 2.5}
BACKWARD = 3.0
FLOOR = 0.5  # smallest share of the speed at which the rows could be gathered


def items(day: Day) -> list[Item]:
    found = [
        Item("a", "build for this GPU", 150, partial(build, day)),
        Item("b", "errors against float64", 20, partial(errors, day)),
        Item("a", "tests", 240, partial(tests, day)),
        Item("c", "mmcv's kernel, compiled", 100, partial(mmcv, day)),
    ]
    shapes = SMALL if day.dry else operator_shapes.CASES
    for name, make in shapes.items():
        seconds = 6 if "DCN" in name else 30  # torch.compile of grid_sample
        found.append(Item("c", f"{name}, forward", seconds, partial(times, day, make, backward=False)))
        found.append(Item("c", f"{name}, backward", 6, partial(times, day, make, backward=True)))
    found.append(Item("a", "compute-sanitizer", 90, partial(sanitizer, day)))
    return found


SMALL: dict[str, Callable[[], dict]] = {
    "attention": lambda: operator_shapes.attention([(4, 5)], [(6, 7), (3, 4)], 2, 32),
    "DCNv3": lambda: operator_shapes.convolution(6, 2),
    "DCNv4": lambda: operator_shapes.packed_convolution(6, 3),
}


def load_script(path: Path) -> ModuleType:
    """Import a file; a package's `__init__.py` with its folder."""
    spec = importlib.util.spec_from_file_location(f"gpu_day_{abs(hash(str(path)))}", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- part a ----------------------------------------------------------------------------------------------------------


def library(day: Day) -> Path:
    return (day.options.library or day.output / "kernel").resolve()


def build(day: Day) -> dict:
    script = load_script(PROJECT / "build.py")
    if day.options.library is not None:
        print(f"taken from {library(day)}")
    elif day.dry:
        raise Skipped("a dry run compiles nothing: pass --library")
    else:
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
        script.find_nvcc([capability])  # an error now, because the build would only warn
        script.build(library(day))
    variants = sorted(path.parent.name for path in library(day).glob("build/*/metadata.json"))
    table(["variant"], [[name] for name in variants])
    return {"variants": variants, "identifiers": [path.stem for path in library(day).glob("build/*/*.so")]}


def operators(day: Day) -> ModuleType:
    """Import the build as `kernels` does, which may be missing on the machine."""
    found = sorted(library(day).glob("build/*-cpu-*/__init__.py" if day.dry else "build/*-cu*/__init__.py"))
    if not found:
        raise Skipped(f"{library(day)} has no build")
    name = "gpu_day_operators"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, found[0])
        assert spec is not None and spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


def tests(day: Day) -> dict:
    missing = [name for name in ("pytest", "kernels", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise Skipped(f"the tests need {' and '.join(missing)}; part b has checked the operators without")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", str(PROJECT / "tests")]
    command += ["-o", "addopts=", "--rootdir", str(PROJECT)]
    if day.dry:
        command.append("--collect-only")
    environment = {**os.environ, "DEFORMABLE_OPS_FOLDER": str(library(day))}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=day.timeout())
    (day.output / "tests.txt").write_text(result.stdout + result.stderr, encoding="utf-8")
    last = result.stdout.strip().splitlines()[-1] if result.stdout.strip() else result.stderr[-300:]
    found = re.findall(r"(\d+)(?:/\d+)? (passed|failed|skipped|errors?|tests)", last)
    counts = {word: int(number) for number, word in found}
    print(last)
    if result.returncode != 0 or not (counts.get("passed") or counts.get("tests")):
        failures = re.findall(r"^(?:FAILED|ERROR) .*", result.stdout, re.MULTILINE)
        raise RuntimeError("; ".join([last, *failures[:5]]))
    return counts


def sanitizer(day: Day) -> dict:
    command = [sys.executable, str(PROJECT / "tests" / "sanitize.py"), "--quick"]
    print(" ".join(command))
    if shutil.which("compute-sanitizer") is None:
        raise Skipped("compute-sanitizer is not on the path: it is part of CUDA's toolkit")
    if day.dry:
        raise Skipped("a dry run launches nothing")
    environment = {**os.environ, "DEFORMABLE_OPS_FOLDER": str(library(day))}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=day.timeout())
    print(result.stdout[-1500:] + result.stderr[-500:])
    if result.returncode != 0:
        raise RuntimeError("compute-sanitizer found errors")
    return {"tools": ["memcheck"]}


# ---- part b ----------------------------------------------------------------------------------------------------------


def errors(day: Day) -> dict:
    """Compare outputs and gradients of all operators with float64 sums over corners on the CPU."""
    ops = operators(day)
    torch.manual_seed(0)
    rows, data, missed = [], {}, []
    for name in ("ms_deform_attn", "ms_deform_attn_fused", "dcnv3", "dcnv4"):
        for dtype, largest in ERROR_BOUNDS.items():
            worst = [0.0, 0.0]
            for channels in (32, 16, 7):
                for index, error in enumerate(errors_of(ops, name, dtype, channels, day.device)):
                    worst[index] = max(worst[index], error) if error == error else float("inf")
            key = f"{name}, {str(dtype).removeprefix('torch.')}"
            rows.append([key, *worst, largest])
            data[key] = {"output": worst[0], "gradients": worst[1], "bound": largest}
            if not max(worst) <= largest:
                missed.append(f"{key}: {max(worst):.1e} > {largest:.0e}")
    table(["operator", "output", "gradients", "bound"], rows)
    if missed:
        raise RuntimeError("; ".join(missed))
    return {"errors": data}


def errors_of(ops: ModuleType, name: str, dtype: torch.dtype, channels: int, device: str) -> tuple[float, float]:
    """Return the relative error of the output and the largest one of the gradients.

    Values and weights have the dtype; coordinates are float32, or float64 with it, as in the models.
    """
    exact = dtype == torch.float64
    if name.startswith("ms"):
        plain = cases.attention(shapes=((9, 11), (5, 6)), queries=50, heads=4, channels=channels)
        arguments = cases.fused(plain) if name.endswith("fused") else plain
    else:
        image = cases.convolution(height=10, width=12, groups=4, channels=channels)
        arguments = cases.packed(image) if name == "dcnv4" else image
        if name == "dcnv4":
            arguments["offset_mask"] = arguments["offset_mask"].nan_to_num()
    halves = {"value", "attention_weights", "attention_logits", "mask"}
    tensors = {key: value for key, value in arguments.items() if isinstance(value, torch.Tensor)}
    rounded = {
        key: value.to(dtype if key in halves else torch.float64 if exact else torch.float32)
        for key, value in tensors.items()
    }
    leaves = {key: value.to(device).requires_grad_() for key, value in rounded.items()}
    right = {key: value.double().requires_grad_() for key, value in rounded.items()}
    output = getattr(ops, name)(**{**arguments, **leaves})
    expected = expected_output(name, {**arguments, **right})
    gradient = torch.randn(expected.shape, dtype=torch.float64).to(output.dtype)
    results = torch.autograd.grad(output, list(leaves.values()), gradient.to(device))
    wanted = torch.autograd.grad(expected, list(right.values()), gradient.double())
    pairs = [(one.cpu().double(), other) for one, other in zip(results, wanted, strict=True)]
    return relative_error(output.detach().cpu().double(), expected), max(relative_error(*pair) for pair in pairs)


def expected_output(name: str, arguments: dict) -> torch.Tensor:
    """Compute an operator in float64 by grid_sample, differentiably."""
    if name == "ms_deform_attn_fused":
        arguments = cases.unfused(arguments)
    if not name.startswith("dcn"):
        return sampled(**arguments)
    settings = dict(arguments)
    if name == "dcnv4":
        groups, kernel = settings["groups"], settings["kernel_size"]
        points = kernel[0] * kernel[1] - int(settings["remove_center"])
        packed = settings.pop("offset_mask")[..., : groups * points * 3].unflatten(-1, (groups, points * 3))
        settings["offset"] = packed[..., : 2 * points].flatten(3)
        settings["mask"] = packed[..., 2 * points :].flatten(3)
    batch, height, width = settings["offset"].shape[:3]
    return sampled(**cases.as_attention(**settings)).view(batch, height, width, -1)


def sampled(value, spatial_shapes, sampling_locations, attention_weights) -> torch.Tensor:
    """Compute deformable attention by grid_sample, in the dtype of the locations."""
    batch, _, heads, channels = value.shape
    queries, levels, points = attention_weights.shape[1], attention_weights.shape[3], attention_weights.shape[4]
    dtype = torch.promote_types(sampling_locations.dtype, torch.float32)
    rows = value.to(dtype).permute(0, 2, 3, 1).flatten(0, 1)
    grids = (2 * sampling_locations.to(dtype) - 1).transpose(1, 2).flatten(0, 1)
    weights = attention_weights.to(dtype).transpose(1, 2).reshape(batch * heads, 1, queries, levels, points)
    output, start = 0.0, 0
    for level, (height, width) in enumerate(spatial_shapes):
        level_rows = rows[..., start : start + height * width].unflatten(2, (height, width))
        samples = torch.nn.functional.grid_sample(level_rows, grids[:, :, level], align_corners=False)
        output = output + (samples * weights[:, :, :, level]).sum(-1)
        start += height * width
    return output.reshape(batch, heads * channels, queries).transpose(1, 2).to(value.dtype)


# ---- part c ----------------------------------------------------------------------------------------------------------


def mmcv(day: Day) -> dict:
    if day.options.mmcv is None:
        raise Skipped("mmcv's sources were not given: --help has the command that downloads them, then pass --mmcv")
    script = load_script(PROJECT / "build.py")
    began = time.perf_counter()
    compile_mmcv(day.options.mmcv, day.output / "mmcv", script, day.dry)
    print(f"compiled in {time.perf_counter() - began:.0f} s")
    return {}


def mmcv_operators(day: Day):
    """Return mmcv's operators, or None if they were not compiled or have no launches here."""
    path = day.output / "mmcv" / "mmcv_kernel.so"
    if day.dry or not path.is_file():
        return None
    torch.ops.load_library(path)
    return torch.ops.gpu_day_mmcv


def times(day: Day, make: Callable[[], dict], backward: bool) -> dict:
    """Time the implementations of a case in every dtype; see operators_gpu.py of the benchmarks for warm and cold."""
    torch.manual_seed(0)
    ops, others = operators(day), mmcv_operators(day)
    rates = bandwidths(day)
    rows, data, bounds = [], {}, []
    rounds, calls = (1, 1) if day.dry else (15, 10)
    with torch.no_grad():
        case = {key: to_device(value, day.device) for key, value in make().items()}
        for dtype in DTYPES:
            runs, moved, gathered = calls_of(ops, others, case, dtype, backward, compiled=not (day.dry or backward))
            clocks = {key: replay([call] * calls, torch.device(day.device)) for key, call in runs.items()}
            seconds = medians(clocks, rounds)
            floor = max(moved / rates["copy"], gathered / rates["cache"])
            ours = min(seconds["ours"], seconds.get("ours, softmax fused", 1e9))
            kind = str(dtype).removeprefix("torch.")
            for key, time_ in seconds.items():
                rows.append([kind, key, 1e6 * time_, time_ / ours, moved / time_ / rates["copy"], floor / time_])
                data[f"{kind}, {key}"] = {"us": 1e6 * time_, "share_of_copy": moved / time_ / rates["copy"]}
            data[f"{kind}, floor"] = {"us": 1e6 * floor}
            if "spatial_shapes" in case and dtype != torch.bfloat16:  # mmcv has neither DCNv3 and DCNv4 nor bfloat16
                speedup = seconds["mmcv"] / seconds["ours"] if "mmcv" in seconds else None
                bounds.append(
                    bound(f"{kind}, times as fast as mmcv", speedup, BACKWARD if backward else FORWARD[dtype])
                )
            if not backward:
                bounds.append(bound(f"{kind}, share of the gather floor", None if day.dry else floor / ours, FLOOR))
    table(["value", "implementation", "us", "x ours", "of copy", "of floor"], rows)
    return {"times": data, "bandwidths": rates, "bounds": bounds}


def to_device(value, device: str):
    if isinstance(value, torch.Tensor):
        return value.to(device)
    return tuple(to_device(item, device) for item in value) if isinstance(value, tuple) else value


def bandwidths(day: Day) -> dict[str, float]:
    """Return bytes per second of a copy of a large tensor, and of one that stays in the cache."""
    if not hasattr(day, "rates"):
        device = torch.device(day.device)
        source = torch.zeros(2**23, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        again = replay([lambda: target.copy_(source)] * 20, device)
        rounds = 1 if day.dry else 10
        cache = 2 * source.nbytes / medians({"copy": again}, rounds)["copy"]
        day.rates = {"copy": copy_bandwidth(device), "cache": cache}  # type: ignore[attr-defined]
    return day.rates  # type: ignore[attr-defined]


def calls_of(ops, others, case: dict, dtype: torch.dtype, backward: bool, compiled: bool):
    """Return calls by implementation, the bytes that must be moved, and those that are gathered.

    All tensors count once, and a sample reads four rows; backward reads them and adds to as many of float32.
    """
    is_attention = "spatial_shapes" in case
    value = case["value"].to(dtype)
    if is_attention:
        name, shapes = "ms_deform_attn", case["spatial_shapes"]
        flat = [side for shape in shapes for side in shape]
        locations, weights = case["sampling_locations"], case["attention_weights"].to(dtype)
        inputs = [value, locations, weights]
        arguments = [value, flat, locations, weights]
        shape = (value.shape[0], weights.shape[1], value.shape[2] * value.shape[3])
        rows = weights.numel() * value.shape[3]
    else:
        name = "dcnv4" if "offset_mask" in case else "dcnv3"
        others_of = [case["offset_mask"]] if name == "dcnv4" else [case["offset"], case["mask"].to(dtype)]
        settings = [value for value in case.values() if not isinstance(value, torch.Tensor)]
        settings = [list(item) if isinstance(item, tuple) else item for item in settings]
        inputs = [value, *others_of]
        arguments = [*inputs, *settings]
        shape = (*others_of[0].shape[:3], value.shape[3])
        rows = others_of[0].shape[0] * others_of[0].shape[1] * others_of[0].shape[2] * 9 * value.shape[3]
    gradient = torch.randn(shape, device=value.device).to(dtype)
    size = sum(tensor.nbytes for tensor in inputs)
    moved = gradient.nbytes + (2 if backward else 1) * size
    gathered = 4 * rows * value.element_size() + (4 * rows * 4 if backward else 0)
    run = getattr(ops.ops, f"{name}_backward" if backward else name)
    runs = {"ours": (lambda: run(gradient, *arguments)) if backward else (lambda: run(*arguments))}
    if not is_attention:
        return runs, moved, gathered
    references, offsets, logits = case["fused"]
    together = [value, flat, references, offsets, logits.to(dtype)]
    fused = getattr(ops.ops, "ms_deform_attn_fused_backward" if backward else "ms_deform_attn_fused")
    runs["ours, softmax fused"] = (lambda: fused(gradient, *together)) if backward else (lambda: fused(*together))
    if others is not None and dtype != torch.bfloat16:  # not implemented there; it wants one dtype
        starts = [sum(height * width for height, width in shapes[:level]) for level in range(len(shapes))]
        index = [torch.tensor(item, device=value.device) for item in (shapes, starts)]
        same = [value, *index, locations.to(dtype), weights]
        runs["mmcv"] = (
            (lambda: others.backward(*same, gradient, 64)) if backward else (lambda: others.forward(*same, 64))
        )
    if backward:
        return runs, moved, gathered
    runs["grid_sample"] = lambda: sampled(value, shapes, locations, weights)
    if compiled and dtype == torch.float32:
        faster = torch.compile(sampled, dynamic=False)
        runs["grid_sample, torch.compile"] = lambda: faster(value, shapes, locations, weights)
    return runs, moved, gathered
