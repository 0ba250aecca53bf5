# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""A model by stages: the time of each, the time that its arithmetic and its bytes would take, and the gap.

    python benchmarks/stages.py                                  # ViT-Adapter-T with UperNet, optimized, two threads
    python benchmarks/stages.py --model internimage-t-upernet --plain

Arithmetic is counted in the plain model, so a stage with fewer multiplications can be faster than its floor. Bytes are
the inputs, outputs and weights of the stage's leaves, each once. The rates are measured before: a large matrix product,
and a copy of memory.
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from models import MODELS, our_model
from results import commit, keep_memory, machine_name, today
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from segtransformers.models.optimize import optimize_for_inference
from segtransformers.operators import dispatcher

HEAD, OTHER = "head convolutions 3x3", "other layers"
# stages by parts of the names of modules; the first that fits counts, and a stage does not count what is inside of
# another one
STAGES = {
    "stem": ("spatial_prior", "embeddings"),
    "deformable layers": ("deformable_attention", ".attn.attn", "extractor.attn", "injector.attn", ".spatial.layer"),
    "attention of the trunk": (".blocks.#.attn",),
    "feed-forward": (".mlp", ".ffn", ".channel.layer"),
    "laterals and pooling": ("lateral_convs", "psp_modules", "add_resized"),
    HEAD: ("fpn_convs", "bottleneck"),
    "classifier": ("classifier",),
    "final resize": ("resize_logits",),
}


def stage_of(name: str) -> str | None:
    generic = ".".join("#" if part.isdigit() else part for part in f".{name}".split("."))
    for stage, parts in STAGES.items():
        if any(generic.endswith(part) or f"{part}." in f"{generic}." for part in parts):
            return stage
    return None


def roots(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield stage and module of the outermost modules of every stage."""
    taken: list[str] = []
    for name, module in model.named_modules():
        stage = stage_of(name) if name else None
        if stage is not None and not isinstance(module, nn.ModuleList) and not _is_inside(name, taken):
            taken.append(name)
            yield stage, module


def _is_inside(name: str, taken: list[str]) -> bool:
    return any(name.startswith(f"{outer}.") for outer in taken)


class Recorder:
    """Add up the time and the bytes of each stage in a forward pass."""

    def __init__(self, model: nn.Module):
        self.seconds: dict[str, float] = defaultdict(float)
        self.bytes: dict[str, int] = defaultdict(int)
        self.starts: list[float] = []
        self.handles = []
        for stage, module in roots(model):
            self.handles.append(module.register_forward_pre_hook(self._begin))
            self.handles.append(module.register_forward_hook(self._end(stage)))

    def _begin(self, module, arguments):
        self.starts.append(time.perf_counter())

    def _end(self, stage):
        def end(module, arguments, output):
            self.seconds[stage] += time.perf_counter() - self.starts.pop()
            tensors = [*_tensors(arguments), *_tensors(output), *module.parameters(), *module.buffers()]
            self.bytes[stage] += sum(tensor.nbytes for tensor in tensors)

        return end

    def remove(self):
        for handle in self.handles:
            handle.remove()


def _tensors(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for one in value for tensor in _tensors(one)] if isinstance(value, list | tuple) else []


def operations(model: nn.Module, images: torch.Tensor) -> dict[str, float]:
    """Return the floating-point operations of each stage of the plain model; an addition with a product is two."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(images)
    found: dict[str, float] = defaultdict(float)
    counts = {name.partition(".")[2]: sum(by_kind.values()) for name, by_kind in counter.get_flop_counts().items()}
    taken: list[str] = []
    for name, _ in model.named_modules():
        stage = stage_of(name) if name else None
        if stage is not None and name in counts and not _is_inside(name, taken):
            taken.append(name)
            found[stage] += counts[name]
    # the head calls some of its convolutions' weights in a function, which counts as the head's own
    head = sum(count for name, count in counts.items() if name == "decode_head")
    if head:
        others = [name for name in taken if name.startswith("decode_head.") and stage_of(name) != HEAD]
        found[HEAD] = head - sum(counts[name] for name in others)
    found[OTHER] = counter.get_total_flops() - sum(found.values())
    return found


def rates() -> tuple[float, float]:
    """Return operations and copied bytes in a second, the best of some tries."""
    matrix = torch.randn(2048, 2048)
    memory, target = torch.empty(2**26), torch.empty(2**26)
    products, copies = [], []
    for _ in range(7):
        start = time.perf_counter()
        matrix @ matrix
        products.append(time.perf_counter() - start)
        start = time.perf_counter()
        target.copy_(memory)
        copies.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(products), 2 * memory.nbytes / min(copies)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="vit-adapter-t-upernet", metavar="NAME")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--plain", action="store_true", help="the model as it is loaded")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_memory()
    images = torch.randn(1, 3, options.size, options.size)
    plain = our_model(options.model).eval()
    counted = operations(plain, images)
    model = plain if options.plain else optimize_for_inference(plain)
    arithmetic, bandwidth = rates()
    times: dict[str, list[float]] = defaultdict(list)
    with torch.no_grad():
        model(images)
        for _ in range(options.rounds):
            recorder = Recorder(model)
            start = time.perf_counter()
            model(images)
            total = time.perf_counter() - start
            recorder.remove()
            for stage in STAGES:
                times[stage].append(recorder.seconds[stage])
            times[OTHER].append(total - sum(recorder.seconds.values()))
            times["all"].append(total)
    rows = {}
    print(f"{options.model}, {arithmetic / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.1f} GB/s; {dispatcher.describe()}")
    print(f"{'':26}{'time':>10}{'arithmetic':>12}{'bytes':>10}{'gap':>10}   (ms)")
    for stage, found in times.items():
        if not any(found):
            continue
        median = 1000 * statistics.median(found)
        operation_floor = 1000 * (sum(counted.values()) if stage == "all" else counted.get(stage, 0.0)) / arithmetic
        byte_floor = 1000 * (sum(recorder.bytes.values()) if stage == "all" else recorder.bytes[stage]) / bandwidth
        gap = median - max(operation_floor, byte_floor)
        rows[stage] = {"median_ms": median, "arithmetic_ms": operation_floor, "bytes_ms": byte_floor, "gap_ms": gap}
        print(f"{stage:26}{median:10.1f}{operation_floor:12.1f}{byte_floor:10.1f}{gap:10.1f}")
    if options.json:
        setting = {"date": today(), "commit": commit(), "machine": machine_name(), "threads": options.threads}
        found = {**setting, "model": options.model, "size": options.size, "plain": options.plain, "stages": rows}
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
