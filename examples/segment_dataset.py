# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Segment a large data set of images in shards, by any number of jobs on any number of machines.

    python segment_dataset.py images/ label-maps/ --shards 1000                        # one job does all shards
    python segment_dataset.py images/ label-maps/ --shards 1000 --job 3 --jobs 40      # the fourth of 40 jobs

IMAGES is a folder of images, a Hub id, or a folder of parquet files with a column `image`. Each shard becomes a parquet
file of label maps (PNG files) in the order of the images. A file appears when its shard is complete, so a job that was
stopped continues when it is started again. In an array of jobs of Slurm, the job is `$SLURM_ARRAY_TASK_ID`.
"""

import argparse
import os
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

import segtransformers  # registers the models with transformers
from segtransformers.inference import segment_image


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("output", type=Path, help="folder for the parquet files")
    parser.add_argument("--split", default="train")
    parser.add_argument("--model", default=str(segtransformers.packaged_model_path()), help="a folder or a Hub id")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shards", type=int, default=100, help="the same number for all jobs")
    parser.add_argument("--job", type=int, default=0, help="from 0 on")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    if not 0 <= options.job < options.jobs:
        parser.error(f"--job must be 0 to {options.jobs - 1}, got {options.job}")

    images = datasets.load_dataset(options.images, split=options.split).select_columns("image")
    model = AutoModelForSemanticSegmentation.from_pretrained(options.model, dtype=torch.float32).eval()
    model = segtransformers.optimize_for_inference(model.to(options.device))
    processor = AutoImageProcessor.from_pretrained(options.model)
    dtype = np.uint8 if len(model.config.id2label) <= 256 else np.uint16

    def label_map(row):
        labels = segment_image(model, processor, row["image"].convert("RGB")).cpu().numpy()
        return {"label_map": Image.fromarray(labels.astype(dtype))}

    options.output.mkdir(parents=True, exist_ok=True)
    count = min(options.shards, len(images))
    for index in range(options.job, count, options.jobs):
        target = options.output / f"{index:06}-of-{count:06}.parquet"
        if target.exists():
            continue
        shard = images.shard(count, index, contiguous=True)
        features = datasets.Features({"label_map": datasets.Image()})
        # new_fingerprint: hashing the model for the cache would take longer than a shard
        labelled = shard.map(
            label_map, remove_columns="image", features=features, new_fingerprint=f"{target.stem}-{os.getpid()}"
        )
        unfinished = target.with_suffix(f".{os.getpid()}.unfinished")
        labelled.to_parquet(unfinished)
        unfinished.replace(target)
        labelled.cleanup_cache_files()
        print(f"{target}: {len(shard)} images")


if __name__ == "__main__":
    main()
