# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Measure the peak memory of a huge image and of a whole evaluation on the CPU, beyond the loaded model.

    python benchmarks/inference_memory.py image                        # 9000 x 9000 pixels, 150 classes, from Python
    python benchmarks/inference_memory.py image --command              # the same with `segtransformers segment`
    python benchmarks/inference_memory.py image --side 3000 --flip --scales 0.75,1,1.25
    python benchmarks/inference_memory.py evaluation                   # 50 images and 500

The model has the shape of the packaged one, another head, and runs one window at a time, as the original code does. Its
processor leaves images at their size; checkpoints that resize images need less. Every figure is the peak resident
memory (`ru_maxrss`) of a process of its own, minus the memory of that process after the model was loaded. For the
command the memory for an image of 64 x 64 pixels is subtracted.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
from transformers.utils import logging

from segtransformers import packaged_model_path
from segtransformers.cli.common import inference_protocol
from segtransformers.datasets import load_segmentation_dataset
from segtransformers.datasets.scenes import draw_scene, write_scenes
from segtransformers.evaluation import evaluate_segmentation
from segtransformers.inference import segment_image

GIB = 1 << 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["image", "evaluation"])
    parser.add_argument("--side", type=int, default=9000, help="height and width of the image, in pixels")
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--window", type=int, default=512, help="side of the windows, in pixels")
    parser.add_argument("--scales", help="several scales, separated by commas")
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--command", action="store_true", help="measure the command `segtransformers segment`")
    parser.add_argument("--images", type=int, nargs="+", default=[50, 500])
    parser.add_argument("--inside", help=argparse.SUPPRESS)  # folder; in the process that is measured
    options = parser.parse_args()
    logging.disable_progress_bar()
    if options.inside is not None:
        _measured(options)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.what == "evaluation":
            write_scenes(folder, max(options.images))
            for count in options.images:
                _run([__file__, "evaluation", "--inside", name, "--images", str(count)])
            return
        _make_model(folder / "model", options.classes)
        _image(options.side).save(folder / "large.png", compress_level=1)
        if options.command:
            _image(64).save(folder / "small.png")
            _measure_command(folder, options)
        else:
            _run([__file__, *sys.argv[1:], "--inside", name])


def _run(arguments: list[str]) -> None:
    subprocess.run([sys.executable, *arguments], check=True)


def _make_model(folder: Path, classes: int) -> None:
    torch.manual_seed(0)
    shape = {"num_labels": classes, "dtype": torch.float32, "ignore_mismatched_sizes": True, "window_batch_size": 1}
    logging.set_verbosity_error()  # a warning would say that the head is new
    AutoModelForSemanticSegmentation.from_pretrained(packaged_model_path(), **shape).save_pretrained(folder)
    AutoImageProcessor.from_pretrained(packaged_model_path()).save_pretrained(folder)


def _image(side: int) -> Image.Image:
    return Image.fromarray(draw_scene(7, (256, 256))[0]).resize((side, side))


def _peak(who: int = resource.RUSAGE_SELF) -> int:
    """Return the peak resident memory in bytes."""
    # Linux counts in KiB, macOS in bytes
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _measured(options: argparse.Namespace) -> None:
    """Measure in this process, and print the figures."""
    folder = Path(options.inside)
    source = packaged_model_path() if options.what == "evaluation" else folder / "model"
    model = AutoModelForSemanticSegmentation.from_pretrained(source, dtype=torch.float32).eval()
    processor = AutoImageProcessor.from_pretrained(source)
    with torch.no_grad():  # the setup of the first call is no part of the figure
        model(torch.zeros(1, 3, options.window, options.window))
    if options.what == "evaluation":
        (count,) = options.images
        data = load_segmentation_dataset(folder).select(range(count))
        evaluate_segmentation(model, processor, data.select(range(2)))
        before, start = _peak(), time.perf_counter()
        log = folder / f"resume-log-{count}"
        results = evaluate_segmentation(model, processor, data, resume_log=log, progress=True)
        took = time.perf_counter() - start
        print(
            f"{count} images: peak {_peak() / GIB:.3f} GiB, {(_peak() - before) / GIB:.3f} GiB above that of 2 images; "
            f"mIoU {100 * results['mean_iou']:.2f}, {count / took:.1f} images/s"
        )
        return
    protocol = inference_protocol(processor, False, options.scales, options.flip, str(options.window), None)
    before, start = _peak(), time.perf_counter()
    with Image.open(folder / "large.png") as opened:
        labels = segment_image(model, processor, opened.convert("RGB"), protocol)
    assert labels.shape == (options.side, options.side)
    _report(options, _peak() - before, time.perf_counter() - start)


def _measure_command(folder: Path, options: argparse.Namespace) -> None:
    peaks = []
    for name in ("small", "large"):
        words = ["segment", folder / f"{name}.png", "--model", folder / "model", "--output", folder / "out.png"]
        words += ["--device", "cpu", "--window", options.window, *(["--flip"] if options.flip else [])]
        words += ["--scales", options.scales] if options.scales else []
        start = time.perf_counter()
        _run(["-m", "segtransformers", *map(str, words)])
        peaks.append(_peak(resource.RUSAGE_CHILDREN))  # of the largest child so far
    with Image.open(folder / "out.png") as drawn:
        assert np.asarray(drawn).shape[0] == options.side
    _report(options, peaks[1] - peaks[0], time.perf_counter() - start)


def _report(options: argparse.Namespace, beyond: int, took: float) -> None:
    whole = options.classes * options.side**2 * 4
    print(
        f"{options.side} x {options.side}, {options.classes} classes, windows of {options.window}, scales "
        f"{options.scales or 1}, flip {options.flip}: {beyond / GIB:.2f} GiB beyond the model, {took:.0f} s; scores of "
        f"all classes would be {whole / GIB:.2f} GiB"
    )


if __name__ == "__main__":
    Image.MAX_IMAGE_PIXELS = None
    main()
