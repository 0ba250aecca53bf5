# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Models and image processors for images with other bands than red, green and blue."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import logging

from ..datasets.bands import BandStatistics
from ..image_processing import SegmentationImageProcessor, SegmentationImageProcessorPil
from ..models.input_channels import input_channels, with_input_channels
from ..rasters.band_image import value_range

logger = logging.get_logger(__name__)


def with_bands(
    model: PreTrainedModel,
    processor: Any,
    statistics: BandStatistics,
    colours: Sequence[int] | None = None,
    random: bool = False,
) -> tuple[PreTrainedModel, Any]:
    """Return a model and its image processor for images with the bands of `statistics`.

    A model that takes bands already stays as it is, with its normalisation. One for RGB images is widened as
    [`with_input_channels`] says, and its processor normalises by the statistics.

    Args:
        model, processor: as [`starting_model`] returns them.
        statistics: bands, type, means and deviations of the training data.
        colours: numbers of the bands that hold red, green and blue, for the weights of RGB models. None repeats
            these weights over all bands.
        random: whether the weights of `model` are random.

    Raises:
        ValueError: if the model takes other bands, another type, or another number of channels.
    """
    if not isinstance(processor, SegmentationImageProcessor | SegmentationImageProcessorPil):
        raise ValueError(f"a {type(processor).__name__} takes RGB images only: start from a model of this package")
    bands = list(statistics.bands)
    if processor.bands is not None:
        own = (list(processor.bands), processor.band_dtype or statistics.dtype)
        if own != (bands, statistics.dtype):
            raise ValueError(
                f"the model takes the bands {_listed(own[0])} of type {own[1]}, and the data have the bands "
                f"{_listed(bands)} of type {statistics.dtype}: pass the bands of the model"
            )
        return model, processor
    missing = [band for band in colours or () if band not in bands]
    if missing:
        raise ValueError(f"the band {missing[0]} of the colours is not among the bands {_listed(bands)} of the model")
    channels = None if colours is None else [bands.index(band) for band in colours]
    count = input_channels(model.config)
    if count != len(bands) or (count == 3 and channels not in (None, [0, 1, 2])):
        model = with_input_channels(model, len(bands), channels, random)
        if not random:
            rule = (
                "repeated" if channels is None else f"taken for the bands {_listed(colours)}, and the others start at 0"
            )
            logger.warning(f"the model gets {len(bands)} bands: its weights for red, green and blue are {rule}")
    fields = processor.to_dict()
    unit = value_range(statistics.dtype)
    fields |= {
        "bands": bands,
        "band_dtype": statistics.dtype,
        "do_convert_rgb": False,
        "do_rescale": True,
        "rescale_factor": 1 / unit,
        "do_normalize": True,
        "image_mean": [value / unit for value in statistics.mean],
        "image_std": [value / unit for value in statistics.std],
    }
    return model, type(processor).from_dict(fields)


def check_ignored_bands(model: PreTrainedModel, bands: Sequence[int]) -> None:
    """Refuse frozen weights that ignore some bands, because the weights for them start at 0 and stay so.

    If a part that is trained reads the image, too, as the convolutions of ViT-Adapter do, it learns these bands. That
    is worth a warning only.

    Args:
        model: after its trunk was frozen.
        bands: numbers of the bands that the model takes, in its order.

    Raises:
        ValueError: if no part of the model can learn one of the bands.
    """
    readers = [weight for weight in model.parameters() if weight.dim() == 4 and weight.shape[1] == len(bands)]
    frozen = [weight for weight in readers if not weight.requires_grad and weight.any()]
    ignored = [band for index, band in enumerate(bands) if any(not bool(weight[:, index].any()) for weight in frozen)]
    if not ignored:
        return
    if not any(weight.requires_grad for weight in readers):
        raise ValueError(
            f"the model would never learn the bands {_listed(ignored)}: the frozen trunk reads the image, and its "
            "weights for these bands are 0. Leave out --colour-bands, so that the weights for colours are repeated "
            "over all bands, or train the trunk"
        )
    logger.warning(
        f"the frozen trunk ignores the bands {_listed(ignored)}, because its weights for them are 0: only the trained "
        "parts of the model learn them. Leave out --colour-bands, so that the weights for colours are repeated over "
        "all bands, or train the trunk"
    )


def _listed(bands: Sequence[int] | None) -> str:
    return ", ".join(str(band) for band in bands or ())


__all__ = ["check_ignored_bands", "with_bands"]
