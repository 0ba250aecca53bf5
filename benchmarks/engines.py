# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""A small model of each family in PyTorch, torch.compile, AOTInductor, ONNX Runtime and OpenVINO: time, memory, error.

    python benchmarks/engines.py                                       # all models, 512x512, one image, two threads
    python benchmarks/engines.py --models segmenter-t-mask --hold
    python benchmarks/engines.py --models segmenter-t-mask --size 128 --rounds 2 --json engines.json

Each engine runs in a process of its own, and every round runs each of them once, one after the other, so that other
load on the machine hits all alike. Memory is the peak of the process during the rounds, libraries and weights included.
PyTorch keeps the memory that it frees (`keep_freed_memory`). The error is the largest difference from the logits of the
plain model, as a share of the largest. --folder keeps the exported files, so a second run does not write them again.
The file of --json is updated model by model, and a table is written beside it as Markdown.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from results import commit, machine_name, operators, today

GRID_SAMPLE = "ONNX Runtime, GridSample"  # for models with deformable layers
FILES = {
    "ONNX Runtime": "model.onnx",
    GRID_SAMPLE: "grid_sample.onnx",
    "OpenVINO": "model.xml",
    "AOTInductor": "compiled.pt2",
}
ENGINES = ("PyTorch", "PyTorch, optimized", "torch.compile", "AOTInductor", "ONNX Runtime", GRID_SAMPLE, "OpenVINO")
PACKAGES = ("torch", "transformers", "timm", "onnxruntime", "openvino")
RESULTS = Path(__file__).parent / "results" / "engines.json"
MIB = 2**20


class Engine:
    """A process of `engine_process.py`."""

    def __init__(self, kind: str, name: str, options: argparse.Namespace, file: Path):
        self.kind = kind
        words = [kind, name, str(options.threads), str(options.size), str(file)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("engine_process.py")), *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL if options.quiet else None,
            text=True, env=environment,
        )  # fmt: skip

    def send(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()

    def answer(self) -> float | None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.kind} ended with exit status {self.process.wait()}")
        return json.loads(line)

    def ask(self, command: str) -> float | None:
        self.send(command)
        return self.answer()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def engines_of(name: str, options: argparse.Namespace) -> list[str]:
    from engine_models import DEFORMABLE

    return [kind for kind in options.engines if kind != GRID_SAMPLE or name in DEFORMABLE]


def write_files(name: str, folder: Path, options: argparse.Namespace) -> dict[str, str]:
    """Export a model for all engines that need a file. Return errors by engine."""
    kinds = engines_of(name, options)
    missing = {kind: file for kind, file in FILES.items() if kind in kinds and not (folder / file).exists()}
    if not missing:
        return {}
    import torch
    from engine_models import random_model

    from segtransformers.export import ExportError, export_model

    torch.set_num_threads(options.threads)
    model, failed = random_model(name), {}
    for kind, file in missing.items():
        print(f"{name}: writing {file}", flush=True)
        try:
            export_model(
                model, None, folder / file, size=(options.size, options.size), check=False,
                compiled=kind == "AOTInductor", sampling="grid_sample" if kind == GRID_SAMPLE else None,
            )  # fmt: skip
        except (ExportError, ImportError) as error:
            failed[kind] = str(error)
    return failed


def measure(name: str, options: argparse.Namespace) -> dict:
    """Return times, memory and errors of all engines on one model."""
    folder = options.folder / f"{name}-{options.size}"
    folder.mkdir(parents=True, exist_ok=True)
    failed = write_files(name, folder, options)
    engines = []
    rows: dict[str, dict] = {kind: {"failed": message} for kind, message in failed.items()}
    try:
        for kind in engines_of(name, options):
            if kind not in failed:
                engines.append(Engine(kind, name, options, folder / FILES.get(kind, "none")))
        plain = None
        for engine in engines:  # the first run loads and compiles
            path = folder / "logits.npy"
            engine.ask(f"save {path}")
            logits = np.load(path)
            path.unlink()
            plain = logits if plain is None else plain
            rows[engine.kind] = {"error": float(np.abs(logits - plain).max() / np.abs(plain).max())}
            print(f"{name}: {engine.kind} is loaded, error {rows[engine.kind]['error']:.1e}", flush=True)
        if options.hold:
            input("Press Enter to measure.\n")
        times: dict[str, list[float]] = {engine.kind: [] for engine in engines}
        for engine in engines:
            engine.ask("run")
            engine.ask("forget")
        for _ in range(options.rounds):
            for engine in engines:
                times[engine.kind].append(1000 * (engine.ask("run") or 0.0))
        for engine in engines:
            low, median, high = statistics.quantiles(times[engine.kind], n=4, method="inclusive")
            rows[engine.kind] |= {
                "median_ms": round(median, 1),
                "quartiles_ms": [round(low, 1), round(high, 1)],
                "peak_mib": round((engine.ask("memory") or 0) / MIB),
            }
    finally:
        for engine in engines:
            engine.close()
    return {kind: rows[kind] for kind in options.engines if kind in rows}


