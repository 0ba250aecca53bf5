# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Seams at the borders of sliding windows, and mean IoU, by the weights with which windows are blended.

    python benchmarks/window_seams.py --scenes 20
    python benchmarks/window_seams.py --model DIR_OR_NAME --image photo.jpg --window 512

The seam energy is the mean absolute difference of the class probabilities of neighbouring pixels across borders of
windows, over that of all other neighbouring pixels. 1 means that windows leave no trace.
"""

import argparse

import numpy as np
import torch
from PIL import Image

from segtransformers.cli.common import load_model
from segtransformers.datasets.scenes import draw_scene
from segtransformers.inference import InferenceProtocol, image_scores
from segtransformers.metrics import MeanIoU
from segtransformers.models.layers.sliding_windows import BLENDS, SlidingWindow, window_origins


def seam_differences(scores: torch.Tensor, window: SlidingWindow) -> tuple[list[float], list[float]]:
    """Return the mean differences across each border of windows, and those elsewhere, rows and columns together."""
    at_borders, elsewhere = [], []
    for axis in (0, 1):
        size = scores.shape[1 + axis]
        origins = window_origins(size, window.size[axis], window.stride[axis])
        borders = {origin for origin in origins} | {origin + window.size[axis] for origin in origins}
        differences = scores.diff(dim=1 + axis).abs().mean(dim=(0, 2 - axis)).tolist()
        for index, difference in enumerate(differences):
            (at_borders if index + 1 in borders else elsewhere).append(difference)
    return at_borders, elsewhere


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="packaged")
    parser.add_argument("--image", help="an image without labels, instead of drawn scenes")
    parser.add_argument("--scenes", type=int, default=20)
    parser.add_argument("--size", type=int, nargs=2, default=(256, 384), help="height and width of the drawn scenes")
    parser.add_argument("--window", type=int, default=64)
    arguments = parser.parse_args()
    model, processor = load_model(arguments.model, None, optimize=True)
    if arguments.image:
        samples = [(Image.open(arguments.image).convert("RGB"), None)]
    else:
        drawn = (draw_scene(seed, tuple(arguments.size)) for seed in range(arguments.scenes))
        samples = [(Image.fromarray(image), labels) for image, labels in drawn]
    side = arguments.window
    print(f"{'blend':<10} {'margin':>6} {'seam energy':>12} {'mean IoU':>9}")
    for blend, margin in [(name, 0) for name in BLENDS] + [("mean", side // 6), ("cosine", side // 6)]:
        protocol = InferenceProtocol(window=(side, side), blend=blend, margin=margin)
        window, metric = protocol.sliding_window(model), MeanIoU(model.config.num_labels)
        at_borders, elsewhere = [], []
        for image, labels in samples:
            scores = image_scores(model, processor, image, protocol)
            for found, kept in zip(seam_differences(scores, window), (at_borders, elsewhere), strict=True):
                kept += found
            if labels is not None:
                metric.add(prediction=scores.argmax(0), reference=torch.as_tensor(labels).long())
        mean_iou = "-" if arguments.image else f"{metric.compute()['mean_iou']:.4f}"
        print(f"{blend:<10} {margin:>6} {np.mean(at_borders) / np.mean(elsewhere):>12.3f} {mean_iou:>9}")


if __name__ == "__main__":
    main()
