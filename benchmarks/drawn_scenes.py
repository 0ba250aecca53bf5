# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Measure what choices of training are worth on drawn scenes: a small UperNet, several seeds each.

    python benchmarks/drawn_scenes.py imbalance       # a class with 0.5 % of the pixels: weights, Dice, sampling
    python benchmarks/drawn_scenes.py pseudo-labels   # 20 labelled scenes, then with and without 180 unlabelled ones
    python benchmarks/drawn_scenes.py distillation    # 20 labelled scenes, with and without a teacher

Each figure is the mean over the seeds, with the lowest and the highest, on 60 other scenes.
"""

import argparse
import copy
import dataclasses
import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PrinterCallback, TrainingArguments
from transformers.utils import logging

from segtransformers import (
    SegmentationImageProcessor,
    SegUperNetConfig,
    SegUperNetForSemanticSegmentation,
    ViTAdapterConfig,
)
from segtransformers.datasets.class_counts import ClassCounts
from segtransformers.datasets.scenes import FIRST_TRAINING_SEED, SCENE_CLASSES, draw_scene, normalized
from segtransformers.inference import segment_with_confidence
from segtransformers.training import (
    EvaluationDataset,
    Recipe,
    SegmentationTrainer,
    TrainingAugmentation,
    TrainingDataset,
    apply_losses,
    get_recipe,
)
from segtransformers.training.distillation import Distillation
from segtransformers.training.recipe_settings import SamplingSettings
from segtransformers.training.sampling import MixedSampling, build_sampling

SIDE, SIZE = 64, (64, 96)
RARE = SCENE_CLASSES.index("car")
IGNORED = 255
LABELLED, UNLABELLED = 20, 180  # scenes


@dataclass
class Scene:
    name: str
    image: Image.Image
    labels: np.ndarray


class Scenes:
    """Drawn scenes in memory."""

    def __init__(self, seeds):
        self.samples = []
        for seed in seeds:
            image, labels = draw_scene(seed, SIZE)
            self.samples.append(Scene(f"scene-{seed}", Image.fromarray(image), labels))
        self.names = [sample.name for sample in self.samples]

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]

    def counts(self) -> ClassCounts:
        pixels = [np.bincount(s.labels.ravel(), minlength=256)[: len(SCENE_CLASSES)] for s in self.samples]
        return ClassCounts(np.stack(pixels).astype(np.int64))


def crop(image, labels, seed):
    """Crop at random, and mirror half of the images."""
    random = np.random.default_rng(seed)
    left = int(random.integers(labels.shape[1] - SIDE + 1))
    step = 1 if random.random() < 0.5 else -1
    pixels, labels = (np.asarray(array)[:, left : left + SIDE][:, ::step] for array in (image, labels))
    labels = torch.from_numpy(np.ascontiguousarray(labels).astype(np.int64))
    return {"pixel_values": normalized(np.ascontiguousarray(pixels)), "labels": labels}


def build(width: int) -> SegUperNetForSemanticSegmentation:
    backbone = ViTAdapterConfig(
        trunk="vit_tiny_patch16_224",
        hidden_size=width,
        num_hidden_layers=4,
        num_attention_heads=4,
        use_prefix_tokens=False,
        pretrain_image_size=SIDE,
        spatial_prior_channels=16,
        deformable_value_ratio=0.5,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    names = dict(enumerate(SCENE_CLASSES))
    config = SegUperNetConfig(
        backbone_config=backbone, hidden_size=width, auxiliary_channels=16, id2label=names, classifier_dropout=0.0
    )
    return SegUperNetForSemanticSegmentation(config)


def processor() -> SegmentationImageProcessor:
    return SegmentationImageProcessor(do_resize=False)


def fit(
    data,
    seed: int,
    steps: int,
    width: int = 48,
    recipe: Any = None,
    sampling: Any = None,
    teacher: Any = None,
    augment: Any = crop,
    model: Any = None,
):
    """Train a model, or one from random weights. Return it, its mean IoU, and the IoU of the rare class, in percent."""
    torch.manual_seed(seed)
    model = build(width) if model is None else model.train()
    if recipe is not None:
        apply_losses(model, recipe, data.counts)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=8,
            per_device_eval_batch_size=8,
            learning_rate=2e-3,
            lr_scheduler_type="cosine",
            warmup_steps=20,
            max_grad_norm=1.0,
            max_steps=steps,
            seed=seed,
            save_strategy="no",
            logging_steps=10**6,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = SegmentationTrainer(
            model,
            arguments,
            train_dataset=TrainingDataset(data, augment, seed=seed, sampling=sampling),
            eval_dataset=EvaluationDataset(Scenes(range(60)), processor()),
            distillation=Distillation(teacher, model, processor(), processor()) if teacher is not None else None,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        figures = trainer.evaluate()
    return model.eval(), 100 * figures["eval_mean_iou"], 100 * trainer.class_metrics["per_category_iou"][RARE]


def show(name: str, *columns) -> None:
    texts = [f"{np.mean(values):6.1f} ({min(values):.1f} to {max(values):.1f})" for values in columns]
    print(f"    {name:34}" + "".join(f"{text:>24}" for text in texts), flush=True)


def unbalanced(count: int) -> Scenes:
    """Return scenes of which so few have a car that 0.5 % of the pixels belong to it."""
    with_car, without, pixels = [], [], 0
    for seed in range(FIRST_TRAINING_SEED, FIRST_TRAINING_SEED + 8 * count):
        cars = (draw_scene(seed, SIZE)[1] == RARE).sum()
        if cars and pixels + cars <= 0.005 * count * SIZE[0] * SIZE[1]:
            pixels += cars
            with_car.append(seed)
        elif not cars:
            without.append(seed)
    return Scenes([*with_car, *without][:count])


def imbalance(options) -> None:
    data = unbalanced(120)
    counts = data.counts()
    share = 100 * counts.pixels[RARE] / counts.pixels.sum()
    print(f"car: {share:.2f} % of the pixels, in {(counts.per_sample[:, RARE] > 0).sum()} of {len(data)} scenes")
    print(f"    {'':34}{'IoU of car':>24}{'mean IoU':>24}")
    recipe = Recipe(name="own")
    dice = ("cross_entropy", {"name": "dice", "weight": 1.0})
    rare_class = SamplingSettings(method="rare_class")
    for name, changes, settings in (
        ("cross entropy", {}, None),
        ("class weights (auto)", {"class_weights": "auto"}, None),
        ("cross entropy + Dice", {"losses": dice, "auxiliary_losses": dice}, None),
        ("rare-class sampling", {}, rare_class),
        ("class weights + sampling", {"class_weights": "auto"}, rare_class),
    ):
        found = [
            fit(
                data,
                seed,
                options.steps,
                recipe=dataclasses.replace(recipe, **changes),
                sampling=None if settings is None else build_sampling(settings, counts),
            )[1:]
            for seed in range(options.seeds)
        ]
        show(name, [rare for _, rare in found], [mean for mean, _ in found])


def augmentation() -> TrainingAugmentation:
    """Return the augmentation of the small recipe, for these scenes: scales, crops, mirror images, colours."""
    recipe = get_recipe("small-vit-adapter")
    settings = dataclasses.replace(
        recipe.augmentation, shortest_edge=SIDE, longest_edge=4 * SIDE, crop_size=(SIDE, SIDE)
    )
    return TrainingAugmentation.from_recipe(dataclasses.replace(recipe, augmentation=settings), processor())


def pseudo_labels(options) -> None:
    """Train on labelled scenes, label others with the model, and train it further with and without these."""
    labelled = Scenes(range(FIRST_TRAINING_SEED, FIRST_TRAINING_SEED + LABELLED))
    first, alone, joined, shares = [], [], [], []
    for seed in range(options.seeds):
        model, mean, _ = fit(labelled, seed, options.steps, augment=augmentation())
        first.append(mean)
        more = Scenes(range(FIRST_TRAINING_SEED + LABELLED, FIRST_TRAINING_SEED + LABELLED + UNLABELLED))
        for sample in more.samples:
            labels, confidence = segment_with_confidence(model, processor(), sample.image)
            kept = (confidence >= 0.8).numpy()
            shares.append((kept.mean(), (labels.numpy() == sample.labels)[kept].mean() if kept.any() else 1.0))
            sample.labels = np.where(kept, labels.numpy(), IGNORED).astype(np.uint8)
        data = Scenes([])
        data.samples = [*labelled.samples, *more.samples]
        data.names = [sample.name for sample in data.samples]
        half = MixedSampling(LABELLED, UNLABELLED, LABELLED / UNLABELLED)  # half of the draws are labelled scenes
        start = copy.deepcopy(model)
        alone.append(fit(labelled, seed, options.steps, augment=augmentation(), model=start)[1])
        joined.append(fit(data, seed, options.steps, augment=augmentation(), sampling=half, model=model)[1])
    kept, right = np.mean(shares, 0)
    print(f"{100 * kept:.0f} % of the pixels labelled, {100 * right:.0f} % of them right")
    print(f"    {'':34}{'mean IoU':>24}")
    show(f"{LABELLED} labelled", first)
    show("as many steps more", alone)
    show(f"as many more with {UNLABELLED} pseudo-labelled", joined)


def distillation(options) -> None:
    many = Scenes(range(FIRST_TRAINING_SEED, FIRST_TRAINING_SEED + LABELLED + UNLABELLED))
    teacher, mean, _ = fit(many, 0, 2 * options.steps, width=96, augment=augmentation())
    print(f"teacher, 96 wide, {LABELLED + UNLABELLED} labelled scenes: mean IoU {mean:.1f}", flush=True)
    data = Scenes(range(FIRST_TRAINING_SEED, FIRST_TRAINING_SEED + LABELLED))
    print(f"    {'':34}{'mean IoU':>24}")
    for name, chosen in ((f"{LABELLED} labelled", None), (f"{LABELLED} labelled + teacher", teacher)):
        found = [
            fit(data, seed, options.steps, teacher=chosen, augment=augmentation())[1] for seed in range(options.seeds)
        ]
        show(name, found)


def main() -> None:
    studies = {"imbalance": imbalance, "pseudo-labels": pseudo_labels, "distillation": distillation}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=studies)
    parser.add_argument("--steps", type=int, default=1000, help="300 are too few: the rare class is not learned")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    logging.set_verbosity_error()
    studies[options.study](options)


if __name__ == "__main__":
    main()
