# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""A large photo in windows: its time over that of the windows alone, and the share of what is not the network.

python benchmarks/large_image.py                        # 12 megapixels, windows of 512 pixels, labels only
python benchmarks/large_image.py --size 1500 2000 --model segmenter-b-mask
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from models import MODELS, our_model
from results import commit, keep_memory, machine_name, operators, show, today, watched_passes

from segtransformers import SegmentationImageProcessor
from segtransformers.inference import InferenceProtocol, segment_image
from segtransformers.models.optimize import optimize_for_inference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="vit-adapter-t-upernet", metavar="NAME")
    parser.add_argument("--size", type=int, nargs=2, default=(3000, 4000), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--stride", type=int, default=341)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_memory()
    dtype = torch.bfloat16 if options.precision == "bf16" else None
    model = optimize_for_inference(our_model(options.model).eval(), dtype=dtype)
    image = np.random.default_rng(0).integers(0, 256, (*options.size, 3), dtype=np.uint8)
    window, stride = (options.window,) * 2, (options.stride,) * 2
    protocol = InferenceProtocol(window=window, stride=stride)
    with watched_passes(type(model)) as passes, torch.no_grad():
        for _ in range(6):
            model(torch.randn(1, 3, *window, dtype=model.dtype))
        alone = statistics.median(one.seconds for one in passes[1:])
        passes.clear()
        start = time.perf_counter()
        labels = segment_image(model, SegmentationImageProcessor(do_resize=False), image, protocol)
        total = time.perf_counter() - start
    found = {
        "date": today(), "commit": commit(), "machine": machine_name(), "threads": options.threads,
        "model": options.model, "size": list(labels.shape), "window": options.window, "stride": options.stride,
        "precision": options.precision, "operators": operators(),
        "windows": len(passes), "window_seconds": alone, "total_seconds": total,
        "total_over_windows": total / (len(passes) * alone),
        "share_outside_network": 1 - sum(one.seconds for one in passes) / total,
    }  # fmt: skip
    show(found, options.json)


if __name__ == "__main__":
    main()
