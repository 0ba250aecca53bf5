# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The commands beside the bare network: images per second of `segment` and `evaluate`, and their start.

    python benchmarks/commands.py                              # 24 photos of 512x683 pixels, two threads
    python benchmarks/commands.py --model segmenter-b-mask --images 12 --json results.json

The network's time is that of the same forward passes one after the other, with nothing beside them. One half of them
runs before each command and the other half after it, so that other load on the machine hits both alike. The start is
the time from the call of `segment` to the network's first pass, in a process that has imported everything.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from models import MODELS, our_model
from PIL import Image
from results import commit, machine_name, operators, show, today, watched_passes
from torch import nn
from typer.testing import CliRunner

from segtransformers import SegmentationImageProcessor
from segtransformers.cli import app
from segtransformers.models.optimize import optimize_for_inference


def write_data(folder: Path, images: int) -> None:
    """Write photos of smooth noise, which compress like photos, and label maps."""
    generator = np.random.default_rng(0)
    for kind in ("images", "annotations"):
        (folder / kind / "validation").mkdir(parents=True)
    for index in range(images):
        coarse = Image.fromarray(generator.integers(0, 256, (64, 86, 3), dtype=np.uint8)).resize((683, 512))
        grain = generator.normal(0, 8, (512, 683, 3))
        pixels = np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / "validation" / f"{index:04}.jpg", quality=90)
        labels = Image.fromarray(generator.integers(0, 150, (16, 22), dtype=np.uint8))
        labels.resize((683, 512), Image.Resampling.NEAREST).save(
            folder / "annotations" / "validation" / f"{index:04}.png"
        )


def network_seconds(model: nn.Module, shapes: list[tuple[int, ...]]) -> float:
    """Return the time of forward passes on inputs of these shapes, one after the other."""
    inputs = {shape: torch.randn(shape, dtype=model.dtype) for shape in set(shapes)}
    with torch.inference_mode():
        for pixels in inputs.values():
            model(pixel_values=pixels, sliding_window=False)
        start = time.perf_counter()
        for shape in shapes:
            model(pixel_values=inputs[shape], sliding_window=False)
        return time.perf_counter() - start


def run(arguments: list[str]) -> float:
    start = time.perf_counter()
    result = CliRunner().invoke(app, arguments)
    seconds = time.perf_counter() - start
    if result.exit_code != 0:
        raise SystemExit(f"segtransformers {' '.join(arguments)} failed:\n{result.output}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="vit-adapter-t-upernet", metavar="NAME")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_data(folder / "data", options.images)
        model = our_model(options.model).eval()
        model.config.inference_mode, model.config.window_size, model.config.window_stride = (
            "slide",
            [512] * 2,
            [341] * 2,
        )
        model.save_pretrained(folder / "model")
        SegmentationImageProcessor(size={"shortest_edge": 512, "longest_edge": 2048}).save_pretrained(folder / "model")
        images = folder / "data" / "images" / "validation"
        segment = ["segment", str(images), "--model", str(folder / "model")]
        commands = {
            "segment --label-maps": [*segment, "--label-maps", str(folder / "maps")],
            "segment --output": [*segment, "--output", str(folder / "drawn")],
            "evaluate": [
                "evaluate",
                "--model",
                str(folder / "model"),
                "--data",
                str(folder / "data"),
                "--classes",
                "150",
                "--output",
                str(folder / "results.json"),
            ],
        }
        first = str(next(images.iterdir()))
        one = ["segment", first, "--model", str(folder / "model"), "--output", str(folder / "one.png")]
        run(one)  # imports
        starts = []
        for _ in range(options.rounds):
            with watched_passes(type(model)) as passes:
                begin = time.perf_counter()
                run(one)
            starts.append(passes[0].start - begin)
        network = optimize_for_inference(model, inplace=True)
        with watched_passes(type(model)) as passes:
            run(commands["segment --label-maps"])
        shapes = [one.shape for one in passes]
        shares: dict[str, list[float]] = {name: [] for name in commands}
        rates: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(options.rounds):
            for name, arguments in commands.items():
                alone = network_seconds(network, shapes[::2])
                with watched_passes(type(model)) as passes:
                    run(arguments)
                    end = time.perf_counter()
                assert [one.shape for one in passes] == shapes
                seconds = end - passes[0].start  # without the start
                alone += network_seconds(network, shapes[1::2])
                shares[name].append(alone / seconds)
                rates[name].append(options.images / seconds)
    found = {
        "date": today(), "commit": commit(), "machine": machine_name(), "threads": options.threads,
        "model": options.model, "images": options.images, "operators": operators(),
        "start_seconds": statistics.median(starts),
        "images_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "share_of_the_bare_network": {name: statistics.median(values) for name, values in shares.items()},
    }  # fmt: skip
    show(found, options.json)


if __name__ == "__main__":
    main()
