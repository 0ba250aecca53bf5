# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Train the packaged model, a small ViT-Adapter with UperNet, on drawn scenes and evaluate it.

The model is trained from scratch on scenes drawn on the fly and saved in half precision. It is then evaluated on
scenes with other seeds and compared with the best of several classifiers that see only the colour of a pixel.

    python scripts/train_scene_model.py --output src/segtransformers/packaged/scenes-vit-adapter \\
        --checkpoints checkpoints

Needs the extra `train`.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

import segtransformers
from segtransformers import SegUperNetConfig, SegUperNetForSemanticSegmentation, ViTAdapterConfig
from segtransformers.datasets.scenes import (
    FIRST_TRAINING_SEED,
    PALETTE,
    SCENE_CLASSES,
    SceneDataset,
    draw_scene,
    normalized,
)

CROP = (128, 128)
TRAINING_SIZES = (
    *((128, 128), (128, 192), (128, 192), (160, 240)),
    *((128, 128), (128, 192), (160, 240), (256, 384)),
)
SCALE_RANGE = (0.6, 1.7)
EVALUATION_SIZE = (128, 192)
HISTOGRAM_SCENES = 3000


def build_config() -> SegUperNetConfig:
    backbone = ViTAdapterConfig(
        trunk="vit_tiny_patch16_224",
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        use_prefix_tokens=False,
        pretrain_image_size=128,
        spatial_prior_channels=32,
        deformable_value_ratio=0.5,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return SegUperNetConfig(
        backbone_config=backbone,
        hidden_size=64,
        use_auxiliary_head=False,
        id2label=dict(enumerate(SCENE_CLASSES)),
        label2id={name: index for index, name in enumerate(SCENE_CLASSES)},
        palette=PALETTE,
        inference_mode="slide",
        window_size=[128, 128],
        window_stride=[85, 85],
        window_batch_size=8,
    )


def train(options: argparse.Namespace) -> tuple[SegUperNetForSemanticSegmentation, int]:
    """Train on `steps * batch_size` drawn scenes. Return the model and the step at which this run resumed."""
    set_seed(options.seed)
    model = SegUperNetForSemanticSegmentation(build_config())
    first = FIRST_TRAINING_SEED * (1 + options.seed)
    scenes = SceneDataset(range(first, first + options.steps * options.batch_size), TRAINING_SIZES, CROP, SCALE_RANGE)
    arguments = TrainingArguments(
        output_dir=options.checkpoints,
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        weight_decay=0.05,
        warmup_steps=min(200, options.steps // 10),
        lr_scheduler_type="cosine",
        max_grad_norm=1.0,
        bf16=options.bf16,
        use_cpu=True,
        seed=options.seed,
        dataloader_num_workers=options.workers,
        logging_steps=50,
        save_steps=500,
        save_total_limit=1,
        report_to=[],
        disable_tqdm=True,
    )
    last = get_last_checkpoint(options.checkpoints) if Path(options.checkpoints).is_dir() else None
    Trainer(model=model, args=arguments, train_dataset=scenes).train(resume_from_checkpoint=last)
    return model, int(last.rpartition("-")[2]) if last else 0


def intersection_over_union(confusion: np.ndarray) -> np.ndarray:
    """Return the IoU of each class, `(classes,)`, from a confusion matrix with true classes in rows."""
    hits = np.diag(confusion)
    return hits / np.maximum(confusion.sum(0) + confusion.sum(1) - hits, 1)


def count(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return the confusion matrix of two label maps of equal shape."""
    classes = len(SCENE_CLASSES)
    pairs = labels.astype(np.int64).ravel() * classes + predicted.ravel()
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def color_bins(image: np.ndarray, bits: int) -> np.ndarray:
    """Return the index of each pixel's cell, `(H, W)`, in a colour cube with `2 ** bits` cells per side."""
    cells = image.astype(np.int64) >> (8 - bits)
    return (cells[..., 0] << 2 * bits) + (cells[..., 1] << bits) + cells[..., 2]


def color_classifiers(seed: int) -> dict[str, tuple[int, np.ndarray]]:
    """Count lookup tables from colour cells to classes on training scenes.

    Returns:
        name -> (bits, table). The tables differ in the number of cells and in the exponent of the class frequencies:
        1 gives the best accuracy, and lower exponents find rare classes more often.
    """
    classes, counts = (
        len(SCENE_CLASSES),
        {bits: np.zeros((1 << 3 * bits, len(SCENE_CLASSES)), np.int64) for bits in (4, 5)},
    )
    first = FIRST_TRAINING_SEED * (1 + seed)
    for scene in range(first, first + HISTOGRAM_SCENES):
        image, labels = draw_scene(scene, EVALUATION_SIZE)
        for bits, table in counts.items():
            pairs = color_bins(image, bits) * classes + labels
            table += np.bincount(pairs.ravel(), minlength=table.size).reshape(table.shape)
    found = {}
    for bits, table in counts.items():
        frequencies = table.sum(0) / table.sum()
        for weight in (0.0, 0.25, 0.5, 0.75, 1.0):
            scores = (table + 1e-3 * frequencies) / frequencies ** (1 - weight)
            found[f"{1 << bits}^3 cells, class frequencies to the power {weight}"] = (bits, scores.argmax(1))
    return found


@torch.inference_mode()
def evaluate(model: SegUperNetForSemanticSegmentation, scenes: int, seed: int) -> dict:
    """Evaluate the model and the best colour-only classifier on the same scenes, with counts over all pixels."""
    model.eval()
    colors = color_classifiers(seed)
    matrices = {name: 0 for name in ("model", *colors)}
    for scene in range(scenes):
        image, labels = draw_scene(scene, EVALUATION_SIZE)
        logits = model(pixel_values=normalized(image)[None]).logits
        matrices["model"] += count(labels, logits[0].argmax(0).numpy())
        for name, (bits, table) in colors.items():
            matrices[name] += count(labels, table[color_bins(image, bits)])
    ious = {name: intersection_over_union(matrix) for name, matrix in matrices.items()}
    best = max(colors, key=lambda name: ious[name].mean())

    def figures(name: str) -> dict:
        return {
            "mean_iou": round(float(ious[name].mean()), 4),
            "minimum_iou": round(float(ious[name].min()), 4),
            "pixel_accuracy": round(float(np.trace(matrices[name]) / matrices[name].sum()), 4),
            "iou": {label: round(float(value), 4) for label, value in zip(SCENE_CLASSES, ious[name], strict=True)},
        }

    return {
        "model": figures("model"),
        "color_only": {"classifier": best, "fitted_on_scenes": HISTOGRAM_SCENES, **figures(best)},
        "scenes": scenes,
        "scene_seeds": [0, scenes - 1],
        "scene_size": list(EVALUATION_SIZE),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="folder for the model and its metrics.json")
    parser.add_argument(
        "--checkpoints", required=True, help="folder for checkpoints; training resumes from the last one"
    )
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--scenes", type=int, default=200, help="number of evaluation scenes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1, help="processes that draw scenes; 0 draws between the steps")
    parser.add_argument("--bf16", action="store_true", help="train with bfloat16 autocast")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    started = time.perf_counter()
    model, resumed_at = train(options)
    seconds = time.perf_counter() - started
    model.half().save_pretrained(options.output)

    saved = SegUperNetForSemanticSegmentation.from_pretrained(options.output, dtype=torch.float32)
    saved.config.save_pretrained(
        options.output
    )  # now with dtype float32, because half precision is many times slower on CPUs
    metrics = evaluate(saved, options.scenes, options.seed)
    metrics["training"] = {
        "steps": options.steps,
        "batch_size": options.batch_size,
        "crop": list(CROP),
        "scale_range": list(SCALE_RANGE),
        "learning_rate": options.learning_rate,
        "bf16": options.bf16,
        "seed": options.seed,
        "threads": options.threads,
        "resumed_at_step": resumed_at,
        "seconds_since": round(seconds),
        "parameters": sum(parameter.numel() for parameter in saved.parameters()),
    }
    metrics["versions"] = {module.__name__: module.__version__ for module in (segtransformers, torch, transformers, np)}
    text = json.dumps(metrics, indent=2) + "\n"
    (Path(options.output) / "metrics.json").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
