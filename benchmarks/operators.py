# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Compare implementations of the deformable operators on shapes of released models: medians, and ratios to grid_sample.

    python benchmarks/operators.py [--threads 1 2] [--backward] [--compile] [--only NAME]
    python benchmarks/operators.py --device cuda [--backward] [--only NAME] [--public-kernel FOLDER]

Every round runs each implementation twice and measures the second run, because its inputs are in the caches then, as in
a model that has just computed them. The rounds alternate, so that other load on the machine affects all implementations
alike. For a GPU see operators_gpu.py.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import operators_gpu
import torch

from segtransformers.operators import (
    dcnv3_fallback,
    dcnv3_reference,
    dcnv4_fallback,
    dcnv4_reference,
    dispatcher,
    ms_deform_attn_fallback,
    ms_deform_attn_reference,
)


def grids(size: int, *strides: int) -> list[tuple[int, int]]:
    return [(size // stride, size // stride) for stride in strides]


def attention(queries: list[tuple[int, int]], values: list[tuple[int, int]], heads: int, channels: int) -> dict:
    """Return arguments with queries at pixel centres, four points and offsets of a few pixels."""
    references = []
    for height, width in queries:
        y, x = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
        references.append(torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1).flatten(0, 1))
    reference = torch.cat(references)[None, :, None]
    shape = (1, reference.shape[1], heads, len(values), 4)
    offsets, logits = torch.randn(*shape, 2) * 2, torch.randn(shape)
    locations = reference[:, :, :, None, None] + offsets / torch.tensor(values).flip(-1)[:, None]
    weights = logits.flatten(3).softmax(-1).view(shape)
    value = torch.randn(1, sum(height * width for height, width in values), heads, channels)
    return {
        "value": value,
        "spatial_shapes": values,
        "sampling_locations": locations,
        "attention_weights": weights,
        "fused": (reference, offsets, logits),
    }


def convolution(size: int, groups: int) -> dict:
    mask = torch.randn(1, size, size, groups, 9).softmax(-1).flatten(3)
    return {
        "value": torch.randn(1, size, size, groups * 16),
        "offset": torch.randn(1, size, size, groups * 18),
        "mask": mask,
        "kernel_size": (3, 3),
        "stride": (1, 1),
        "padding": (1, 1),
        "dilation": (1, 1),
        "groups": groups,
        "offset_scale": 1.0,
        "remove_center": False,
    }


def packed_convolution(size: int, groups: int) -> dict:
    """Return arguments of DCNv4, with raw weights."""
    case = convolution(size, groups)
    settings = {name: value for name, value in case.items() if name not in ("value", "offset", "mask")}
    width = -(-27 * groups // 8) * 8
    return {"value": case["value"], "offset_mask": torch.randn(1, size, size, width), **settings}


def operator_of(case: dict) -> str:
    """Return the name of the operator that the arguments are for."""
    if "spatial_shapes" in case:
        return "ms_deform_attn"
    return "dcnv4" if "offset_mask" in case else "dcnv3"


CASES: dict[str, Callable[[], dict]] = {
    "injector, ViT-Adapter-T at 512": lambda: attention(grids(512, 16), grids(512, 8, 16, 32), 6, 32),
    "extractor, ViT-Adapter-T at 512": lambda: attention(grids(512, 8, 16, 32), grids(512, 16), 6, 32),
    "injector, ViT-Adapter-L at 896": lambda: attention(grids(896, 16), grids(896, 8, 16, 32), 16, 32),
    "extractor, ViT-Adapter-L at 896": lambda: attention(grids(896, 8, 16, 32), grids(896, 16), 16, 32),
    "pixel decoder, 1024 wide, at 896": lambda: attention(grids(896, 32, 16, 8), grids(896, 32, 16, 8), 32, 32),
    "DCNv3, InternImage-T at 512, stage 1": lambda: convolution(128, 4),
    "DCNv3, InternImage-T at 512, stage 2": lambda: convolution(64, 8),
    "DCNv3, InternImage-T at 512, stage 3": lambda: convolution(32, 16),
    "DCNv3, InternImage-T at 512, stage 4": lambda: convolution(16, 32),
    "DCNv4, FlashInternImage-T at 512, stage 1": lambda: packed_convolution(128, 4),
    "DCNv4, FlashInternImage-T at 512, stage 2": lambda: packed_convolution(64, 8),
    "DCNv4, FlashInternImage-T at 512, stage 3": lambda: packed_convolution(32, 16),
    "DCNv4, FlashInternImage-T at 512, stage 4": lambda: packed_convolution(16, 32),
}
# plain PyTorch: reference and fallback
PLAIN = {
    "ms_deform_attn": (ms_deform_attn_reference, ms_deform_attn_fallback),
    "dcnv3": (dcnv3_reference, dcnv3_fallback),
    "dcnv4": (dcnv4_reference, dcnv4_fallback),
}


def implementations(case: dict, compiled: bool) -> dict[str, Callable[..., torch.Tensor]]:
    """Return the implementations by name, as functions of the tensors of the case."""
    operator = operator_of(case)
    rest = {key: value for key, value in case.items() if not isinstance(value, torch.Tensor) and key != "fused"}
    names = [key for key, value in case.items() if isinstance(value, torch.Tensor)]
    reference, fallback = PLAIN[operator]

    def bind(function):
        return lambda *tensors: function(**dict(zip(names, tensors, strict=True)), **rest)

    found = {"grid_sample": bind(reference), "embedding_bag": bind(fallback)}
    if compiled:
        found["embedding_bag, torch.compile"] = torch.compile(bind(fallback), dynamic=False)
    kernel = dispatcher.find_kernel()
    if kernel is None:
        raise SystemExit("error: no compiled kernel was found: run `segtransformers build-kernels` first")
    found["compiled"] = bind(getattr(kernel.functions, operator))
    found["compiled, bfloat16 values"] = lambda value, *tensors: found["compiled"](value.bfloat16(), *tensors)
    if operator == "ms_deform_attn":
        references, offsets, logits = case["fused"]
        found["compiled, softmax fused"] = lambda value, *_: kernel.functions.ms_deform_attn_fused(
            value, case["spatial_shapes"], references, offsets, logits
        )
    return found


def interleaved(runs: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Return medians in milliseconds of 3 to 200 rounds, as many as fit into `seconds`."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < 3 or (time.perf_counter() < end and rounds < 200):
        for name, run in runs.items():
            run()
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
        rounds += 1
    return {name: 1000 * statistics.median(values) for name, values in times.items()}


def report(title: str, medians: dict[str, float], base: str) -> None:
    print(title)
    for name, median in medians.items():
        print(f"    {name:32} {median:10.2f} ms {medians[base] / median:8.1f}x", flush=True)


def with_backward(run: Callable[..., torch.Tensor], tensors: list[torch.Tensor]) -> Callable[[], None]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    gradient = torch.ones_like(run(*leaves))

    def both() -> None:
        torch.autograd.grad(run(*leaves), leaves, gradient)

    return both


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--backward", action="store_true", help="measure forward and backward")
    parser.add_argument("--compile", action="store_true", help="also measure the fallback with torch.compile")
    parser.add_argument("--only", default="", help="run the cases whose name contains this")
    parser.add_argument("--seconds", type=float, default=5, help="time for each case and number of threads")
    on_a_gpu = parser.add_argument_group("on a GPU", "--backward measures the backward operator alone")
    on_a_gpu.add_argument("--device", help="cuda: measure on a GPU, with operators_gpu.py")
    on_a_gpu.add_argument("--rounds", type=int, default=20)
    on_a_gpu.add_argument(
        "--public-kernel", type=Path, metavar="FOLDER", help="sources of deformable-detr to compile and compare"
    )
    on_a_gpu.add_argument(
        "--public-dcnv3", type=Path, metavar="FOLDER", help="sources of InternImage's DCNv3 operator to compare"
    )
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.device is not None:
        operators_gpu.main(CASES, arguments)
        return
    print(dispatcher.describe())
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for name, make in CASES.items():
            if arguments.only not in name:
                continue
            case = make()
            tensors = [value for value in case.values() if isinstance(value, torch.Tensor)]
            runs: dict[str, Callable[[], object]] = {}
            for key, function in implementations(case, arguments.compile).items():
                if not arguments.backward:
                    runs[key] = lambda function=function, tensors=tensors: function(*tensors)  # type: ignore[misc]
                elif not key.startswith("compiled,"):
                    runs[key] = with_backward(function, tensors)
            direction = "forward and backward" if arguments.backward else "forward"
            with torch.set_grad_enabled(arguments.backward):
                report(f"{name}, {direction}, {threads} threads", interleaved(runs, arguments.seconds), "grid_sample")


if __name__ == "__main__":
    main()
