# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""transformers' image-segmentation pipeline with scales, mirrored views, other windows, batches of images of different
sizes, and a progress bar.

    segmenter = SegmentationPipeline(folder, flip=True)
    segmenter = pipeline("image-segmentation", model=folder, pipeline_class=SegmentationPipeline, flip=True)

The first loads the model itself and optimizes it for inference. In a folder or repository that `save_pretrained` wrote,
it is a task of its own:

    segmenter = pipeline("semantic-segmentation", model=repository, trust_remote_code=True)
"""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, PreTrainedModel
from transformers.pipelines import ImageSegmentationPipeline
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator

from ..image_processing import label_map_classes, load_image, processor_bands
from ..model_names import model_folder
from ..models.optimize import optimize_for_inference, optimize_if_ours
from .confidence import segment_views_with_confidence
from .protocol import InferenceProtocol
from .views import image_size, image_views, loaded

PROTOCOL_FIELDS = tuple(field.name for field in dataclasses.fields(InferenceProtocol))


class SegmentationPipeline(ImageSegmentationPipeline):
    """Semantic segmentation by the checkpoint's protocol or another one.

    The results are those of transformers' pipeline: for each image a list of `{"score": number, "label": name, "mask":
    PIL image of the image's size}`, one for each class that occurs. Masks of a multi-label model may overlap. The score
    is the mean confidence of the pixels of the mask, from 0 to 1, as [`segment_with_confidence`] returns it;
    transformers' own pipeline has None there. The options are keywords here, not an [`InferenceProtocol`], because
    transformers passes them by name to `pipeline(...)` and to each call, and merges both:

    Args:
        multi_scale: whether to use the checkpoint's multi-scale protocol ([`InferenceProtocol.multi_scale`]).
        scales, flip, window, stride: fields of the [`InferenceProtocol`]. They override those of `multi_scale`.
        batch_size: number of images in one forward pass, if their sizes after the resize are equal. Other images of
            the batch are run one by one.
        model: a model; or a folder, a Hub id, "packaged" or the name of a published model ([`published_model`]), whose
            model and image processor are then loaded.
        optimize: whether to run [`optimize_for_inference`] on the model, on a copy if it was passed as an object. None
            does so for a model that is loaded here.
        image_processor: of the model, or its folder or Hub id. It is needed if `model` is an object.
        dtype: precision of a model that is loaded here. None is that of its files.
        progress: whether to show a progress bar for a list of images.
        timeout: limit for the download of an image, in seconds.

    Raises:
        TypeError: for an unknown option.
        ValueError: if `model` is an object and `image_processor` is missing.
    """

    def __init__(
        self,
        model: PreTrainedModel | str | os.PathLike,
        *args,
        optimize: bool | None = None,
        progress: bool = False,
        **kwargs,
    ):
        is_loaded_here = isinstance(model, str | os.PathLike)
        if isinstance(model, str | os.PathLike):
            model = model_folder(os.fspath(model))
            if kwargs.get("image_processor") is None:
                kwargs["image_processor"] = model
            # transformers drops both names of this option, because its `pipeline` has loaded the model
            dtypes = [kwargs.pop(name) for name in ("dtype", "torch_dtype") if kwargs.get(name) is not None]
            model = AutoModelForSemanticSegmentation.from_pretrained(model, **({"dtype": dtypes[0]} if dtypes else {}))
        if isinstance(kwargs.get("image_processor"), str | os.PathLike):
            kwargs["image_processor"] = AutoImageProcessor.from_pretrained(kwargs["image_processor"])
        self.progress = progress
        super().__init__(model, *args, **kwargs)
        if self.image_processor is None:
            raise ValueError("image_processor is missing: pass the image processor of the model, or its folder")
        # after the model was moved to its device, where other layers are fast
        if is_loaded_here and optimize is not False:
            self.model = optimize_if_ours(self.model, inplace=True)
        elif optimize:
            self.model = optimize_for_inference(self.model)

    def _sanitize_parameters(self, **kwargs):
        unknown = set(kwargs) - {"multi_scale", *PROTOCOL_FIELDS, "timeout", "subtask"}
        if unknown:
            raise TypeError(
                f"{type(self).__name__} takes no {', '.join(sorted(unknown))}: its options are multi_scale, "
                f"{', '.join(PROTOCOL_FIELDS)}, progress and timeout"
            )
        if kwargs.get("subtask") not in (None, "semantic"):
            raise ValueError(f"subtask must be 'semantic', got {kwargs['subtask']!r}")
        return {name: value for name, value in kwargs.items() if name != "subtask"}, {}, {}

    def __call__(self, inputs: Any, progress: bool | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        if not isinstance(inputs, list) or not (self.progress if progress is None else progress):
            return super().__call__(inputs, **kwargs)
        items: Any = _ListDataset(inputs)
        return list(tqdm(super().__call__(items, **kwargs), total=len(inputs), unit="image"))

    def get_iterator(self, inputs, num_workers, batch_size, preprocess_params, forward_params, postprocess_params):
        """Iterate as transformers does, but over batches that are lists instead of tensors."""
        dataset: Any
        if hasattr(inputs, "__len__"):
            dataset = PipelineDataset(inputs, self.preprocess, preprocess_params)
        else:
            dataset = PipelineIterator(inputs, self.preprocess, preprocess_params)
            num_workers = min(num_workers, 1)  # every worker would go through all inputs
        loader = DataLoader(dataset, batch_size, num_workers=num_workers, collate_fn=_lists)
        outputs = PipelineIterator(loader, self.forward, forward_params, loader_batch_size=batch_size)
        return PipelineIterator(outputs, self.postprocess, postprocess_params)

    def preprocess(self, image, multi_scale=False, timeout=None, **options):  # type: ignore[override]
        protocol = InferenceProtocol.multi_scale(self.image_processor) if multi_scale else InferenceProtocol()
        protocol = dataclasses.replace(protocol, **{key: value for key, value in options.items() if value is not None})
        if processor_bands(self.image_processor) is None:
            image = load_image(image, timeout=timeout)
        else:
            image = loaded(image, self.image_processor)
        views = image_views(self.image_processor, image, protocol)
        return {"views": [views], "sizes": [image_size(image)], "protocols": [protocol]}

    def _forward(self, model_inputs):  # type: ignore[override]
        # all images of a batch come from one call, with one protocol
        views, sizes, (protocol, *_) = (model_inputs[key] for key in ("views", "sizes", "protocols"))
        found = segment_views_with_confidence(self.model, views, sizes, protocol)
        return {"labels": [labels for labels, _ in found], "confidence": [confidence for _, confidence in found]}

    def postprocess(self, model_outputs):  # type: ignore[override]
        (labels,), (confidence,) = model_outputs["labels"], model_outputs["confidence"]
        return class_segments(labels, label_map_classes(self.model.config), confidence)


def class_segments(
    labels: torch.Tensor, names: Mapping[int, str], confidence: torch.Tensor | None = None
) -> list[dict[str, Any]]:
    """Return `{"score": number or None, "label": name, "mask": PIL image}` for each class that occurs, in their order.

    Args:
        labels: a label map `(H, W)`, or the masks `(C, H, W)` of a multi-label model, bool.
        names: name of each class.
        confidence: in the labels, of the same shape. Its mean over a mask is the score; None gives no scores.
    """
    if labels.dim() == 3:
        pixels = labels.sum((1, 2))
        sums = None if confidence is None else (confidence.double() * labels).sum((1, 2))
    else:
        pixels = torch.bincount(labels.flatten())
        sums = None if confidence is None else torch.bincount(labels.flatten(), confidence.flatten().double())
    values = labels.cpu().numpy()
    return [
        {
            "score": None if sums is None else (sums[index] / pixels[index]).item(),
            "label": names[index],
            "mask": Image.fromarray(np.uint8(255) * (values[index] if values.ndim == 3 else values == index)),
        }
        for index in torch.nonzero(pixels).flatten().tolist()
    ]


class _ListDataset(Dataset):
    """Wrap a list, so that transformers yields its results one by one instead of returning all of them."""

    def __init__(self, items: Sequence[Any]):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def _lists(batch: Iterable[dict[str, list[Any]]]) -> dict[str, list[Any]]:
    batch = list(batch)
    return {key: [value for item in batch for value in item[key]] for key in batch[0]}


__all__ = ["SegmentationPipeline", "class_segments"]
