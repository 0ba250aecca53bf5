# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Measure time and memory of a training step with a frozen trunk beside full fine-tuning of the same model.

    python benchmarks/frozen_trunk.py                                      # DINOv3 ViT-B, adapter, Mask2Former; minutes
    python benchmarks/frozen_trunk.py --recipe dinov2-linear --trunk vit_small_patch14_dinov2
    python benchmarks/frozen_trunk.py --device cuda --batch 4              # on a GPU
    python benchmarks/frozen_trunk.py --trunk vit_small_patch16_dinov3 --size 64 --rounds 1   # a trial

A step is forward, backward and the recipe's AdamW. Weights are random. Each measurement has its own process, and the
variants take turns in each round; medians are compared. Memory is that of weights, gradients, optimizer states and the
peak of a step together: of the process above the one without a model on a CPU, of torch's allocator on a GPU.
"""

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path

import torch
from models import resident
from transformers.utils import logging
from variants import medians_of_processes

from segtransformers.training import Recipe, create_optimizer, freeze_trunk, frozen_trunk_recipe_names
from segtransformers.training.starting_points import starting_model

CLASSES = 150
VARIANTS: dict[str, torch.dtype | bool | None] = {
    "all weights": False,
    "frozen trunk": None,
    "frozen trunk, bfloat16": torch.bfloat16,
}
MIB = 1 << 20


def measure(variant: str, options: argparse.Namespace) -> dict[str, float]:
    """Return the seconds of a step and the bytes of its peak, measured in this process."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    logging.disable_progress_bar()
    recipe = Recipe.from_dict({"base": options.recipe, "model": {"backbone": {"trunk": options.trunk}}})
    device, size = torch.device(options.device), options.size
    warm_up = torch.nn.Conv2d(3, 8, 3).to(device)  # libraries are loaded before the memory is measured
    warm_up(torch.randn(1, 3, 64, 64, device=device)).sum().backward()
    before = used(device)
    recipe = dataclasses.replace(recipe, freeze_trunk=False)  # the trunk is random here
    model, _ = starting_model(None, recipe, {index: str(index) for index in range(CLASSES)})
    model.to(device)
    if VARIANTS[variant] is not False:
        freeze_trunk(model, VARIANTS[variant])
    optimizer = create_optimizer(model, recipe)
    pixel_values = torch.randn(options.batch, 3, size, size, device=device)
    labels = torch.randint(CLASSES, (options.batch, size, size), device=device)
    reset_peak(device)
    times = []
    for _ in range(options.steps + 1):
        start = time.perf_counter()
        model(pixel_values, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return {"seconds": statistics.median(times[1:]), "peak": peak(device) - before}


def used(device: torch.device) -> int:
    return torch.cuda.memory_allocated() if device.type == "cuda" else resident("VmRSS")


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # reset VmHWM


def peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else resident("VmHWM")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="dinov3-adapter-mask2former", choices=frozen_trunk_recipe_names())
    parser.add_argument("--trunk", default="vit_base_patch16_dinov3", help="name of an architecture of timm")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--size", type=int, default=512, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1, help="timed steps per process, after one warm-up step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--inside", help=argparse.SUPPRESS)  # the variant to measure in this process
    options = parser.parse_args()
    if options.inside is not None:
        print(json.dumps(measure(options.inside, options)))
        return
    medians = medians_of_processes(VARIANTS, options.rounds)
    first = medians["all weights"]
    print(f"{options.recipe}, {options.trunk}: {options.batch} images of {options.size} pixels, {options.device}")
    print("| trained | seconds of a step | ratio | MiB | ratio |")
    print("|---|---|---|---|---|")
    for name, figures in medians.items():
        print(
            f"| {name} | {figures['seconds']:.2f} | {figures['seconds'] / first['seconds']:.2f} "
            f"| {figures['peak'] / MIB:.0f} | {figures['peak'] / first['peak']:.2f} |"
        )


if __name__ == "__main__":
    main()
