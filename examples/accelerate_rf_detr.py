# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Give transformers' RF-DETR, or another model with deformable attention, the operators of this package.

    segtransformers build-kernels                       # once; else plain PyTorch does the work
    python accelerate_rf_detr.py --model FOLDER_OR_HUB_ID --size 560

Without --model, the model is a small RF-DETR with random weights. The outputs stay equal up to rounding.
"""

import argparse
import statistics
import time

import torch
from transformers import AutoModel, RfDetrConfig, RfDetrDinov2Config, RfDetrModel

from segtransformers.operators import accelerate


def small_model():
    stages = ["stage1", "stage2"]
    trunk = RfDetrDinov2Config(hidden_size=48, num_hidden_layers=2, num_attention_heads=2, out_features=stages)
    return RfDetrModel(RfDetrConfig(backbone_config=trunk, d_model=64, decoder_layers=2, num_queries=30))


def milliseconds(model, images, rounds):
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        model(images)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder or a Hub id of a model with deformable attention")
    parser.add_argument("--size", type=int, default=224, help="side of the image in pixels")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    torch.manual_seed(0)
    model = (small_model() if options.model is None else AutoModel.from_pretrained(options.model)).eval()
    images = torch.randn(1, 3, options.size, options.size)
    with torch.inference_mode():
        before, stock = model(images)[0], milliseconds(model, images, options.rounds)
        with accelerate(model) as accelerated:  # without `with`, `accelerated.undo()` restores the model
            after, ours = model(images)[0], milliseconds(model, images, options.rounds)
            print(f"{len(accelerated.layers)} layers accelerated")
    print(f"before {stock:.0f} ms, after {ours:.0f} ms, difference of the outputs {(after - before).abs().max():.1e}")


if __name__ == "__main__":
    main()
