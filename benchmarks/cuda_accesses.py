# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Count what a GPU would read and write for the CUDA kernels, by the addresses that the emulation sees.

    python benchmarks/cuda_accesses.py [--only NAME] [--output benchmarks/results/cuda_accesses.md]

This needs no GPU. The kernels are compiled for the CPU with the emulation of their tests, which groups the accesses of
a warp into requests and counts the sectors of 32 bytes of each. The occupancy follows from the registers and shared
memory in cuda_registers.md. Caches are not modelled.
"""

import argparse
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import operators
import torch

from segtransformers.operators import dispatcher

# the tensors by their index in emulation.h, and the part of the table that they belong to
PARTS = {0: "rows", 1: "coordinates", 2: "coordinates", 3: "coordinates", 4: "output", 5: "output"}
PARTS |= {6: "additions", 7: "gradients", 8: "gradients", 9: "gradients"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SECTOR = 32
NOTES = """\
Coordinates and their gradients are the worst by `used`: neighbouring threads compute neighbouring items, so a request
touches one point of many items. `again` is near 1: nothing is fetched from memory twice, because the next rounds of the
warp use the rest of the sectors. The first cache has those of loads, and the second cache merges stores. Loads by
neighbouring addresses would need another pass through shared memory in each round, and save `unused` at most. This is
left until a GPU can measure it.

Additions of half precision were the worst by `unused`: a lane has 8 channels and adds them as two vectors of 16 bytes,
and each request filled half of its sectors (24.5 sectors per request and 51% used, at 32 channels). Now the channels of
a lane are two halves, so the vectors of neighbouring lanes fill sectors, without another register. In return these
kernels load rows as 2 x 8 bytes. At 16 channels (DCNv3, DCNv4) both loads touch the same sector, and the first cache
serves the second one. Other numbers of channels, such as 24, are as before: no released model has them.
"""


def attention(size: int, heads: int, channels: int, is_extractor: bool = False) -> dict:
    one, several = operators.grids(size, 16), operators.grids(size, 8, 16, 32)
    return operators.attention(*((several, one) if is_extractor else (one, several)), heads, channels)


CASES = {
    "injector, ViT-Adapter-T at 256": lambda: attention(256, 6, 32),
    "extractor, ViT-Adapter-T at 256": lambda: attention(256, 6, 32, is_extractor=True),
    "injector, 64 channels per head": lambda: attention(256, 4, 64),
    "injector, 24 channels per head": lambda: attention(256, 6, 24),
    "pixel decoder at 128": lambda: operators.attention(*[operators.grids(128, 32, 16, 8)] * 2, 8, 32),
    "DCNv3, InternImage-T at 128, stage 1": lambda: operators.convolution(32, 4),
    "DCNv4, FlashInternImage-T at 128, stage 1": lambda: operators.packed_convolution(32, 4),
}


@dataclass
class Count:
    """Accesses of a launch to the tensors of one part."""

    requests: int = 0
    sectors: int = 0
    requested: int = 0
    needed: int = 0


@dataclass
class Launch:
    """A launch: what was counted, and the kernel that ran."""

    direction: str
    bytes: int
    elements: int
    lanes: int
    blocks: int
    threads: int
    parts: dict[str, Count]


def read_launches(path: Path) -> list[Launch]:
    """Read and remove the file that the emulation wrote."""
    launches: dict[tuple, Launch] = {}
    for line in path.read_text().splitlines():
        direction, *numbers = line.split()
        size, elements, lanes, blocks, threads, tensor, requests, sectors, requested, _, needed = map(int, numbers)
        key = (direction, size, elements, lanes, blocks, threads)
        launch = launches.setdefault(key, Launch(*key, parts={}))
        part = PARTS[tensor]
        if part == "output" and direction == "backward":
            part = "coordinates"  # the gradient of the output is read
        count = launch.parts.setdefault(part, Count())
        count.requests += requests
        count.sectors += sectors
        count.requested += requested
        count.needed += needed
    path.unlink()
    return list(launches.values())


def emulated_operators(folder: Path):
    script = dispatcher.build_script()
    script.build(folder, emulate=True)
    (library,) = (folder / "build").glob("*-cpu-*/*.so")
    torch.ops.load_library(library)
    return getattr(torch.ops, library.stem)


def run(ops, case: dict, dtype: torch.dtype, backward: bool) -> None:
    operator = operators.operator_of(case)
    arguments = []
    for name, value in case.items():
        if name == "fused":
            continue
        if name == "spatial_shapes":
            value = [side for shape in value for side in shape]
        if isinstance(value, torch.Tensor) and name in ("value", "attention_weights", "mask"):
            value = value.to(dtype)
        arguments.append(list(value) if isinstance(value, tuple) else value)
    if operator == "ms_deform_attn":  # as the models call it, with softmax and locations in the kernel
        references, offsets, logits = case["fused"]
        operator, arguments = "ms_deform_attn_fused", [*arguments[:2], references, offsets, logits.to(dtype)]
    output = getattr(ops, operator)(*arguments)
    if backward:
        getattr(ops, f"{operator}_backward")(torch.ones_like(output), *arguments)


def registers(table: Path) -> dict[tuple, tuple[int, int]]:
    """Return registers on sm_90 and bytes of shared memory by direction, type, elements and lanes."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.read_text().splitlines()]
    header = next(line for line in lines if line and line[0] == "kernel")
    column = header.index("sm_90")
    return {
        (line[0], line[1], int(line[2]), int(line[3])): (int(line[column]), int(line[4]))
        for line in lines
        if line and line[0] in ("forward", "backward") and len(line) > column
    }


