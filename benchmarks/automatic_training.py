# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Compare `segtransformers train --data D --output O` with recipes chosen by hand, on three kinds of drawn data.

    python benchmarks/automatic_training.py                       # about 15 minutes on two idle cores
    python benchmarks/automatic_training.py --steps 5 --images 8  # a trial

The data are landscapes (`segtransformers.datasets.scenes`), which the packaged model has been trained on, and two kinds
that it has never seen: cells under a microscope, and shapes that differ only in texture. The automatic learning
rates were chosen on the first two, so only the third is independent. No network is used, so the automatic choice starts
from the packaged model. By hand, the settings of the README and of published models are tried with several learning
rates, for as many steps and images as the automatic run; the best of them by its mean IoU on the evaluation data
counts.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from segtransformers.datasets.scenes import FIRST_TRAINING_SEED, write_scenes

CELL_CLASSES = ("background", "cell", "nucleus", "rod")
TEXTURE_CLASSES = ("noise", "horizontal", "vertical", "checks", "plain")
PUBLISHED = "upernet_deit_adapter_tiny_512_160k_ade20k"
BY_HAND = {
    "landscapes": [
        ["--recipe", PUBLISHED, "--crop-size", "96", "--learning_rate", "0.001"],
        ["--recipe", "small-vit-adapter", "--crop-size", "96", "--learning_rate", "0.0005"],
        ["--recipe", "small-vit-adapter", "--crop-size", "96", "--learning_rate", "0.001"],
    ],
    "cells": [
        ["--recipe", PUBLISHED, "--crop-size", "96", "--learning_rate", "0.003"],
        ["--recipe", "small-vit-adapter", "--crop-size", "96", "--learning_rate", "0.001"],
        ["--recipe", "small-vit-adapter", "--crop-size", "96", "--learning_rate", "0.004"],
    ],
    "textures": [
        ["--recipe", PUBLISHED, "--crop-size", "96", "--learning_rate", "0.001"],
        ["--recipe", "small-vit-adapter", "--crop-size", "96", "--learning_rate", "0.001"],
        ["--recipe", "small-vit-adapter", "--crop-size", "96", "--learning_rate", "0.004"],
    ],
}


def draw_cells(seed: int, side: int = 96) -> tuple[Image.Image, Image.Image]:
    """Draw cells with nuclei, and rods that are as bright as the nuclei, on an uneven background.

    Returns:
        a grey image in RGB, and its label map of indices into `CELL_CLASSES`.
    """
    random = np.random.default_rng(seed)
    scale = 3  # drawn larger and reduced, for smooth edges
    image, labels = (Image.new("L", (scale * side, scale * side)) for _ in range(2))
    light = np.linspace(0, 30, scale * side)[None] * random.uniform(-1, 1) + random.uniform(60, 130)
    image = Image.fromarray(np.broadcast_to(light, (scale * side, scale * side)).clip(0, 255).astype(np.uint8))
    pixels, classes = ImageDraw.Draw(image), ImageDraw.Draw(labels)
    for _ in range(random.integers(2, 6)):
        x, y = random.uniform(0, scale * side, 2)
        wide, high = random.uniform(30, 75, 2)
        body = [x - wide, y - high, x + wide, y + high]
        shade = int(random.uniform(85, 175))
        pixels.ellipse(body, fill=shade, outline=shade - 40, width=5)
        classes.ellipse(body, fill=1)
        if random.random() < 0.8:
            x, y = x + random.uniform(-0.3, 0.3) * wide, y + random.uniform(-0.3, 0.3) * high
            inner = [x - 0.4 * wide, y - 0.4 * high, x + 0.4 * wide, y + 0.4 * high]
            pixels.ellipse(inner, fill=int(random.uniform(25, 70)))
            classes.ellipse(inner, fill=2)
    for _ in range(random.integers(2, 8)):
        x, y = random.uniform(0, scale * side, 2)
        angle, half = random.uniform(0, np.pi), random.uniform(15, 35)
        ends = [(x + sign * half * np.cos(angle), y + sign * half * np.sin(angle)) for sign in (-1, 1)]
        pixels.line(ends, fill=int(random.uniform(25, 70)), width=13)
        classes.line(ends, fill=3, width=13)
    small = image.resize((side, side), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(random.uniform(0.3, 1.2)))
    noisy = np.asarray(small, np.float32) + random.normal(0, random.uniform(4, 14), (side, side))
    grey = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    return grey.convert("RGB"), labels.resize((side, side), Image.Resampling.NEAREST)


