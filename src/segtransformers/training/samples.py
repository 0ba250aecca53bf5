# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Datasets of images and label maps for a trainer, and their collator."""

import signal
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info
from transformers.utils import logging

from ..escaping import printable, short_repr

if TYPE_CHECKING:
    from .sampling import Sampling

logger = logging.get_logger(__name__)

IGNORE_INDEX = 255
SAMPLE_INDEX = "sample_index"  # key of a batch: `(B,)` indices of its samples


class TrainingDataset(Dataset):
    """Augmented samples, which depend on the seed, the epoch and the index alone.

    Each epoch has other crops and colours, and a resumed run sees the same samples as an uninterrupted one.

    Args:
        data: a [`SegmentationDataset`], or any object with a length, `names`, and items with `image` and `labels`.
        augment: a function of image, labels and `seed=` (three numbers) that returns a dict of `pixel_values`
            `(3, h, w)` and `labels` `(h, w)`, or `(num_labels, h, w)` of multi-label data, such as
            [`TrainingAugmentation`].
        seed: the seed of the run.
        repeat: number of passes over `data` per epoch, for a data set that is smaller than a batch.
        sampling: a [`Sampling`], which chooses the sample of an item. None takes all samples in order.
    """

    def __init__(
        self,
        data: Any,
        augment: Callable[..., Mapping[str, torch.Tensor]],
        seed: int = 0,
        repeat: int = 1,
        sampling: "Sampling | None" = None,
    ):
        self.data, self.augment, self.seed, self.repeat = data, augment, seed, repeat
        self.sampling = sampling
        self._warned = False
        # shared memory, so that persistent worker processes see the epoch change
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return self.repeat * (len(self.data) if self.sampling is None else len(self.sampling))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} is outside a dataset of {len(self)}")
        if get_worker_info() is not None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C and still needs batches
        seed = (self.seed, int(self._epoch), index)
        sample = self.data[self._sample_of(index)]
        if not self._warned and np.all(np.asarray(sample.labels) == IGNORE_INDEX):
            self._warned = True
            name = printable(self.name(index))
            logger.warning(
                f"the mask of {name} has no pixel with a class, so its loss is 0: remove it, or label it; others like "
                "it are not reported"
            )
        return dict(self.augment(sample.image, sample.labels, seed=seed))

    def name(self, index: int) -> str:
        """Return the name of a sample."""
        return self.data.names[self._sample_of(index)]

    def _sample_of(self, index: int) -> int:
        if self.sampling is None:
            return index % len(self.data)
        # another seed than that of the augmentation, so that crop and sample are independent
        return self.sampling.sample((self.seed, int(self._epoch), index, 1), index % len(self.sampling))

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; call it before the first item of the epoch is read."""
        self._epoch.fill_(epoch)


class JoinedDataset(Dataset):
    """The samples of several data sets with the same classes, one after the other.

    Args:
        parts: [`SegmentationDataset`]s.

    Raises:
        ValueError: if their classes differ, or only some are multi-label.
    """

    def __init__(self, parts: Sequence[Any]):
        self.parts = list(parts)
        for part in self.parts[1:]:
            if part.id2label != self.parts[0].id2label:
                ours, theirs = ([*one.id2label.values()] for one in (self.parts[0], part))
                raise ValueError(
                    f"{part.source} has the classes {short_repr(theirs, 200)}, not {short_repr(ours, 200)}"
                )
            if getattr(part, "multi_label", False) != getattr(self.parts[0], "multi_label", False):
                raise ValueError(
                    f"{part.source} and {self.parts[0].source} must be both multi-label data, or none of them"
                )
        self.names = [name for part in self.parts for name in part.names]
        self._ends = np.cumsum([len(part) for part in self.parts])

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Any:
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self.parts[part][index - (int(self._ends[part - 1]) if part else 0)]


class IndexedDataset(Dataset):
    """The items of a dataset of this module with their index as `sample_index`, which lets a trainer name a batch."""

    def __init__(self, dataset: "TrainingDataset | EvaluationDataset"):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {SAMPLE_INDEX: torch.tensor(index), **self.dataset[index]}

    def set_epoch(self, epoch: int) -> None:
        """See [`TrainingDataset.set_epoch`]."""
        if isinstance(self.dataset, TrainingDataset):
            self.dataset.set_epoch(epoch)


class EvaluationDataset(Dataset):
    """Samples with images from the image processor and labels at their own size.

    Args:
        data: see [`TrainingDataset`].
        processor: the model's image processor.
    """

    def __init__(self, data: Any, processor: Any):
        self.data, self.processor = data, processor

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        sample = self.data[index]
        pixel_values = self.processor(images=sample.image, return_tensors="pt")["pixel_values"][0]
        labels = torch.as_tensor(sample.labels)
        labels = labels if labels.dim() == 3 else labels.long()
        return {"pixel_values": pixel_values, "labels": labels}

    def name(self, index: int) -> str:
        """Return the name of a sample."""
        return self.data.names[index]


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Collate samples into a batch: stack tensors of equal size and keep others in a list.

    A tensor `(B,)` of sample indices comes first in a batch that has lists, because Trainer takes the batch size from
    the first tensor.

    Raises:
        ValueError: if the samples are not dicts.
    """
    if not isinstance(samples[0], Mapping):
        raise ValueError(
            "samples must be dicts of pixel_values and labels, as from TrainingDataset and EvaluationDataset, got "
            f"{type(samples[0]).__name__}"
        )
    batch: dict[str, Any] = {}
    for name in sorted(samples[0], key=lambda name: name != SAMPLE_INDEX):
        values = [torch.as_tensor(sample[name]) for sample in samples]
        batch[name] = torch.stack(values) if len({value.shape for value in values}) == 1 else values
    if any(isinstance(value, list) for value in batch.values()) and SAMPLE_INDEX not in batch:
        batch = {SAMPLE_INDEX: torch.arange(len(samples)), **batch}
    return batch


__all__ = ["SAMPLE_INDEX", "EvaluationDataset", "IndexedDataset", "TrainingDataset", "collate"]
