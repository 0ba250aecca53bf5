# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Exported files as functions, in the runtime of their format."""

import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from .errors import ExportError, reason, require
from .programs import load_program

Run = Callable[[np.ndarray], np.ndarray]
RUNTIMES = {".onnx": ("onnxruntime", "openvino"), ".xml": ("openvino",), ".pt2": ("torch",)}  # the first is the default


def runner(file: Path, runtime: str | None = None, threads: int | None = None) -> Run:
    """Load an exported file as a function from its input to its output, on a CPU.

    Args:
        runtime: "onnxruntime", "openvino" or "torch"; None takes that of the format. OpenVINO also runs ONNX.
        threads: of the runtime; None takes its choice. PyTorch uses them in the whole process.

    Raises:
        ImportError: if the runtime is not installed.
        ExportError: if it cannot load the file.
    """
    runtime = runtime or RUNTIMES[file.suffix][0]
    require(runtime, extra="openvino" if runtime == "openvino" else "export")
    try:
        return {"onnxruntime": _onnxruntime_runner, "openvino": _openvino_runner, "torch": _torch_runner}[runtime](
            file, threads
        )
    except ExportError:
        raise
    except Exception as error:  # the errors of runtimes have no base class of their own
        version = importlib.import_module(runtime).__version__
        advice = "its version" if runtime == "torch" else "its opset or precision"
        raise ExportError(
            f"{runtime} {version} cannot load the file, perhaps because of {advice}: {reason(error)}"
        ) from error


def _onnxruntime_runner(file: Path, threads: int | None) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors: warnings are about the runtime's own optimizations
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def _openvino_runner(file: Path, threads: int | None) -> Run:
    import openvino

    # float32 stays float32 on CPUs that could compute in half precision
    settings: dict[str, object] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    compiled = openvino.Core().compile_model(str(file), "CPU", settings)
    return lambda images: compiled(images)[0].copy()


def _torch_runner(file: Path, threads: int | None) -> Run:
    module, device = load_program(file)
    if threads:
        torch.set_num_threads(threads)

    @torch.no_grad()
    def run(images: np.ndarray) -> np.ndarray:
        return module(torch.from_numpy(images).to(device)).cpu().numpy()

    return run


def installed_runtimes(file: Path) -> list[str]:
    """Return the installed runtimes that a file is written for."""
    return [name for name in RUNTIMES[file.suffix] if importlib.util.find_spec(name) is not None]


def seconds_per_image(run: Run, images: np.ndarray, rounds: int = 3) -> float:
    """Return the median time of a call, after one that is not counted, divided by the number of images."""
    run(images)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run(images)
        times.append(time.perf_counter() - start)
    return statistics.median(times) / len(images)


__all__ = ["Run", "installed_runtimes", "runner", "seconds_per_image"]
