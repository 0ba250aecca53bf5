# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""transformers' image-segmentation pipeline with what its own lacks: several scales, mirror images, other windows,
batches of images of different sizes, and progress.

    segmenter = pipeline("image-segmentation", model=folder, pipeline_class=SegmentationPipeline, flip=True)

In a folder or repository that `save_pretrained` wrote, it is a task of its own:

    segmenter = pipeline("semantic-segmentation", model=repository, trust_remote_code=True)
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers.image_utils import load_image
from transformers.pipelines import ImageSegmentationPipeline
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator

from .segmentation import image_size, image_views, multi_scale_options, segment_views


class SegmentationPipeline(ImageSegmentationPipeline):
    """Semantic segmentation by the checkpoint's protocol or another, label maps made band by band.

    Results are those of transformers' pipeline: for each image a list of `{"score": None, "label": name, "mask": PIL
    image of the photo's size}`. Options may be given to `pipeline(...)` or to a call:

    Args:
        multi_scale: whether to use the checkpoint's own multi-scale protocol: its scales, and mirror images.
        scales, flip, window, stride: as of [`~inference.segment_image`]. They override `multi_scale`.
        batch_size: images that share a call of the network where their sizes after the resize are the same; other
            images of the batch are run one by one.
        progress: whether a list of images shows a progress bar.
        timeout: in seconds, for images that are fetched from the web.
    """

    def __init__(self, *args, progress: bool = False, **kwargs):
        self.progress = progress
        super().__init__(*args, **kwargs)

    def _sanitize_parameters(self, **kwargs):
        unknown = set(kwargs) - {"multi_scale", "scales", "flip", "window", "stride", "timeout", "subtask"}
        if unknown:
            raise TypeError(f"{type(self).__name__} takes no {', '.join(sorted(unknown))}")
        if kwargs.get("subtask") not in (None, "semantic"):
            raise ValueError(f"subtask must be 'semantic', got {kwargs['subtask']!r}")
        views = {name: kwargs[name] for name in ("multi_scale", "scales", "flip", "timeout") if name in kwargs}
        return views, {name: kwargs[name] for name in ("window", "stride") if name in kwargs}, {}

    def __call__(self, inputs: Any, progress: bool | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        if not isinstance(inputs, list) or not (self.progress if progress is None else progress):
            return super().__call__(inputs, **kwargs)
        items: Any = _ListDataset(inputs)
        return list(tqdm(super().__call__(items, **kwargs), total=len(inputs), unit="image"))

    def get_iterator(self, inputs, num_workers, batch_size, preprocess_params, forward_params, postprocess_params):
        """As transformers has it, but batches are lists, not tensors."""
        dataset: Any
        if hasattr(inputs, "__len__"):
            dataset = PipelineDataset(inputs, self.preprocess, preprocess_params)
        else:
            dataset = PipelineIterator(inputs, self.preprocess, preprocess_params)
            num_workers = min(num_workers, 1)  # each worker would go through all of it
        loader = DataLoader(dataset, batch_size, num_workers=num_workers, collate_fn=_lists)
        outputs = PipelineIterator(loader, self.forward, forward_params, loader_batch_size=batch_size)
        return PipelineIterator(outputs, self.postprocess, postprocess_params)

    def preprocess(self, image, multi_scale=False, scales=None, flip=None, timeout=None):  # type: ignore[override]
        image = load_image(image, timeout=timeout)
        options: dict[str, Any] = multi_scale_options(self.image_processor) if multi_scale else {}
        given = {"scales": scales, "flip": flip}
        options |= {name: value for name, value in given.items() if value is not None}
        views = image_views(self.image_processor, image, **options)
        return {"views": [views], "sizes": [image_size(image)]}

    def _forward(self, model_inputs, window=None, stride=None):  # type: ignore[override]
        views, sizes = model_inputs["views"], model_inputs["sizes"]
        return {"labels": segment_views(self.model, views, sizes, window=window, stride=stride)}

    def postprocess(self, model_outputs):  # type: ignore[override]
        (labels,) = model_outputs["labels"]
        values = labels.numpy()
        names: Any = self.model.config.id2label
        return [
            {"score": None, "label": names[index], "mask": Image.fromarray(np.uint8(255) * (values == index))}
            for index in np.flatnonzero(torch.bincount(labels.flatten()).numpy()).tolist()
        ]


class _ListDataset(Dataset):
    """A list that transformers iterates over, and gives back nothing before it is asked."""

    def __init__(self, items: Sequence[Any]):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def _lists(batch: Iterable[dict[str, list[Any]]]) -> dict[str, list[Any]]:
    batch = list(batch)
    return {key: [value for item in batch for value in item[key]] for key in batch[0]}


__all__ = ["SegmentationPipeline"]
