# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Comparison of a model's classes with those of a data set."""

from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel
from transformers.utils import logging

from ..image_processing import decision_of, label_map_classes

if TYPE_CHECKING:
    from ..datasets import SegmentationDataset

logger = logging.get_logger(__name__)


def check_classes(model: PreTrainedModel, data: "SegmentationDataset") -> None:
    """Refuse a model whose outputs are not the classes of the data, in their order.

    Other names for as many classes give only a warning.

    Raises:
        ValueError: if the number or the order of the classes differs, or only one of both is multi-label. It names the
            difference.
    """
    config: Any = model.config
    if decision_of(config).multi_label != data.multi_label:
        raise ValueError(
            "the data set is multi-label, but the model has one class for each pixel"
            if data.multi_label
            else "the model is multi-label, but the data set has one class for each pixel: pass multi_label=True for "
            "masks that are bit planes, or write a folder of masks for each class"
        )
    ours = list(label_map_classes(config).values())
    theirs = [data.id2label[index] for index in range(data.num_labels)]
    if len(ours) < len(theirs):
        raise ValueError(f"the model has {len(ours)} classes, but the data set has {len(theirs)}: they do not fit")
    surplus = [name for name in ours[len(theirs) :] if not name.startswith(("unused ", "LABEL_"))]
    if surplus:
        raise ValueError(
            f"the model has {len(ours)} classes, but the data set has {len(theirs)}: it lacks the model's "
            f"{surplus[0]!r} and {len(surplus) - 1} more"
        )
    pairs = [(_plain(one), _plain(other)) for one, other in zip(ours, theirs, strict=False)]
    different = [
        index for index, (one, other) in enumerate(pairs) if one != other and not ours[index].startswith("LABEL_")
    ]
    if not different:
        return
    first = different[0]
    message = f"class {first} is {ours[first]!r} in the model and {theirs[first]!r} in the data set"
    if len(different) > 1 and sorted(one for one, _ in pairs) == sorted(other for _, other in pairs):
        raise ValueError(f"model and data set have the same classes in another order: {message}")
    logger.warning(
        f"{len(different)} classes have other names in the data set; {message}. They are taken for the same."
    )


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


__all__ = ["check_classes"]
