# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Report the registers, shared memory, spills, loads and atomic additions of the compiled CUDA kernels.

    python benchmarks/cuda_registers.py [--capabilities 8.0 9.0] [--output benchmarks/cuda_registers.md]

This needs nvcc. Loads and additions are counted if cuobjdump and nvdisasm are on the path. No GPU is used.
"""

import argparse
import re
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from segtransformers.operators import dispatcher

TYPES = {"f": "float32", "d": "float64", "4Half": "float16", "8BFloat16": "bfloat16"}
INSTRUCTIONS = {
    "16-byte loads": r"\bLDG\.E\.128",
    "additions of 4": r"\bRED\w*\.E\.ADD\.F32x4",
    "single additions": r"\bRED\w*\.E\.ADD(?!\.F32x4)",
    "atomics of any memory": r"\bATOM\w*\.",
    "local memory": r"\b(?:LDL|STL)\b",
}


@dataclass
class Kernel:
    direction: str
    type: str
    elements: int
    lanes: int
    registers: int
    shared: int
    stack: int
    spills: int
    instructions: dict[str, int] = field(default_factory=dict)


def describe(name: str) -> tuple[str, str, int, int]:
    """Return direction, type of value, elements of a load and lanes of an item (0: at run time) from a mangled name."""
    found = re.search(r"kernelILb([01])E(?:NS_)?(\w+?)(?:E)?Li(\d+)ELi(\d+)E", name)
    assert found is not None, name
    return ("forward", "backward")[int(found[1])], TYPES[found[2]], int(found[3]), int(found[4])


def compile_one(nvcc, compiler: str, source: Path, target: Path) -> list[Kernel]:
    flags = [*nvcc.flags(compiler), "-Xptxas=-v", "-c", str(source), "-o", str(target)]
    output = subprocess.run([nvcc.path, *flags], capture_output=True, text=True, check=True).stderr
    kernels = {}
    pattern = (
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers(?:.*?(\d+) bytes smem)?"
    )
    for name, stack, stores, loads, registers, shared in re.findall(pattern, output, re.DOTALL):
        sizes = int(registers), int(shared or 0), int(stack), int(stores) + int(loads)
        kernels[name] = Kernel(*describe(name), *sizes)
    if shutil.which("cuobjdump") is not None:
        listing = subprocess.run(["cuobjdump", "-sass", str(target)], capture_output=True, text=True, check=True).stdout
        for part in listing.split("Function : ")[1:]:
            kernel = kernels[part.split()[0]]
            kernel.instructions = {key: len(re.findall(pattern, part)) for key, pattern in INSTRUCTIONS.items()}
    return list(kernels.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capabilities", nargs="+", help="compute capabilities; by default those of build.toml")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    arguments = parser.parse_args()
    script, folder = dispatcher.build_script(), dispatcher.sources()
    assert folder is not None
    capabilities = arguments.capabilities or script.read_config(folder)["kernel"]["cuda"]["cuda-capabilities"]
    compiler = script.find_compiler()
    sources = sorted((folder / "cuda").glob("*.cu"))
    results: dict[str, list[Kernel]] = {}
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(2) as pool:
        for capability in capabilities:
            nvcc = script.find_nvcc([capability])
            began = time.perf_counter()
            targets = [Path(temporary, f"{source.stem}.o") for source in sources]
            made = pool.map(compile_one, *zip(*[(nvcc, compiler, *pair) for pair in zip(sources, targets)]))  # noqa: B905
            results[capability] = [kernel for kernels in made for kernel in kernels]
            seconds[capability] = time.perf_counter() - began
        version = script.version_of(nvcc.path).split("release ")[1].split(",")[0]
    text = report(version, results)
    arguments.output.write_text(text)
    print(text)
    print("seconds with two processes: " + ", ".join(f"{key}: {value:.0f}" for key, value in seconds.items()))


def report(version: str, results: dict[str, list[Kernel]]) -> str:
    targets = [f"sm_{capability.replace('.', '')}" for capability in results]
    lines = [
        "# Registers of the CUDA kernels",
        "",
        f"Written by `benchmarks/cuda_registers.py` with nvcc {version}. No kernel has run on a GPU yet. Blocks have",
        "up to 256 threads. A multiprocessor has 65536 registers, which are enough for three blocks with up to 80",
        "registers per thread, or two with up to 128. A lane is a thread of an item (a query with a head). 0 lanes:",
        "their number is known at run time only. Elements are those of a load; 1 element is for channels that are",
        "not a multiple of 16 bytes.",
        "",
        f"| kernel | value | elements | lanes | shared bytes | {' | '.join(targets)} |",
        "|---|---|---|---|---|" + "---|" * len(targets),
    ]
    for kernels in zip(*(sorted(r, key=_order) for r in results.values()), strict=True):
        first = kernels[0]
        lines.append(
            f"| {first.direction} | {first.type} | {first.elements} | {first.lanes} | {first.shared} | "
            f"{' | '.join(str(kernel.registers) for kernel in kernels)} |"
        )
    everything = [kernel for kernels in results.values() for kernel in kernels]
    stack, spills = sum(kernel.stack for kernel in everything), sum(kernel.spills for kernel in everything)
    lines += ["", f"Stack frames of all {len(everything)} kernels together: {stack} bytes; spills: {spills} bytes.", ""]
    if all(kernel.instructions for kernel in everything):
        lines += ["Instructions in the machine code, of kernels with whole vectors and known lanes:", ""]
        names = list(INSTRUCTIONS)
        lines += [f"| target | kernel | value | {' | '.join(names)} |", "|---|---|---|" + "---|" * len(names)]
        for target, kernels in zip(targets, results.values(), strict=True):
            for kernel in sorted(kernels, key=_order):
                if kernel.lanes > 0 and kernel.elements * kernel.lanes == 32:
                    counts = " | ".join(str(kernel.instructions[name]) for name in names)
                    lines.append(f"| {target} | {kernel.direction} | {kernel.type} | {counts} |")
        local = sum(kernel.instructions["local memory"] for kernel in everything)
        lines += ["", f"Reads and writes of local memory in all kernels: {local}."]
    return "\n".join(lines) + "\n"


def _order(kernel: Kernel) -> tuple:
    return kernel.direction == "backward", kernel.type, -kernel.elements, -kernel.lanes


if __name__ == "__main__":
    main()
