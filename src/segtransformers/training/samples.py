# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Data sets of images and labels as a trainer takes them."""

import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, get_worker_info

SAMPLE_INDEX = "sample_index"  # of a batch: `(B,)`, which items of the data set it holds


class TrainingDataset(Dataset):
    """Augmented samples: in every epoch others, and the same ones wherever an interrupted run goes on.

    Args:
        data: what [`load_segmentation_dataset`] gives, or anything with a length, `names`, and items that have `image`
            and `labels`.
        augment: from an image, its labels and `seed=`, three numbers, to a dict of `pixel_values` `(3, h, w)` and
            `labels` `(h, w)`, as [`TrainingAugmentation`].
        seed: of the run.
        repeat: how often the data set is gone through in an epoch, for one that is smaller than a batch.

    Attributes:
        with_index: whether items have their index, too, as [`SegmentationTrainer`] wants it. No model takes it.
    """

    def __init__(self, data: Any, augment: Callable[..., Mapping[str, torch.Tensor]], seed: int = 0, repeat: int = 1):
        self.data, self.augment, self.seed, self.repeat = data, augment, seed, repeat
        self.with_index = False
        # shared memory: worker processes that outlive an epoch see it change
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return self.repeat * len(self.data)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        if get_worker_info() is not None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which still wants batches
        sample = self.data[index % len(self.data)]
        seed = (self.seed, int(self._epoch), index)
        item = self.augment(sample.image, sample.labels, seed=seed)
        return {SAMPLE_INDEX: torch.tensor(index), **item} if self.with_index else dict(item)

    def name(self, index: int) -> str:
        """What the sample of an item is called."""
        return self.data.names[index % len(self.data)]

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch it is, before its first item is asked for."""
        self._epoch.fill_(epoch)


class EvaluationDataset(Dataset):
    """Samples as the processor prepares them for the model, with their labels as they are.

    Args:
        data: as of [`TrainingDataset`].
        processor: the model's image processor.
    """

    def __init__(self, data: Any, processor: Any):
        self.data, self.processor = data, processor

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        sample = self.data[index]
        pixel_values = self.processor(images=sample.image, return_tensors="pt")["pixel_values"][0]
        labels = torch.as_tensor(sample.labels).long()
        return {"pixel_values": pixel_values, "labels": labels}

    def name(self, index: int) -> str:
        """What the sample of an item is called."""
        return self.data.names[index]


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch: tensors are stacked, or stay in a list where their sizes differ.

    A tensor with one number for each sample comes first: Trainer counts the samples by the first tensor that it finds.

    Raises:
        ValueError: if the samples are no dicts.
    """
    if not isinstance(samples[0], Mapping):
        raise ValueError(
            "samples must be dicts of pixel_values and labels, as those of TrainingDataset and EvaluationDataset, got "
            f"{type(samples[0]).__name__}"
        )
    batch: dict[str, Any] = {}
    for name in sorted(samples[0], key=lambda name: name != SAMPLE_INDEX):
        values = [torch.as_tensor(sample[name]) for sample in samples]
        batch[name] = torch.stack(values) if len({value.shape for value in values}) == 1 else values
    if any(isinstance(value, list) for value in batch.values()) and SAMPLE_INDEX not in batch:
        batch = {SAMPLE_INDEX: torch.arange(len(samples)), **batch}
    return batch


__all__ = ["SAMPLE_INDEX", "EvaluationDataset", "TrainingDataset", "collate"]
