# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Measure throughput and peak memory of a training step on a CPU, with checkpointing and compiled operators or without.

    python benchmarks/training_step.py                       # ViT-Adapter-T, UperNet, 2 images of 512 pixels; 5 minutes
    python benchmarks/training_step.py --size 64 --rounds 1  # a trial

A step is forward, backward and AdamW as in the recipe. Each measurement has its own process. The variants take turns in
each round, and their medians are compared. Memory is the peak of the resident memory during a step minus that of the
process with the model and the optimizer states. Compiled operators need `segtransformers build-kernels`.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from models import resident
from transformers.utils import logging
from variants import medians_of_processes

from segtransformers.operators import compiled_operators, dispatcher
from segtransformers.training import create_optimizer, get_recipe
from segtransformers.training.memory_format import channels_last_convolutions
from segtransformers.training.starting_points import starting_model

RECIPE = "upernet_deit_adapter_tiny_512_160k_ade20k"
CLASSES = 150
VARIANTS = {
    "plain PyTorch": {"operators": "off", "checkpointing": False},
    "plain PyTorch, checkpointing": {"operators": "off", "checkpointing": True},
    "compiled operators": {"operators": "force", "checkpointing": False},
    "compiled operators, checkpointing": {"operators": "force", "checkpointing": True},
}
MIB = 1 << 20


def measure(variant: dict, size: int, batch: int, steps: int, threads: int) -> dict[str, float]:
    """Return the seconds of a step and the bytes of its peak, measured in this process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    logging.disable_progress_bar()
    recipe = get_recipe(RECIPE)
    model, _ = starting_model(None, recipe, {index: str(index) for index in range(CLASSES)})
    if variant["checkpointing"]:
        model.gradient_checkpointing_enable()
    optimizer = create_optimizer(model, recipe)
    pixel_values, labels = torch.randn(batch, 3, size, size), torch.randint(CLASSES, (batch, size, size))
    for parameter in model.parameters():  # allocate gradients and optimizer states before the measurement
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    Path("/proc/self/clear_refs").write_text("5")  # reset VmHWM
    before, times = resident("VmRSS"), []
    layout = channels_last_convolutions(model, torch.device("cpu"))  # as SegmentationTrainer does
    with compiled_operators(variant["operators"]), layout:
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        for _ in range(steps + 1):
            start = time.perf_counter()
            model(pixel_values, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
            times.append(time.perf_counter() - start)
    return {"seconds": statistics.median(times[1:]), "peak": resident("VmHWM") - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1, help="timed steps per process, after one warm-up step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--inside", help=argparse.SUPPRESS)  # the variant to measure in this process
    options = parser.parse_args()
    if options.batch < 2:
        parser.error("--batch must be at least 2: UperNet normalises pooled feature maps over the images of a batch")
    if options.inside is not None:
        found = measure(VARIANTS[options.inside], options.size, options.batch, options.steps, options.threads)
        print(json.dumps(found))
        return
    print(dispatcher.describe())
    is_compiled = "compiled on cpu" in dispatcher.describe()
    names = [name for name, variant in VARIANTS.items() if is_compiled or variant["operators"] == "off"]
    medians = medians_of_processes(names, options.rounds)
    first = medians["plain PyTorch"]
    print(f"{options.batch} images of {options.size} pixels, {options.threads} threads, {options.rounds} rounds")
    print("| variant | images per second | ratio | peak MiB | ratio |")
    print("|---|---|---|---|---|")
    for name, figures in medians.items():
        print(
            f"| {name} | {options.batch / figures['seconds']:.2f} | {first['seconds'] / figures['seconds']:.2f} "
            f"| {figures['peak'] / MIB:.0f} | {figures['peak'] / first['peak']:.2f} |"
        )


if __name__ == "__main__":
    main()
