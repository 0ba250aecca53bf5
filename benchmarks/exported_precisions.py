# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Mean IoU and size of the packaged model's exported files in every precision, on the drawn scenes.

    python benchmarks/exported_precisions.py --json precisions.json
    python benchmarks/exported_precisions.py --scenes 50 --runtimes onnxruntime --precisions float32 int8

The scenes are those of the packaged model's `metrics.json`. Calibration images of int8 are scenes with other seeds.
"""

import argparse
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engines import PACKAGES
from PIL import Image
from results import commit, machine_name, today
from transformers import AutoModelForSemanticSegmentation

from segtransformers import SegmentationImageProcessor
from segtransformers.datasets.scenes import draw_scene
from segtransformers.export import ExportedModel, ExportError, ExportOptions, export_model
from segtransformers.export.options import PRECISIONS, RUNTIME_FORMATS, files_of
from segtransformers.metrics import MeanIoU
from segtransformers.packaged import packaged_model_path

EVALUATION_SIZE = (128, 192)  # as in scripts/train_scene_model.py
CALIBRATION_SEED, CALIBRATION_SCENES = 10_000, 64


def mean_iou(model, processor, scenes: int) -> float:
    """Return the mean IoU on scenes, in percent."""
    metric = MeanIoU(model.config.num_labels)
    for scene in range(scenes):
        image, labels = draw_scene(scene, EVALUATION_SIZE)
        pixels = processor(image, do_resize=False, return_tensors="pt")["pixel_values"]
        logits = model(pixel_values=pixels, sliding_window=False).logits
        metric.add(prediction=logits[0].argmax(0).numpy(), reference=labels)
    return round(100 * float(metric.figures()["mean_iou"]), 3)


def measured(
    model, processor, runtime: str, precision: str, images: list[Path], folder: Path, scenes: int
) -> dict[str, Any] | None:
    """Return the row of a file, or None if the format has no such precision."""
    file = folder / f"model{RUNTIME_FORMATS[runtime]}"
    options: dict[str, Any] = {"precision": precision, "compiled": runtime == "aot-inductor"}
    if precision == "int8":
        options["calibration"] = images
    try:
        ExportOptions(**options).check_format(file.suffix)
    except ValueError:
        return None
    row: dict[str, Any] = {"runtime": runtime, "precision": precision}
    try:
        error = export_model(model, processor, file, size=EVALUATION_SIZE, **options)
        iou = mean_iou(ExportedModel(file), processor, scenes)
        parts = files_of(file)
        megabytes = sum(part.stat().st_size for part in parts) / 1e6
        row.update(error=error, mean_iou=iou, megabytes=round(megabytes, 1))
        for part in parts:
            part.unlink()
    except (ExportError, ImportError, ValueError) as failure:
        row["failed"] = str(failure)
    return row


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument(
        "--runtimes", nargs="+", choices=RUNTIME_FORMATS, default=["onnxruntime", "openvino", "aot-inductor"]
    )
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = packaged_model_path()
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, dtype=torch.float32).eval()
    processor = SegmentationImageProcessor.from_pretrained(folder)
    rows: list[dict[str, Any]] = [{"runtime": "PyTorch model", "mean_iou": mean_iou(model, processor, options.scenes)}]
    print(rows[-1], flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        images = []
        for index in range(CALIBRATION_SCENES):
            image, _ = draw_scene(CALIBRATION_SEED + index, EVALUATION_SIZE)
            images.append(Path(temporary) / f"{index}.png")
            (image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))).save(images[-1])
        for runtime in options.runtimes:
            for precision in options.precisions:
                row = measured(model, processor, runtime, precision, images, Path(temporary), options.scenes)
                if row is not None:
                    rows.append(row)
                    print(row, flush=True)
    if options.json:
        setting = {
            "date": today(),
            "machine": machine_name(),
            "commit": commit(),
            "packages": {package: version(package) for package in PACKAGES},
        }
        options.json.write_text(
            json.dumps({"setting": setting, "scenes": options.scenes, "rows": rows}, indent=2) + "\n"
        )


if __name__ == "__main__":
    sys.exit(main())
