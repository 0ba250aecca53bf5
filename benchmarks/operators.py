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
from operator_shapes import CASES, attention, convolution, grids, packed_convolution

from segtransformers.operators import (
    dcnv3_fallback,
    dcnv3_reference,
    dcnv4_fallback,
    dcnv4_reference,
    dispatcher,
    ms_deform_attn_fallback,
    ms_deform_attn_reference,
)


def operator_of(case: dict) -> str:
    """Return the name of the operator that the arguments are for."""
    if "spatial_shapes" in case:
        return "ms_deform_attn"
    return "dcnv4" if "offset_mask" in case else "dcnv3"


__all__ = ["CASES", "attention", "convolution", "grids", "main", "packed_convolution"]
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