def setting(options: argparse.Namespace) -> dict:
    """Describe the machine and the software of a measurement."""
    return {
        "date": today(),
        "machine": machine_name(),
        "threads": options.threads,
        "size": options.size,
        "rounds": options.rounds,
        "commit": commit(),
        "keep_memory": True,
        "packages": {package: version(package) for package in PACKAGES},
        "operators": operators(),
    }


def _place(one: dict) -> tuple[str, int, int, bool]:
    return one["machine"], one["threads"], one["size"], one.get("keep_memory", False)


def table(results: dict[str, dict]) -> str:
    """Return the measurements as Markdown."""
    lines = [
        "# Engines",
        "",
        "Median time of one image, peak memory of the process, and the largest difference from the logits of the plain",
        "model as a share of the largest. The models have random weights.",
        "`python benchmarks/engines.py` writes this page; the JSON file beside it has quartiles, versions, commits.",
        "",
    ]
    for place in sorted({_place(one["setting"]) for one in results.values()}):
        computer, threads, size, keeps_memory = place
        kept = ", PyTorch keeps freed memory" if keeps_memory else ""
        lines += [f"## {computer}, {threads} threads, {size}x{size} pixels{kept}", ""]
        lines += ["| model | " + " | ".join(ENGINES) + " |", "| --- |" + " ---: |" * len(ENGINES)]
        for name, one in results.items():
            if _place(one["setting"]) != place:
                continue
            cells = []
            for kind in ENGINES:
                row = one["engines"].get(kind, {})
                if "median_ms" in row:
                    error = "" if kind == "PyTorch" else f", {row['error']:.0e}"
                    cells.append(f"{row['median_ms']:.0f} ms, {row['peak_mib']} MiB{error}")
                else:
                    cells.append("fails" if "failed" in row else "")
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", metavar="NAME", help="see engine_models.py")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--size", type=int, default=512, help="side of the image, a multiple of 32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9, help="at least 2")
    parser.add_argument("--folder", type=Path, default=Path("engine_files"), help="where exported files are kept")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--prepare", action="store_true", help="write the exported files only")
    parser.add_argument("--hold", action="store_true", help="wait for Enter between loading and measuring")
    parser.add_argument("--quiet", action="store_true", help="hide what the engines print")
    options = parser.parse_args()
    from engine_models import NAMES

    unknown = set(options.models or ()) - set(NAMES)
    if unknown:
        parser.error(f"--models: {', '.join(sorted(unknown))} is unknown; known are {', '.join(NAMES)}")
    if options.engines[0] != "PyTorch":
        parser.error("--engines: the first must be PyTorch, with which the others are compared")
    for name in options.models or NAMES:
        if options.prepare:
            folder = options.folder / f"{name}-{options.size}"
            folder.mkdir(parents=True, exist_ok=True)
            for kind, message in write_files(name, folder, options).items():
                print(f"{name}: {kind}: {message}", flush=True)
            continue
        engines = measure(name, options)
        results = json.loads(options.json.read_text()) if options.json.exists() else {}
        results[name] = {"setting": setting(options), "engines": engines}
        results = {known: results[known] for known in NAMES if known in results}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=2) + "\n")
        options.json.with_suffix(".md").write_text(table(results))
        print(json.dumps({name: engines}, indent=2), flush=True)


if __name__ == "__main__":
    main()
