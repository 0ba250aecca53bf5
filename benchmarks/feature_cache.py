# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Measure a training step on cached features of a frozen ViT beside one that runs the ViT, and the size of the cache.

    python benchmarks/feature_cache.py                                  # ViT-S of DINOv2, linear head, 224 pixels
    python benchmarks/feature_cache.py --recipe dinov2-mask-transformer --size 448
    python benchmarks/feature_cache.py --device cuda --trunk vit_large_patch14_dinov2 --size 512

A step is augmentation, forward, backward and the recipe's AdamW. Weights are random. Both kinds of step take turns, and
medians are compared. The cache is also compared with training without it: after how many passes its time is won back.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers.utils import logging

from segtransformers.datasets import load_segmentation_dataset
from segtransformers.datasets.scenes import write_scenes
from segtransformers.training import (
    Recipe,
    TrainingAugmentation,
    TrainingDataset,
    collate,
    create_optimizer,
    freeze_trunk,
)
from segtransformers.training.feature_cache import FEATURES, cache_features
from segtransformers.training.starting_points import starting_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="dinov2-linear", choices=("dinov2-linear", "dinov2-mask-transformer"))
    parser.add_argument("--trunk", default="vit_small_patch14_dinov2", help="name of an architecture of timm")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--size", type=int, default=224, help="side of the crops in pixels")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--versions", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    torch.manual_seed(0)
    recipe = Recipe.from_dict({"base": options.recipe, "model": {"backbone": {"trunk": options.trunk}}})
    with tempfile.TemporaryDirectory() as name:
        folder = write_scenes(Path(name) / "data", options.images, size=(options.size, options.size * 3 // 2))
        scenes = load_segmentation_dataset(str(folder), "train")
        crop = (options.size, options.size)
        network, _ = starting_model(
            None, dataclasses.replace(recipe, freeze_trunk=False), scenes.id2label, crop_size=crop
        )
        network.to(options.device)
        freeze_trunk(network)
        data = TrainingDataset(scenes, TrainingAugmentation.from_recipe(recipe, crop_size=crop))
        start = time.perf_counter()
        cached = cache_features(network, data, options.versions, options.device, Path(name) / "cache")
        building = time.perf_counter() - start
        size = sum(file.stat().st_size for file in Path(name, "cache").rglob("*.npy"))
        optimizer = create_optimizer(network, recipe)

        def step(samples: TrainingDataset) -> float:
            start = time.perf_counter()
            batch = collate([samples[index % len(samples)] for index in range(options.batch)])
            assert (FEATURES in batch) == (samples is cached)
            network(**{name: value.to(options.device) for name, value in batch.items()}).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if options.device == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - start

        kinds = {"runs the ViT": data, "cached features": cached}
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        for round_ in range(options.rounds + 1):
            for kind, samples in kinds.items():
                seconds = step(samples)
                if round_:
                    times[kind].append(seconds)
    medians = {kind: statistics.median(values) for kind, values in times.items()}
    first = medians["runs the ViT"]
    print(f"{options.recipe}, {options.trunk}: {options.batch} images of {options.size} pixels, {options.device}")
    print("| step | seconds | ratio |")
    print("|---|---|---|")
    for kind, seconds in medians.items():
        print(f"| {kind} | {seconds:.3f} | {seconds / first:.3f} |")
    stored = options.images * options.versions
    saved = (first - medians["cached features"]) / options.batch
    print(f"the cache takes {size / stored / 1e6:.2f} MB and {building / stored:.3f} s for each version of an image;")
    passes = options.versions * building / stored / saved
    print(f"{options.versions} versions of an image are paid after {passes:.1f} passes over the images")


if __name__ == "__main__":
    main()
