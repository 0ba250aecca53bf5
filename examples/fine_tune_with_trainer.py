# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Fine-tune a model with transformers' own Trainer, on a folder of images and masks.

    python fine_tune_with_trainer.py my-data trained --steps 200

The folder has images/train, images/validation, masks/train, masks/validation and classes.txt with a class in each line.
Masks are grey PNG files of class indices; 255 means no class. `segtransformers train` does more, in one command.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, Trainer, TrainingArguments

import segtransformers  # registers the models with transformers
from segtransformers.metrics import MeanIoU


class Crops(Dataset):
    """A random crop of each image with its mask, mirrored half of the time."""

    def __init__(self, folder, split, processor, size):
        self.images = sorted(path for path in Path(folder, "images", split).iterdir() if path.is_file())
        self.masks = [Path(folder, "masks", split, f"{path.stem}.png") for path in self.images]
        self.processor, self.size = processor, size

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = np.asarray(Image.open(self.images[index]).convert("RGB"))
        mask = np.asarray(Image.open(self.masks[index]))
        height, width = (max(self.size - side, 0) for side in mask.shape)
        image = np.pad(image, [(0, height), (0, width), (0, 0)])
        mask = np.pad(mask, [(0, height), (0, width)], constant_values=255)
        y, x = (np.random.randint(side - self.size + 1) for side in mask.shape)
        crop = np.s_[y : y + self.size, x : x + self.size]
        image, mask = image[crop], mask[crop]
        if np.random.rand() < 0.5:
            image, mask = image[:, ::-1].copy(), mask[:, ::-1].copy()
        batch = self.processor(image, segmentation_maps=mask, do_resize=False, return_tensors="pt")
        return {name: values[0] for name, values in batch.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("output")
    parser.add_argument("--model", default=str(segtransformers.packaged_model_path()), help="a folder or a Hub id")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--crop-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=4)
    options = parser.parse_args()

    names = Path(options.data, "classes.txt").read_text(encoding="utf-8").splitlines()
    classes = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    model = AutoModelForSemanticSegmentation.from_pretrained(options.model, **classes, ignore_mismatched_sizes=True)
    processor = AutoImageProcessor.from_pretrained(options.model)
    train, validation = (Crops(options.data, split, processor, options.crop_size) for split in ("train", "validation"))
    arguments = TrainingArguments(
        options.output,
        max_steps=options.steps,
        learning_rate=5e-4,
        per_device_train_batch_size=options.batch_size,
        batch_eval_metrics=True,  # counts pixels batch by batch, instead of keeping all logits
        report_to="none",
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=processor,
        compute_metrics=MeanIoU(len(names)),
    )
    trainer.train()
    print(f"mean IoU {trainer.evaluate()['eval_mean_iou']:.4f}")
    trainer.save_model(options.output)  # with the image processor


if __name__ == "__main__":
    main()