def occupancy(used: int, shared: int, threads: int) -> tuple[int, float]:
    """Return blocks on a multiprocessor of compute capability 9.0, and the share of its 64 warps that they fill."""
    per_thread = -(-used // 8) * 8
    limits = [65536 // (per_thread * threads), 2048 // threads, 32, 227 * 1024 // (shared + 1024)]
    return min(limits), min(limits) * threads / 2048


def report(rows: list[tuple[str, str, Launch]], table: Path) -> str:
    found = registers(table)
    lines = [
        "# Accesses of the CUDA kernels to memory",
        "",
        "Written by `benchmarks/cuda_accesses.py` from the addresses that the emulation of the tests sees. No kernel",
        "has run on a GPU yet. A request is an instruction of a warp, and a sector has 32 bytes. `used` is the share",
        "of the sectors' bytes that the threads ask for: over 100% if threads ask for the same. `again` is the number",
        "of times that a byte is requested: caches must serve all but one. `of all` is the share in the sectors of the",
        "launch, and `unused` the share of these bytes that no thread asks for: the most that another order of the",
        "accesses could save. Attention runs with softmax fused, and locations in float32.",
        "",
        "| case | value | kernel | accesses | sectors per request | used | again | of all | unused |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    least_used, most_unused = (9.0, ""), (0.0, "")
    for name, dtype, launch in rows:
        total = sum(count.sectors for count in launch.parts.values())
        for part, count in launch.parts.items():
            used = count.requested / (SECTOR * count.sectors)
            unused = max(0.0, 1 - used) * count.sectors / total
            place = f"{part} of {name}, {dtype}, {launch.direction}"
            least_used, most_unused = min(least_used, (used, place)), max(most_unused, (unused, place))
            numbers = f"{count.sectors / count.requests:.1f} | {used:.0%} | {count.requested / count.needed:.1f}"
            numbers += f" | {count.sectors / total:.0%} | {unused:.0%}"
            lines.append(f"| {name} | {dtype} | {launch.direction} | {part} | {numbers} |")
    lines += [
        "",
        f"Worst by `used`: {least_used[1]}, with {least_used[0]:.0%}.",
        f"Worst by `unused`: {most_unused[1]}, with {most_unused[0]:.0%}.",
        "",
        NOTES,
    ]
    lines += [
        "Occupancy of compute capability 9.0 in blocks of 256 threads, which launches with enough blocks have:",
        "",
        "| kernel | value | elements | lanes | registers | shared bytes | blocks | warps |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (direction, type_, elements, lanes), (used_registers, shared) in found.items():
        blocks, share = occupancy(used_registers, shared, 256)
        lines.append(
            f"| {direction} | {type_} | {elements} | {lanes} | {used_registers} | {shared} | {blocks} | {share:.0%} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run the cases whose name contains this")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "cuda_accesses.md")
    parser.add_argument("--registers", type=Path, default=Path(__file__).with_name("cuda_registers.md"))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        counts = Path(temporary) / "counts.txt"
        os.environ["DEFORMABLE_OPS_COUNTS"] = str(counts)  # read when the library is loaded
        os.environ["CXXFLAGS"] = f"{os.environ.get('CXXFLAGS', '')} -O1"
        ops = emulated_operators(Path(temporary))
        for name, make in CASES.items():
            if not re.search(arguments.only, name):
                continue
            case = make()
            for dtype, kind in DTYPES.items():
                run(ops, case, kind, backward=True)
                rows += [(name, dtype, launch) for launch in read_launches(counts)]
    text = report(rows, arguments.registers)
    arguments.output.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