def draw_textures(seed: int, size: tuple[int, int] = (96, 128)) -> tuple[Image.Image, Image.Image]:
    """Draw polygons and ellipses of any colour that are striped, checked or plain, on noise.

    Returns:
        an RGB image, and its label map of indices into `TEXTURE_CLASSES`.
    """
    random = np.random.default_rng(seed)
    height, width = size
    rows, columns = np.mgrid[:height, :width]
    pixels = random.uniform(40, 200, 3) + random.normal(0, 30, (height, width, 1))
    labels = np.zeros(size, np.uint8)
    for _ in range(random.integers(3, 8)):
        shape = Image.new("1", (width, height))
        x, y, radius = random.uniform(0, width), random.uniform(0, height), random.uniform(12, 34)
        corners = int(random.integers(3, 9))
        angles = np.sort(random.uniform(0, 2 * np.pi, corners))
        if corners == 8:
            ImageDraw.Draw(shape).ellipse([x - radius, y - 0.6 * radius, x + radius, y + 0.6 * radius], fill=1)
        else:
            points = [(x + radius * np.cos(angle), y + radius * np.sin(angle)) for angle in angles]
            ImageDraw.Draw(shape).polygon(points, fill=1)
        inside, label, period = np.asarray(shape), int(random.integers(1, 5)), random.uniform(5, 10)
        row, column = (np.sin(2 * np.pi * axis / period + random.uniform(0, 6)) > 0 for axis in (rows, columns))
        pattern = {1: row, 2: column, 3: row ^ column, 4: np.zeros(size, bool)}[label]
        first, second = random.uniform(30, 220, 3), random.uniform(30, 220, 3)
        pixels = np.where(inside[..., None], np.where(pattern[..., None], first, second), pixels)
        labels[inside] = label
    noisy = pixels + random.normal(0, 12, pixels.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), Image.fromarray(labels)


def write_drawn(folder: Path, count: int, seed: int, split: str, draw: Any, classes: tuple[str, ...]) -> None:
    for name in ("images", "masks"):
        (folder / name / split).mkdir(parents=True, exist_ok=True)
    (folder / "classes.txt").write_text("\n".join(classes), encoding="utf-8")
    for index in range(count):
        for name, drawn in zip(("images", "masks"), draw(seed + index), strict=True):
            drawn.save(folder / name / split / f"{index:04d}.png")


def train(data: Path, output: Path, *words: str) -> dict[str, float]:
    """Run the command offline. Return the mean IoU in percent, the steps and the minutes."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(output.parent / "no-cache")}
    command = [sys.executable, "-m", "segtransformers", "train", "--data", str(data), "--output", str(output), *words]
    done = subprocess.run(
        [*command, "--use_cpu", "--disable_tqdm", "true"], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    states = [json.loads(file.read_text(encoding="utf-8")) for file in output.glob("checkpoint-*/trainer_state.json")]
    last = max(states, key=lambda state: state["global_step"])
    return {"miou": 100 * results["mean_iou"], "steps": last["global_step"], "planned": last["max_steps"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--images", type=int, default=40, help="training images of each data set")
    parser.add_argument("--steps", type=int, help="in place of the chosen number")
    parser.add_argument("--data", choices=BY_HAND, help="only this data set")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for split, count, seed in (("train", options.images, FIRST_TRAINING_SEED), ("validation", 16, 0)):
            write_scenes(folder / "landscapes", count, seed, (96, 144), split)
            write_drawn(folder / "cells", count, seed, split, draw_cells, CELL_CLASSES)
            write_drawn(folder / "textures", count, seed, split, draw_textures, TEXTURE_CLASSES)
        print("| data | settings | steps | mean IoU | difference to the best by hand |")
        print("|---|---|---|---|---|")
        length = [] if options.steps is None else ["--max_steps", str(options.steps)]
        for data in BY_HAND if options.data is None else [options.data]:
            chosen = train(folder / data, folder / f"{data}-chosen", "--preset", options.preset, *length)
            same = ["--model", "packaged", "--batch-size", "8", "--gradient_accumulation_steps", "1", "--keep-best"]
            same += ["--max_steps", str(int(chosen["planned"]))]
            found = [
                (" ".join(words), train(folder / data, folder / f"{data}-{index}", *words, *same))
                for index, words in enumerate(BY_HAND[data])
            ]
            best = max(figures["miou"] for _, figures in found)
            for settings, figures in [*found, ("chosen automatically", chosen)]:
                print(
                    f"| {data} | {settings} | {figures['steps']} | {figures['miou']:.2f} "
                    f"| {figures['miou'] - best:+.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
