# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Prove and measure everything that needs a GPU, in one command: tests, errors, operators, whole models, training.

    python scripts/gpu_day [--mmcv mmcv-2.2.0.tar.gz] [--output gpu_day] [--minutes 10] [--parts abcdefg]
    python scripts/gpu_day --dry-run

The machine needs a CUDA build of torch, nvcc and one GPU, and no network. Parts a to c need torch alone; the others
need segtransformers' dependencies, and are skipped with the reason where these are missing. The most important items
come first. Each prints a short table and is written to OUTPUT/results.json at once: the same command continues after an
interruption or at the end of the minutes, and --again repeats. Items that failed, or in which the process ended, are
repeated after all others. The last table has all bounds with pass or FAIL.

Parts: (a) build, tests and compute-sanitizer, (b) errors against float64, (c) operators beside mmcv's and grid_sample,
(d) whole models, (e) a training step, (f) labels of the packaged model beside the CPU's, (g) a TensorRT engine.

mmcv's source distribution is downloaded beforehand (its setup.py needs an old setuptools, and pip 25.3 or newer):

    echo "setuptools<81" > constraints.txt
    pip download --no-deps --no-binary mmcv --build-constraint constraints.txt mmcv==2.2.0

--dry-run needs no GPU: everything runs but the launches. Operators run on the CPU, in the build of --library, on small
shapes; whole models are made on the meta device.
"""

import argparse
import platform
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks"), str(ROOT / "kernels" / "deformable-ops" / "tests")]

from day import Day, Item, Skipped  # noqa: E402


def machine() -> dict:
    import torch  # takes seconds, which wrong options need not wait for

    found = {"torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version()}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu": properties.name, "capability": f"{properties.major}.{properties.minor}"}
        found |= {"multiprocessors": properties.multi_processor_count, "memory": properties.total_memory}
    return found


def run(day: Day, items: list[Item]) -> int:
    """Run the items that are not done, and return the number of failed ones."""
    failed = 0
    states = {item.key: day.results.get(item.key, {"state": "left"})["state"] for item in items}
    # a broken item may end the process again, so the others come first
    for item in sorted(items, key=lambda item: states[item.key] in ("failed", "running")):
        if states[item.key] == "done" and not day.options.again:
            print(f"{item.key}: done before")
            continue
        if time.perf_counter() + item.seconds > day.end:
            print(f"{item.key}: left for the next run (about {item.seconds} s)")
            continue
        print(f"\n== {item.key} ==", flush=True)
        day.results[item.key] = {"state": "running", "seconds": 0}
        day.save(machine())
        began = time.perf_counter()
        try:
            result = {"state": "done", "data": item.run()}
        except Skipped as reason:
            result = {"state": "skipped", "reason": str(reason)}
            print(f"skipped: {reason}")
        except Exception as error:
            failed += 1
            result = {"state": "failed", "reason": f"{type(error).__name__}: {error}"}
            print(traceback.format_exc(limit=-3), end="")
        result["seconds"] = round(time.perf_counter() - began, 1)
        day.results[item.key] = result
        day.save(machine())
        if result["state"] == "failed" and not usable(day):
            print("the GPU refuses further work in this process: run the same command again")
            break
    return failed


def usable(day: Day) -> bool:
    """Return False after an error in a kernel, such as an invalid address, which ends all use of the GPU."""
    import torch

    try:
        if day.device == "cuda":
            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def summary(day: Day, items: list[Item]) -> str:
    """Return a table of all items with their state, and one of the bounds."""
    lines = ["", "| item | state | seconds |", "|---|---|---|"]
    bounds = ["", "| bound | measured | wanted | result |", "|---|---|---|---|"]
    for item in items:
        result = day.results.get(item.key, {"state": "left", "seconds": 0})
        lines.append(f"| {item.key} | {result['state']} | {result['seconds']} |")
        for each in (result.get("data") or {}).get("bounds", []):
            measured = "" if each["measured"] is None else f"{each['measured']:.3g}"
            bounds.append(f"| {item.key}: {each['name']} | {measured} | {each['wanted']:g} | {each['result']} |")
    return "\n".join([*lines, *bounds])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu_day"), help="folder for results.json and the build")
    parser.add_argument("--minutes", type=float, default=10, help="no item begins that may end later")
    parser.add_argument("--parts", default="abcdefg", help="letters of the parts to run")
    parser.add_argument("--again", action="store_true", help="repeat what was done before")
    parser.add_argument("--mmcv", type=Path, help="mmcv's source distribution (tar.gz), for part c")
    parser.add_argument("--library", type=Path, help="folder with build/ to use in place of a new build")
    parser.add_argument("--dry-run", action="store_true", help="without a GPU, and without launches")
    options = parser.parse_args()
    if not set(options.parts) <= set("abcdefg"):
        parser.error(f"--parts must be letters from a to g, got {options.parts!r}")
    if options.mmcv is not None and not options.mmcv.is_file():
        parser.error(f"--mmcv {options.mmcv} is no file: --help has the command that downloads it")
    import day_models
    import day_operators
    import torch

    if not options.dry_run and not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} finds no GPU: use --dry-run, or a machine with a GPU")
    day = Day(options)
    items = [item for item in (*day_operators.items(day), *day_models.items(day)) if item.part in options.parts]
    failed = run(day, items)
    print(summary(day, items))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
