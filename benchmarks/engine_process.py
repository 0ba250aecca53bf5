# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""One engine in a process of its own, for `engines.py`: it reads commands from standard input and answers with JSON.

    python benchmarks/engine_process.py ENGINE MODEL THREADS SIZE FILE

`run` runs the image once and answers with the seconds. `save PATH` writes the logits. `memory` answers with the peak
since `forget` in bytes. Engines for files import nothing but their runtime.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

Run = Callable[[np.ndarray], np.ndarray]


def onnxruntime_engine(file: str, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"pixel_values": image})[0]


def openvino_engine(file: str, threads: int) -> Run:
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.Core().compile_model(file, "CPU", settings)
    return lambda image: compiled(image)[0]


def torch_engine(call: Callable, threads: int) -> Run:
    import torch
    from results import keep_memory

    torch.set_num_threads(threads)
    keep_memory()  # ONNX Runtime's allocator keeps it, too

    @torch.no_grad()
    def run(image: np.ndarray) -> np.ndarray:
        return call(torch.from_numpy(image)).numpy()

    return run


def aot_inductor_engine(file: str, threads: int) -> Run:
    import torch._inductor

    return torch_engine(torch._inductor.aoti_load_package(file), threads)


def model_engine(kind: str, name: str, threads: int) -> Run:
    import torch
    from engine_models import random_model

    from segtransformers.models.optimize import optimize_for_inference

    model = random_model(name)
    if kind == "PyTorch, optimized":
        model = optimize_for_inference(model, inplace=True)
    call = torch.compile(model) if kind == "torch.compile" else model
    return torch_engine(lambda image: call(pixel_values=image).logits, threads)


def memory(entry: str) -> int:
    """Return `VmRSS` or `VmHWM` of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(entry))


def main() -> None:
    kind, name, threads, size, file = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print, too
    image = np.random.default_rng(1).standard_normal((1, 3, size, size), dtype=np.float32)
    makers = {"ONNX Runtime": onnxruntime_engine, "OpenVINO": openvino_engine, "AOTInductor": aot_inductor_engine}
    kind = kind.removesuffix(", GridSample")
    run = makers[kind](file, threads) if kind in makers else model_engine(kind, name, threads)
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        answer = None
        if command == "run":
            start = time.perf_counter()
            run(image)
            answer = time.perf_counter() - start
        elif command == "save":
            np.save(argument, run(image))
        elif command == "forget":
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        elif command == "memory":
            answer = memory("VmHWM")
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
