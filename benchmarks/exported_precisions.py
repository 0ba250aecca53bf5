# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Mean IoU, size and time of the packaged model's exported files in every precision, on the drawn scenes.

    python benchmarks/exported_precisions.py --json precisions.json
    python benchmarks/exported_precisions.py --scenes 50 --formats .onnx --precisions float32 int8

The scenes are those of the packaged model's `metrics.json`. Calibration images of int8 are scenes with other seeds.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForSemanticSegmentation

from segtransformers import SegmentationImageProcessor
from segtransformers.datasets.scenes import draw_scene
from segtransformers.export import ExportedModel, ExportError, export_model
from segtransformers.metrics import MeanIoU
from segtransformers.packaged import packaged_model_path

EVALUATION_SIZE = (128, 192)  # as in scripts/train_scene_model.py
CALIBRATION_SEED, CALIBRATION_SCENES = 10_000, 64


def mean_iou(model, processor, scenes: int) -> tuple[float, float]:
    """Return the mean IoU on scenes, in percent, and the seconds per scene."""
    metric = MeanIoU(model.config.num_labels)
    seconds = 0.0
    for scene in range(scenes):
        image, labels = draw_scene(scene, EVALUATION_SIZE)
        pixels = processor(image, do_resize=False, return_tensors="pt")["pixel_values"]
        start = time.perf_counter()
        logits = model(pixel_values=pixels, sliding_window=False).logits
        seconds += time.perf_counter() - start
        metric.add(prediction=logits[0].argmax(0).numpy(), reference=labels)
    return 100 * float(metric.figures()["mean_iou"]), seconds / scenes


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--formats", nargs="+", default=[".onnx", ".xml"])
    parser.add_argument("--precisions", nargs="+", default=["float32", "float16-weights", "float16", "int8"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = packaged_model_path()
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, dtype=torch.float32).eval()
    processor = SegmentationImageProcessor.from_pretrained(folder)
    iou, seconds = mean_iou(model, processor, options.scenes)
    rows = [{"file": "PyTorch", "mean_iou": round(iou, 3), "ms": round(1000 * seconds)}]
    print(rows[-1], flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        images = []
        for index in range(CALIBRATION_SCENES):
            image, _ = draw_scene(CALIBRATION_SEED + index, EVALUATION_SIZE)
            images.append(Path(temporary) / f"{index}.png")
            (image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))).save(images[-1])
        for suffix in options.formats:
            for precision in options.precisions:
                file = Path(temporary) / f"{precision}{suffix}"
                calibration = images if precision == "int8" else []
                row: dict = {"file": suffix, "precision": precision}
                try:
                    row["error"] = export_model(
                        model, processor, file, size=EVALUATION_SIZE, precision=precision, calibration=calibration
                    )
                    iou, seconds = mean_iou(ExportedModel(file), processor, options.scenes)
                    megabytes = sum(part.stat().st_size for part in file.parent.glob(f"{precision}.*")) / 1e6
                    row.update(mean_iou=round(iou, 3), ms=round(1000 * seconds), megabytes=round(megabytes, 1))
                except (ExportError, ImportError) as error:
                    row["failed"] = str(error)
                for part in file.parent.glob(f"{precision}.*"):
                    part.unlink()
                rows.append(row)
                print(row, flush=True)
    if options.json:
        options.json.write_text(json.dumps({"scenes": options.scenes, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
