# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Times of calls on a GPU by replays of a graph, on a CPU by the clock, and errors. This module needs torch alone."""

import statistics
import time
from collections.abc import Callable

import torch


def relative_error(result, expected) -> float:
    """Return the relative error of the output, or the largest one of the gradients."""
    results = result if isinstance(result, (tuple, list)) else (result,)
    wanted = expected if isinstance(expected, (tuple, list)) else (expected,)
    pairs = zip(results, wanted, strict=True)
    return max(((got.double() - right).norm() / right.norm().clamp_min(1e-300)).item() for got, right in pairs)


def replay(calls: list[Callable[[], object]], device: torch.device) -> Callable[[], float]:
    """Return a function that runs all calls once and returns the mean time of a call in seconds."""
    if device.type != "cuda":

        def on_cpu() -> float:
            began = time.perf_counter()
            for call in calls:
                call()
            return (time.perf_counter() - began) / len(calls)

        return on_cpu

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        calls[0]()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def on_gpu() -> float:
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000 / len(calls)

    return on_gpu


def medians(runs: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(rounds + 1):
        for name, run in runs.items():
            seconds = run()
            if index > 0:  # the first round is for warming up
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def copy_bandwidth(device: torch.device) -> float:
    """Return the bytes per second that a copy of a large tensor reads and writes."""
    size = 2**30 if device.type == "cuda" else 2**26
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / medians({"copy": replay([lambda: target.copy_(source)] * 4, device)}, 5)["copy"]
